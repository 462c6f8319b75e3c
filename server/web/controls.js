// A form control for every parameter in the schema: its label, meaning, range and default are the
// schema's. Values are what the wire takes; a control at its default is left out of a request.

import { el, inWords, radioIn, showProblem } from "./dom.js";
import { allowed } from "./schema.js";

// Which parameters belong together. One that is in no group comes last, so a newer server's show up too.
const GROUPS = [
  ["Likeness", ["id_weight", "start_step", "id_end_step", "identity_similarity", "strict_face"]],
  ["Guidance", ["guidance_scale", "true_cfg", "negative_prompt"]],
  ["Size", ["width", "height"]],
  ["Painting", ["num_steps", "seed", "max_sequence_length"]],
  ["File", ["output_format", "output_quality"]],
];
// They have places of their own on the page, or none: base64 means nothing to v2, and the page sends one
// photo of one person.
const ELSEWHERE = new Set(["main_face_image", "prompt", "num_outputs", "base64", "identity", "face_fusion"]);
const FEW = 5; // choices that are shown side by side

export class Controls {
  /** `elsewhere`: names that this page sets in another way. `onChange` hears of every change. */
  constructor(parameters, { elsewhere = [], onChange }) {
    this.onChange = onChange;
    this.all = new Map();
    this.parameters = parameters;
    this.elsewhere = new Set([...ELSEWHERE, ...elsewhere]);
  }

  /** Put the controls into the page: one into its own place, the others in groups. */
  show(groups, outputs) {
    outputs.append(this.add("num_outputs").element);
    const known = new Set(GROUPS.flatMap(([, names]) => names));
    const rest = [...this.parameters.keys()].filter((name) => !known.has(name));
    for (const [title, names] of [...GROUPS, ["More", rest]]) {
      const shown = names.filter((name) => this.isShown(name)).map((name) => this.add(name).element);
      if (shown.length) groups.append(el("fieldset", { class: "group" }, el("legend", {}, title), ...shown));
    }
  }

  isShown(name) {
    const parameter = this.parameters.get(name);
    return parameter !== undefined && !this.elsewhere.has(name) && parameter.type in KINDS;
  }

  add(name) {
    const parameter = this.parameters.get(name);
    const control = new (kindOf(parameter))(parameter, () => this.onChange());
    this.all.set(name, control);
    return control;
  }

  value(name) {
    return this.all.get(name)?.value ?? null;
  }

  /** Set those that are named and known; null is the default. */
  set(values) {
    for (const [name, value] of Object.entries(values)) {
      const control = this.all.get(name);
      if (control) control.value = value ?? control.parameter.initial;
    }
    this.onChange();
  }

  reset() {
    this.set(Object.fromEntries([...this.all.keys()].map((name) => [name, null])));
  }

  /** What differs from the defaults, as the wire takes it. */
  changed() {
    const values = [...this.all].map(([name, control]) => [name, control.value]);
    return Object.fromEntries(
      values.filter(([name, value]) => value !== null && value !== this.all.get(name).parameter.initial),
    );
  }

  /** Say in words what is wrong beside each control; the first wrong one, or null. */
  check() {
    const wrong = [...this.all.values()].filter((control) => !control.check());
    return wrong[0] ?? null;
  }

  get(name) {
    return this.all.get(name) ?? null;
  }
}

class Control {
  constructor(parameter, onChange) {
    this.parameter = parameter;
    const id = `control-${parameter.name}`;
    this.problem = el("p", { id: `${id}-problem`, class: "problem" });
    this.input = this.build({ id, "aria-describedby": `${id}-problem ${id}-hint` });
    this.hint = el("p", { id: `${id}-hint`, class: "hint" }, this.meaning());
    this.element = el(
      "div",
      { class: `control ${this.form}`, "data-field": parameter.name },
      ...this.parts(id),
    );
    this.value = parameter.initial;
    this.element.addEventListener("input", () => {
      this.show("");
      onChange();
    });
  }

  get form() {
    return "plain";
  }

  parts(id) {
    const label = el("label", { for: id }, inWords(this.parameter.name));
    return [el("div", { class: "control-line" }, label, this.input), this.problem, this.hint];
  }

  meaning() {
    return this.parameter.meaning;
  }

  get value() {
    return this.input.value;
  }

  set value(value) {
    this.input.value = value ?? "";
  }

  isValid() {
    return true;
  }

  check() {
    const valid = this.isValid();
    this.show(valid ? "" : `${this.parameter.name} must be ${allowed(this.parameter)}.`);
    return valid;
  }

  show(problem) {
    showProblem(this.problem, this.input, problem);
  }

  focus() {
    this.input.focus();
  }
}

