// The photo: chosen, dropped, pasted or taken; shown, with the faces the server finds in it.
//
// It is kept in memory only and sent as it is, unless it is above what the server takes in one
// request: then a smaller copy is made here, and the page says so.

import { announce, byId, el, megabytes, radioIn, showBlob, showProblem } from "./dom.js";
import { callJson } from "./api.js";

// Of the largest request, for everything but the photo.
const ROOM_FOR_THE_REST = 0.03;
const JPEG_QUALITY = 0.92;
const SMALLER = 0.8; // of each side, until a copy fits

export class PhotoField {
  /** `limit`: bytes of a request. `listsFaces`: has the server a route for it? */
  constructor({ limit, listsFaces }) {
    this.limit = limit;
    this.listsFaces = listsFaces;
    this.photo = null; // {text: data URI}
    this.picker = new FacePicker(byId("photo-frame"), byId("photo-faces"));
    this.turn = new AbortController(); // of the photo that is being looked at
    this.listen();
  }

  listen() {
    for (const input of [byId("photo-file"), byId("photo-camera")]) {
      input.addEventListener("change", () => {
        if (input.files[0]) this.take(input.files[0]);
        input.value = ""; // so that the same file can be chosen again
      });
    }
    byId("photo-change").addEventListener("click", () => byId("photo-file").click());
    byId("photo-remove").addEventListener("click", () => {
      this.clear();
      byId("photo-file").focus();
    });
    document.addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (file) this.take(file);
    });
    listenForDrops(byId("drop"), (file) => this.take(file));
  }

  async take(file) {
    this.clear();
    const { signal } = this.turn;
    const size = await sizeOf(file);
    if (signal.aborted) return;
    if (size === null) {
      this.showProblem("This file cannot be read as a picture. Choose a JPEG, PNG or WebP.");
      return;
    }
    const sent = await fitting(file, size, this.limit * (1 - ROOM_FOR_THE_REST));
    const text = await dataUri(sent.blob);
    if (signal.aborted) return;
    this.photo = { text };
    this.show(file, size, sent);
    announce(`Photo ${file.name} chosen.`);
    if (this.listsFaces) await this.findFaces(signal);
  }

  show(file, size, sent) {
    showBlob(byId("photo-image"), file);
    const facts = `${size.width} × ${size.height}, ${megabytes(file.size)}`;
    byId("photo-name").replaceChildren(file.name || "Pasted photo", el("span", { class: "hint" }, facts));
    if (sent.size !== size) {
      const copy = `${sent.size.width} × ${sent.size.height}`;
      const most = megabytes(this.limit);
      byId("photo-faces").textContent =
        `This server takes ${most} in one request, so a copy of ${copy} is sent.`;
    }
    byId("photo-empty").hidden = true;
    byId("photo-chosen").hidden = false;
  }

  /** Without a key, or while the engine is loading, the photo is taken as it is: making the portrait tells. */
  async findFaces(signal) {
    const ask = { method: "POST", json: { image: this.photo.text }, signal, mayAskForKey: false };
    const said = byId("photo-faces").textContent;
    byId("photo-faces").textContent = "Looking for faces …";
    try {
      const found = await callJson("v1/faces", ask);
      this.picker.show(found, said);
      if (found.faces.length === 0) this.showProblem("No face was found in this photo. Choose another one.");
    } catch (error) {
      if (error.name === "AbortError") return;
      byId("photo-faces").textContent = said;
      if (error.status === 400) this.showProblem(error.message);
    }
  }

  clear() {
    this.turn.abort();
    this.turn = new AbortController();
    this.photo = null;
    this.picker.clear();
    this.showProblem("");
    byId("photo-image").removeAttribute("src");
    byId("photo-chosen").hidden = true;
    byId("photo-empty").hidden = false;
  }

  /** Which face was picked, for a request; nothing where there is no choice. */
  choice() {
    return this.picker.index > 0 ? { face_index: this.picker.index } : {};
  }

  check() {
    if (this.photo === null) this.showProblem("Choose a photo first.");
    return this.photo !== null;
  }

  showProblem(text) {
    showProblem(byId("photo-problem"), byId("photo-file"), text);
    byId("drop").classList.toggle("wrong", text !== "");
  }

  focus() {
    (this.photo ? byId("photo-change") : byId("photo-file")).focus();
  }
}

/** Boxes over the photo; one of several faces can be chosen, with the mouse or the arrow keys. */
class FacePicker {
  constructor(frame, status) {
    this.frame = frame;
    this.status = status;
    this.clear();
  }

  clear() {
    this.index = 0; // as the server counts: 0 is the one it takes by itself
    this.frame.querySelector(".faces")?.remove();
    this.status.textContent = "";
  }

  show({ faces }, remark) {
    const one = faces.length === 1 ? "1 face found." : `${faces.length} faces found: choose one.`;
    this.status.textContent = `${remark} ${faces.length ? one : ""}`.trim();
    const name = `Faces in the photo, ${faces.length}`;
    const boxes = faces.map((face) => this.box(face, faces.length));
    this.frame.append(el("div", { class: "faces", role: "radiogroup", "aria-label": name }, ...boxes));
  }

  box({ index, box: [left, top, right, bottom] }, count) {
    const name = `Face ${index + 1} of ${count}`;
    const attributes = { name: "face", value: index, "aria-label": name };
    const { radio, label } = radioIn(attributes, () => (this.index = index), el("span", {}, name));
    radio.checked = index === this.index;
    Object.assign(label.style, {
      left: `${left * 100}%`,
      top: `${top * 100}%`,
      width: `${(right - left) * 100}%`,
      height: `${(bottom - top) * 100}%`,
    });
    return label;
  }
}

function listenForDrops(zone, take) {
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault(); // else the browser would leave the page for the picture
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

/** Width and height in pixels, upright; null for what the browser cannot read. */
async function sizeOf(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const { width, height } = bitmap;
    bitmap.close();
    return { width, height };
  } catch {
    return null;
  }
}

/** The blob itself, or a copy small enough that its base64 text has at most `room` bytes. */
async function fitting(blob, size, room) {
  // A canvas that is too large for the browser gives no blob at all.
  const fits = ({ blob: one }) => one !== null && Math.ceil(one.size / 3) * 4 <= room;
  let sent = { blob, size };
  for (let scale = 1; !fits(sent) && scale > 0.01; scale *= SMALLER) {
    const smaller = { width: Math.round(size.width * scale), height: Math.round(size.height * scale) };
    sent = { blob: await redrawn(blob, smaller, "image/jpeg", JPEG_QUALITY), size: smaller };
  }
  return sent;
}

/** The picture at another size. */
export async function redrawn(blob, { width, height }, type, quality) {
  const bitmap = await createImageBitmap(blob);
  const canvas = el("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, type, quality));
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
