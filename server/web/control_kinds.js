// A control for one parameter: its range and default are the schema's, its title and meaning where the page
// has no words of its own. Its value is what the wire takes. Knows no other control.

import { el, radioIn, showProblem } from "./dom.js";
import { allowed } from "./schema.js";
import { inWordsOfThePage, meaningOf, titleOf } from "./words.js";

const FEW = 5; // choices that are shown side by side

class Control {
  /** `prefix`: what tells its id from those of other controls for the same parameter. */
  constructor(parameter, onChange, prefix) {
    this.parameter = parameter;
    const id = `control-${prefix}${parameter.name}`;
    this.problem = el("p", { id: `${id}-problem`, class: "problem" });
    this.input = this.build({ id, "aria-describedby": `${id}-problem ${id}-hint` });
    const name = el("code", {}, parameter.name); // for those who call the server themselves
    this.hint = el("p", { id: `${id}-hint`, class: "hint" }, `${this.meaning()} `, name);
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
    const label = el("label", { for: id }, titleOf(this.parameter.name));
    return [el("div", { class: "control-line" }, label, this.input), this.problem, this.hint];
  }

  meaning() {
    return meaningOf(this.parameter);
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
    const problem = `${this.parameter.name} must be ${allowed(this.parameter)}.`;
    this.show(valid ? "" : inWordsOfThePage(problem));
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
    return `${meaningOf(this.parameter)} Default: ${this.parameter.initial}.`.trim();
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
    const { minimum, maximum, initial } = this.parameter;
    const range = minimum === null || maximum === null ? "" : ` From ${minimum} to ${maximum}.`;
    return `${meaningOf(this.parameter)}${range}${initial === null ? "" : ` Default: ${initial}.`}`.trim();
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
    const label = `${titleOf(name)}, slider`;
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
    const legend = el("legend", {}, titleOf(this.parameter.name));
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

/** Can a parameter of this kind have a control? */
export const hasControl = ({ type }) => type in KINDS;

export function controlFor(parameter, onChange, prefix = "") {
  return new (kindOf(parameter))(parameter, onChange, prefix);
}

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
