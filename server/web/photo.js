// One photo, or an identity file in its place: chosen, shown, with the faces the server finds in it.
//
// It is kept in memory only and sent as it is, unless it is above what the server takes in one
// request: then a smaller copy is made here, and the page says so. Whose it is, and which file inputs
// and drops bring it, others know.

import { callJson } from "./api.js";
import { announce, el, megabytes, showBlob, showProblem } from "./dom.js";
import { FacePicker } from "./face_picker.js";
import { dataUri, fitting, partAround, sizeOf } from "./pictures.js";

export const PHOTO_TYPES = "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/avif";
export const IDENTITY_TYPE = ".safetensors";

const isIdentityFile = ({ name }) => name.toLowerCase().endsWith(IDENTITY_TYPE);

export class PhotoField {
  /**
   * `parts`: elements of the page: frame, image, name, status, problem, empty, chosen, zone, input, change.
   * `server`: {room: bytes for the text of photos in a request, listsFaces, takesIdentities}.
   * `onChange()` hears when there is another file or face, or none.
   */
  constructor(parts, server, onChange) {
    this.parts = parts;
    this.server = server;
    this.onChange = onChange;
    this.photo = null; // {blob, size, text: data URI}
    this.identity = null; // base64 text of a file
    this.isLooking = false; // for faces
    this.wantedFace = 0; // in the next photo, as an earlier request had it
    this.picker = new FacePicker(parts, onChange);
    this.turn = new AbortController(); // of the file that is being looked at
    parts.input.addEventListener("change", () => this.takeFrom(parts.input));
    parts.change.addEventListener("click", () => parts.input.click());
  }

  takeFrom(input) {
    if (input.files[0]) this.take(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  }

  get isEmpty() {
    return this.photo === null && this.identity === null;
  }

  async take(file) {
    this.clear();
    const { signal } = this.turn;
    await (isIdentityFile(file) && this.server.takesIdentities
      ? this.takeIdentity(file, signal)
      : this.takePhoto(file, signal));
    if (!signal.aborted && this.photo && this.server.listsFaces) await this.findFaces({ mayAskForKey: true });
  }

  /** Take what another field has, with the face chosen there. */
  adopt({ photo, identity, picker, shown }) {
    this.clear();
    Object.assign(this, { photo, identity });
    this.show(...shown);
    if (picker.faces) this.picker.show(picker, shown.at(-1), picker.index);
    else this.lookAgain();
  }

  async takePhoto(file, signal) {
    const size = await sizeOf(file);
    if (signal.aborted) return;
    if (size === null) {
      this.showProblem("This file cannot be read as a picture. Choose a JPEG, PNG or WebP.");
      return;
    }
    const sent = await fitting({ blob: file, size }, this.server.room);
    const text = await dataUri(sent.blob);
    if (signal.aborted) return;
    this.photo = { ...sent, text };
    const copy = sent.size === size ? "" : this.copyRemark(sent.size);
    const facts = `${size.width} × ${size.height}, ${megabytes(file.size)}`;
    this.show(file, file.name || "Pasted photo", facts, copy);
    announce(`Photo ${file.name} chosen.`);
  }

  copyRemark({ width, height }) {
    const most = megabytes(Number(document.body.dataset.maxBodyBytes));
    return `This server takes ${most} in one request, so a copy of ${width} × ${height} is sent.`;
  }

  async takeIdentity(file, signal) {
    const text = await dataUri(file);
    if (signal.aborted) return;
    this.identity = text.slice(text.indexOf(",") + 1);
    this.show(null, file.name, `${megabytes(file.size)}`, "An identity file: no photo is sent.");
    announce(`Identity file ${file.name} chosen.`);
  }

  show(picture, name, facts, remark) {
    this.shown = [picture, name, facts, remark];
    const { image, frame, empty, chosen, change } = this.parts;
    frame.classList.toggle("is-identity", picture === null);
    image.hidden = picture === null;
    if (picture) showBlob(image, picture);
    this.parts.name.replaceChildren(name, el("span", { class: "hint" }, facts));
    this.parts.status.textContent = remark;
    this.showProblem(""); // of a moment ago, when it was missing
    swap(empty, chosen, change);
    this.onChange();
  }

  /** For faces, where that has not come to an end, as without a key. */
  lookAgain() {
    const isDue = this.photo !== null && this.picker.faces === null && !this.isLooking;
    if (isDue && this.server.listsFaces) this.findFaces({ mayAskForKey: false });
  }

  /** Without a key, or while the engine is loading, the photo is taken as it is: the portrait will tell. */
  async findFaces({ mayAskForKey }) {
    const { signal } = this.turn;
    const ask = { method: "POST", json: { image: this.photo.text }, signal, mayAskForKey };
    const { status } = this.parts;
    const remark = this.shown.at(-1);
    status.textContent = "Looking for faces …";
    this.isLooking = true;
    try {
      const found = await callJson("v1/faces", ask);
      if (signal.aborted) return; // while a key was asked for
      this.picker.show({ ...found, blob: this.photo.blob }, remark, this.wantedFace);
      this.wantedFace = 0;
      this.onChange();
      if (found.faces.length === 0) this.showProblem("No face was found in this photo. Choose another one.");
    } catch (error) {
      if (signal.aborted) return;
      status.textContent = remark;
      if (error.status === 400) this.showProblem(error.message);
    } finally {
      if (!signal.aborted) this.isLooking = false;
    }
  }

  clear() {
    this.turn.abort();
    this.turn = new AbortController();
    this.isLooking = false;
    this.photo = this.identity = null;
    this.picker.clear();
    this.showProblem("");
    this.parts.image.removeAttribute("src");
    swap(this.parts.chosen, this.parts.empty, this.parts.input);
    this.onChange();
  }

  /** Which face was picked, for a request; nothing where there is no choice. */
  choice() {
    return this.picker.index > 0 ? { face_index: this.picker.index } : {};
  }

  /** The photo; where another face than the largest is meant, the part of it that shows this one. */
  async photoOfTheFace() {
    if (this.picker.index === 0) return this.photo;
    const part = await partAround(this.photo.blob, this.picker.places);
    return { ...part, text: await dataUri(part.blob) };
  }

  check() {
    if (this.isEmpty) this.showProblem("Choose a photo first.");
    return !this.isEmpty;
  }

  /** Is a file here like that of an earlier request? Else says which one is to be chosen again. */
  isLike({ identity, face_index: face = 0 }) {
    const [file, kind] = identity === undefined ? [this.photo, "photo"] : [this.identity, "identity file"];
    if (file !== null) return true;
    this.showProblem(`Choose the ${kind} again: this browser does not keep ${kind}s.`);
    this.wantedFace = face;
    return false;
  }

  showProblem(text) {
    showProblem(this.parts.problem, this.parts.input, text);
    this.parts.zone.classList.toggle("wrong", text !== "");
  }

  focus() {
    (this.isEmpty ? this.parts.input : this.parts.change).focus();
  }
}

/** One part of the page in the place of another. A focus that was in that one comes along. */
function swap(gone, shown, target) {
  shown.hidden = false;
  if (gone.contains(document.activeElement)) target.focus();
  gone.hidden = true;
}
