// One of several people: a photo or an identity file, a place in the picture, and how strongly and when
// the picture sees the face. Knows the fields of a person on the wire; nothing of the other people.

import { controlFor } from "./control_kinds.js";
import { el, showProblem } from "./dom.js";
import { IDENTITY_TYPE, PHOTO_TYPES, PhotoField } from "./photo.js";
import { withSide } from "./regions.js";
import { capitalised } from "./words.js";

const SIDES = ["left", "top", "width", "height"];
const STRENGTHS = ["weight", "start_step", "end_step"];

let made = 0; // ids are never used again

export class Person {
  /** `rules`: parameters of a person; `hears`: {onRegion, onRemove, onFocus, onChange}, called with it. */
  constructor(region, { rules, server, hears }) {
    this.id = `person-${(made += 1)}`;
    this.hears = hears;
    this.region = region;
    this.isPlaced = false; // by hand, or as an earlier request had it
    const parts = this.parts(server);
    this.photo = new PhotoField(parts, server, () => hears.onChange(this));
    this.controls = STRENGTHS.filter((name) => rules.has(name)).map((name) =>
      controlFor(rules.get(name), () => hears.onChange(this), `${this.id}-`),
    );
    this.element = this.build(parts);
    this.element.addEventListener("focusin", () => hears.onFocus(this));
    this.renumber(1);
    this.showRegion();
  }

  parts({ takesIdentities }) {
    const id = `${this.id}-photo`;
    const accept = takesIdentities ? `${PHOTO_TYPES},${IDENTITY_TYPE}` : PHOTO_TYPES;
    const input = el("input", { type: "file", id, accept, "aria-describedby": `${id}-problem` });
    this.label = el("label", { for: id, class: "button small" });
    const image = el("img", { alt: "" });
    const frame = el("div", { class: "photo-frame" }, image);
    const name = el("p", { class: "photo-name" });
    const status = el("p", { class: "hint", role: "status" });
    const change = el("button", { type: "button", class: "button small" }, "Change");
    const empty = el("div", { class: "person-empty" }, el("span", { class: "file" }, input, this.label));
    const side = el("div", { class: "photo-side" }, name, status, el("div", { class: "buttons" }, change));
    const chosen = el("div", { class: "drop-chosen", hidden: true }, frame, side);
    const zone = el("div", { class: "drop person-photo" }, empty, chosen);
    const problem = el("p", { id: `${id}-problem`, class: "problem" });
    return { input, image, frame, name, status, change, empty, chosen, zone, problem };
  }

  build({ zone, problem, image }) {
    this.image = image;
    this.swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    this.title = el("span", {});
    this.remover = el("button", { type: "button", class: "quiet small" }, "Remove");
    this.remover.addEventListener("click", () => this.hears.onRemove(this));
    this.placeProblem = el("p", { id: `${this.id}-place-problem`, class: "problem" });
    const strengths = el("div", {}, ...this.controls.map((control) => control.element));
    this.details = el("details", { class: "fold" }, el("summary", {}, "Weight and steps"), strengths);
    const attributes = { class: "sides", role: "group", "aria-label": "Place in percent of the picture" };
    const fields = el("div", attributes, ...SIDES.map((side) => this.field(side)));
    return el(
      "fieldset",
      { class: "person" },
      el("legend", {}, this.swatch, this.title),
      zone,
      problem,
      fields,
      this.placeProblem,
      this.details,
      this.remover,
    );
  }

  field(side) {
    const id = `${this.id}-${side}`;
    const input = el("input", { id, type: "number", min: 0, max: 100 });
    input.setAttribute("aria-describedby", `${this.id}-place-problem`);
    input.addEventListener("change", () => {
      const number = input.valueAsNumber;
      if (Number.isNaN(number)) this.showRegion();
      else this.setRegion(withSide(this.region, side, number));
    });
    this.inputs = { ...this.inputs, [side]: input };
    return el("div", {}, el("label", { for: id }, `${capitalised(side)} %`), input);
  }

  /** Counted from 1, as people do; the wire counts from 0. */
  renumber(number) {
    this.number = number;
    this.name = `Person ${number}`;
    this.title.textContent = this.name;
    this.swatch.textContent = String(number);
    this.label.textContent = `Choose a photo of person ${number}`;
    this.image.alt = `The photo of person ${number}`;
    this.remover.setAttribute("aria-label", `Remove person ${number}`);
    this.element.className = `person person-${number}`;
  }

  setRegion(region, { byHand = true } = {}) {
    this.region = region;
    this.isPlaced ||= byHand;
    showProblem(this.placeProblem, this.inputs.left, "");
    this.showRegion();
    this.hears.onRegion(this);
  }

  showRegion() {
    for (const side of SIDES) this.inputs[side].value = this.region[side];
  }

  /** Everything but the photo: as the wire takes it. */
  fields() {
    const { left, top, width, height } = this.region;
    const box = [left, top, left + width, top + height].map((percent) => percent / 100);
    const isChanged = ({ value, parameter }) => value !== null && value !== parameter.initial;
    const strengths = this.controls.filter(isChanged).map(({ value, parameter }) => [parameter.name, value]);
    return { ...this.photo.choice(), box, ...Object.fromEntries(strengths) };
  }

  /** As an earlier request had them, but for the photo. */
  fill({ box, ...values }) {
    if (box) {
      const [left, top, right, bottom] = box.map((fraction) => Math.round(100 * fraction));
      this.setRegion({ left, top, width: right - left, height: bottom - top });
    }
    const names = this.controls.map(({ parameter }) => parameter.name);
    this.set(Object.fromEntries(names.map((name) => [name, values[name] ?? null])));
  }

  /** Set the weight or steps that are named; null is the default. */
  set(values) {
    for (const control of this.controls) {
      const { name, initial } = control.parameter;
      if (name in values) control.value = values[name] ?? initial;
    }
  }

  /** What has to be mended first, or null. */
  check() {
    const hasPhoto = this.photo.check();
    const wrong = this.controls.filter((control) => !control.check())[0];
    if (wrong) this.details.open = true;
    return hasPhoto ? (wrong ?? null) : this.photo;
  }

  /** Say what is wrong with a field of this person; where it can be mended. */
  showProblem(field, text) {
    const control = this.controls.find(({ parameter }) => parameter.name === field);
    if (control) {
      control.show(text);
      this.details.open = true;
      return control;
    }
    if (field === "box") {
      showProblem(this.placeProblem, this.inputs.left, text);
      return this.inputs.left;
    }
    this.photo.showProblem(text);
    return this.photo;
  }

  forgetProblems() {
    this.photo.showProblem("");
    showProblem(this.placeProblem, this.inputs.left, "");
    for (const control of this.controls) control.show("");
  }
}
