// Boxes over a photo; one of several faces can be chosen, with the mouse or the arrow keys.
//
// Counts as the server does: 0 is the face it takes by itself. Knows no route.

import { el, radioIn } from "./dom.js";

let pickers = 0; // each is a group of radio buttons of its own

export class FacePicker {
  /** `onChoose()` hears of every choice. */
  constructor(frame, status, onChoose) {
    this.frame = frame;
    this.status = status;
    this.onChoose = onChoose;
    this.name = `face-${(pickers += 1)}`;
    this.clear();
  }

  clear() {
    this.index = 0;
    this.faces = null; // as they were found; null: nobody has looked
    this.frame.querySelector(".faces")?.remove();
    this.status.textContent = "";
  }

  /** Null until somebody has looked. */
  get count() {
    return this.faces?.length ?? null;
  }

  show({ faces }, remark, index = 0) {
    this.faces = faces;
    this.index = index;
    const one = faces.length === 1 ? "1 face found." : `${faces.length} faces found: choose one.`;
    this.status.textContent = `${remark} ${faces.length ? one : ""}`.trim();
    const name = `Faces in the photo, ${faces.length}`;
    const boxes = faces.map((face) => this.box(face, faces.length));
    this.frame.append(el("div", { class: "faces", role: "radiogroup", "aria-label": name }, ...boxes));
  }

  box({ index, box: [left, top, right, bottom] }, count) {
    const name = `Face ${index + 1} of ${count}`;
    const attributes = { name: this.name, value: index, "aria-label": name };
    const { radio, label } = radioIn(attributes, () => this.choose(index), el("span", {}, name));
    radio.checked = index === this.index;
    Object.assign(label.style, {
      left: `${left * 100}%`,
      top: `${top * 100}%`,
      width: `${(right - left) * 100}%`,
      height: `${(bottom - top) * 100}%`,
    });
    return label;
  }

  /** The box of the face that is meant, and those of the others, in fractions of the photo. */
  boxes() {
    const others = this.faces.filter(({ index }) => index !== this.index).map(({ box }) => box);
    return { chosen: this.faces.find(({ index }) => index === this.index).box, others };
  }

  choose(index) {
    this.index = index;
    this.onChoose();
  }
}
