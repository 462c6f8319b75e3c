// Which of the faces of a photo is meant: boxes over it, and below it each face large enough for a finger.
//
// The faces below are radio buttons, for the arrow keys and for screen readers; a box is a label of its
// button. Counts as the server does: 0 is the face it takes by itself. Knows no route.

import { el, radioIn } from "./dom.js";
import { drawFaces } from "./pictures.js";

let pickers = 0; // each is a group of radio buttons of its own

export class FacePicker {
  /** Boxes come into `frame`, faces to choose from into `chosen`. `onChoose()` hears of every choice. */
  constructor({ frame, chosen, status }, onChoose) {
    this.frame = frame;
    this.chosen = chosen;
    this.status = status;
    this.onChoose = onChoose;
    this.name = `face-${(pickers += 1)}`;
    this.clear();
  }

  clear() {
    this.index = 0;
    this.faces = null; // as they were found; null: nobody has looked
    this.frame.querySelector(".boxes")?.remove();
    this.chosen.querySelector(".faces")?.remove();
    this.status.textContent = "";
  }

  /** `blob`: the photo; `index`: the face that is meant, if there is one of that number. */
  show({ faces, blob }, remark, index = 0) {
    this.faces = faces;
    this.blob = blob;
    this.index = index < faces.length ? index : 0;
    const one = faces.length === 1 ? "1 face found." : `${faces.length} faces found: choose one.`;
    this.status.textContent = `${remark} ${faces.length ? one : ""}`.trim();
    this.boxes = faces.map((face) => this.box(face));
    this.frame.append(el("div", { class: "boxes", "aria-hidden": "true" }, ...this.boxes));
    if (faces.length > 1) this.offer(faces, blob);
    this.mark();
  }

  /** One of several. */
  offer(faces, blob) {
    const canvases = faces.map(() => el("canvas"));
    const labels = faces.map((face, i) => this.choice(face, canvases[i]));
    const attributes = { class: "faces", role: "radiogroup", "aria-label": "Faces in the photo" };
    this.chosen.append(el("div", attributes, ...labels));
    drawFaces(blob, faces, canvases);
  }

  choice(face, canvas) {
    const left = ({ box }) => box[0];
    const place = this.faces.filter((other) => left(other) < left(face)).length + 1;
    const name = `Face ${face.index + 1} of ${this.faces.length}, number ${place} from the left`;
    const attributes = { id: `${this.name}-${face.index}`, name: this.name, "aria-label": name };
    const { radio, label } = radioIn(attributes, () => this.choose(face.index), canvas);
    radio.checked = face.index === this.index;
    return label;
  }

  box({ index, box: [left, top, right, bottom] }) {
    const label = el("label", { for: `${this.name}-${index}` });
    Object.assign(label.style, {
      left: `${left * 100}%`,
      top: `${top * 100}%`,
      width: `${(right - left) * 100}%`,
      height: `${(bottom - top) * 100}%`,
    });
    return label;
  }

  mark() {
    this.boxes.forEach((box, i) => box.classList.toggle("meant", i === this.index));
  }

  /** The box of the face that is meant, and those of the others, in fractions of the photo. */
  get places() {
    const others = this.faces.filter(({ index }) => index !== this.index).map(({ box }) => box);
    return { chosen: this.faces[this.index].box, others };
  }

  choose(index) {
    this.index = index;
    this.mark();
    this.onChoose();
  }
}