class Text extends Control {
  build(attributes) {
    return el("textarea", { ...attributes, rows: 4 });
  }

  get form() {
    return "text";
  }
}

class Toggle extends Control {
  build(attributes) {
    return el("input", { ...attributes, type: "checkbox" });
  }

  get value() {
    return this.input.checked;
  }

  set value(value) {
    this.input.checked = value === true;
  }
}

class Choice extends Control {
  build(attributes) {
    return el("select", attributes, ...this.parameter.choices.map((one) => el("option", {}, one)));
  }

  meaning() {
    return `${this.parameter.meaning} Default: ${this.parameter.initial}.`.trim();
  }

  get value() {
    return this.input.value;
  }

  set value(value) {
    this.input.value = value;
  }
}

/** Any number as text, so that a seed of 63 bits stays whole; empty is "not given". */
class Numeral extends Control {
  build(attributes) {
    const mode = this.parameter.type === "integer" ? "numeric" : "decimal";
    return el("input", { ...attributes, type: "text", inputmode: mode, autocomplete: "off" });
  }

  parts(id) {
    this.input.placeholder = this.parameter.initial ?? "automatic";
    return super.parts(id);
  }

  meaning() {
    const { minimum, maximum, initial, meaning } = this.parameter;
    const range = minimum === null || maximum === null ? "" : ` From ${minimum} to ${maximum}.`;
    return `${meaning}${range}${initial === null ? "" : ` Default: ${initial}.`}`.trim();
  }

  get value() {
    const text = this.input.value.trim();
    if (!text) return this.parameter.initial;
    const number = Number(text);
    return Number.isInteger(number) && !Number.isSafeInteger(number) ? text : number;
  }

  set value(value) {
    this.input.value = value ?? "";
  }

  isValid() {
    const text = this.input.value.trim();
    if (!text) return true;
    const { type, minimum, maximum } = this.parameter;
    if (!(type === "integer" ? /^-?\d+$/ : /^-?\d+(\.\d+)?$/).test(text)) return false;
    const read = type === "integer" ? BigInt : Number;
    return (
      (minimum === null || read(text) >= read(minimum)) && (maximum === null || read(text) <= read(maximum))
    );
  }
}

/** A number with a default and two ends: also a slider. */
class Range extends Numeral {
  get form() {
    return "ranged";
  }

  parts(id) {
    const { minimum, maximum, name } = this.parameter;
    const label = `${inWords(name)}, slider`;
    this.slider = el("input", { type: "range", "aria-label": label, min: minimum, max: maximum });
    this.slider.step = sliderStep(this.parameter);
    this.slider.addEventListener("input", () => (this.input.value = this.slider.value));
    this.input.addEventListener("input", () => (this.slider.value = this.value));
    const [line, ...rest] = super.parts(id);
    return [line, this.slider, ...rest];
  }

  get value() {
    return super.value;
  }

  set value(value) {
    this.input.value = value;
    this.slider.value = value;
  }
}

/** A whole number of a few: side by side. */
class Segments extends Control {
  build() {
    const { name, minimum, maximum } = this.parameter;
    const values = Array.from({ length: maximum - minimum + 1 }, (_, i) => minimum + i);
    const choices = values.map((value) => radioIn({ name, value }, null, String(value)));
    this.radios = choices.map(({ radio }) => radio);
    return el("div", { class: "segments" }, ...choices.map(({ label }) => label));
  }

  parts() {
    const { name, meaning } = this.parameter;
    const legend = el("legend", {}, meaning.replace(/\.$/, "") || inWords(name));
    return [el("fieldset", {}, legend, this.input, this.problem)];
  }

  get value() {
    const chosen = this.radios.find((radio) => radio.checked);
    return chosen ? Number(chosen.value) : this.parameter.initial;
  }

  set value(value) {
    for (const radio of this.radios) radio.checked = Number(radio.value) === value;
  }

  focus() {
    (this.radios.find((radio) => radio.checked) ?? this.radios[0]).focus();
  }
}

const KINDS = { string: Text, boolean: Toggle, integer: Numeral, number: Numeral };

function kindOf({ type, choices, minimum, maximum, initial }) {
  if (choices) return Choice;
  const hasEnds = Number.isFinite(minimum) && Number.isFinite(maximum) && initial !== null;
  if (!["integer", "number"].includes(type) || !hasEnds) return KINDS[type];
  return type === "integer" && maximum - minimum < FEW ? Segments : Range;
}

/** About a hundred places: 16 pixels, one step, a twentieth of a weight. */
function sliderStep({ type, minimum, maximum }) {
  const span = maximum - minimum;
  if (type === "number") return span <= 5 ? 0.05 : 0.1;
  return 2 ** Math.max(0, Math.floor(Math.log2(span / 64)));
}
