// A form control for every parameter in the schema that has no place of its own on the page. A control at
// its default is left out of a request; the page may have a usual value that is another one.

import { controlFor, hasControl } from "./control_kinds.js";
import { el } from "./dom.js";

// Which parameters belong together. One that is in no group comes last, so a newer server's show up too.
const GROUPS = [
  ["Likeness", ["id_weight", "start_step", "id_end_step", "identity_similarity", "strict_face"]],
  ["Guidance", ["guidance_scale", "true_cfg", "negative_prompt"]],
  ["Size", ["width", "height"]],
  ["Painting", ["num_steps", "seed", "max_sequence_length"]],
  ["File", ["output_format", "output_quality"]],
];
// They have places of their own on the page, or none: base64 means nothing to v2.
const ELSEWHERE = ["prompt", "num_outputs", "base64", "main_face_image", "face_fusion", "identity"];

export class Controls {
  /** `elsewhere`: names that this page sets in another way. `onChange` hears of every change. */
  constructor(parameters, { elsewhere = [], onChange }) {
    this.onChange = onChange;
    this.all = new Map();
    this.parameters = parameters;
    this.elsewhere = new Set([...ELSEWHERE, ...elsewhere]);
    this.usual = {}; // where the page begins elsewhere than the server
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
    return parameter !== undefined && !this.elsewhere.has(name) && hasControl(parameter);
  }

  add(name) {
    const control = controlFor(this.parameters.get(name), () => this.onChange());
    this.all.set(name, control);
    return control;
  }

  value(name) {
    return this.all.get(name)?.value ?? null;
  }

  /** Set those that are named and known; null is where the page begins. */
  set(values) {
    for (const [name, value] of Object.entries(values)) {
      const control = this.all.get(name);
      if (control) control.value = value ?? this.beginning(control);
    }
    this.onChange();
  }

  beginning({ parameter }) {
    return this.usual[parameter.name] ?? parameter.initial;
  }

  /** Begin with this value from now on. One that was changed by hand stays. */
  begin(name, value) {
    const control = this.all.get(name);
    if (!control) return;
    const isUntouched = control.value === this.beginning(control);
    this.usual[name] = value;
    if (isUntouched) this.set({ [name]: value });
  }

  reset() {
    this.set(Object.fromEntries([...this.all.keys()].map((name) => [name, null])));
  }

  /** All as an earlier request had them. */
  fill(request) {
    const initials = [...this.all].map(([name, { parameter }]) => [name, parameter.initial]);
    this.set({ ...Object.fromEntries(initials), ...request });
  }

  /** How many are not where the page begins. */
  get countOfChanged() {
    return [...this.all.values()].filter((control) => control.value !== this.beginning(control)).length;
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
