// More photos of one person: added, removed, and how they become one identity. Kept in memory only.
//
// Knows nothing of the first photo but that it counts.

import { announce, byId, el, radioIn, showBlob, showProblem } from "./dom.js";
import { dataUri, fitting, sizeOf } from "./pictures.js";
import { titleOf } from "./words.js";

const FUSIONS = {
  mean: ["Average", "Averaged: the calm choice."],
  concat: ["Side by side", "The model attends to each photo; steps take a little longer."],
};

export class MorePhotos {
  /** `most`: photos altogether; `fusion`: its parameter in the schema; `room`: bytes of text in a request. */
  constructor({ most, fusion, room }, onChange) {
    this.most = most - 1;
    this.room = room;
    this.onChange = onChange;
    this.photos = []; // {blob, size, text}, in order
    this.initial = fusion?.initial ?? null;
    this.showFusions(fusion?.choices ?? []);
    byId("more-files").addEventListener("change", () => this.takeFrom(byId("more-files")));
    this.update();
  }

  showFusions(choices) {
    this.radios = choices.map((value) => {
      const [title, hint] = FUSIONS[value] ?? [titleOf(value), ""];
      const show = () => (byId("fusion-hint").textContent = hint);
      const { radio, label } = radioIn({ name: "face_fusion", value }, show, title);
      byId("fusions").append(label);
      return radio;
    });
    this.setFusion(this.initial);
  }

  setFusion(value) {
    for (const radio of this.radios) radio.checked = radio.value === value;
    byId("fusion-hint").textContent = FUSIONS[value]?.[1] ?? "";
  }

  /** What the wire takes beside the photos; nothing where it is the default or means nothing. */
  fusion() {
    const chosen = this.radios.find((radio) => radio.checked)?.value;
    return this.photos.length && chosen !== this.initial ? { face_fusion: chosen } : {};
  }

  async takeFrom(input) {
    const files = [...input.files];
    input.value = "";
    this.showProblem("");
    for (const file of files) await this.take(file);
  }

  async take(file) {
    if (this.photos.length >= this.most) {
      this.showProblem(`There may be ${this.most + 1} photos altogether.`);
      return;
    }
    const size = await sizeOf(file);
    if (size === null) {
      this.showProblem(`${file.name} cannot be read as a picture. Choose a JPEG, PNG or WebP.`);
      return;
    }
    const sent = await fitting({ blob: file, size }, this.room);
    this.add({ ...sent, text: await dataUri(sent.blob) }, file);
  }

  add(photo, file) {
    const image = el("img", { alt: file.name || `Photo ${this.photos.length + 2}` });
    showBlob(image, file);
    const attributes = { type: "button", class: "remove", "aria-label": `Remove ${image.alt}` };
    const remove = el("button", attributes, "×");
    const item = el("li", {}, image, el("span", { class: "number" }), remove);
    remove.addEventListener("click", () => this.remove(photo, item));
    byId("more-list").append(item);
    this.photos.push(photo);
    announce(`Photo ${file.name} added.`);
    this.update();
  }

  remove(photo, item) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    this.photos.splice(this.photos.indexOf(photo), 1);
    this.showProblem("");
    this.update();
    (next?.querySelector("button") ?? byId("more-files")).focus();
  }

  update() {
    const count = this.photos.length;
    // The first is the one above the list.
    this.items.forEach((item, i) => (item.querySelector(".number").textContent = String(i + 2)));
    byId("more-list").hidden = count === 0;
    byId("fusion").hidden = count === 0;
    byId("more-files").disabled = count >= this.most;
    this.onChange();
  }

  /** Are as many here as an earlier request had beside its first? Else says how many. */
  areLike({ main_face_image: main, face_images: sent = [] }) {
    const count = sent.length - (main === undefined ? 1 : 0);
    const missing = Math.max(0, count) - this.photos.length;
    if (missing === 0) return true;
    const those = Math.abs(missing) === 1 ? "photo" : "photos";
    this.showProblem(
      missing > 0
        ? `Add ${missing} more ${those} of the same person again: this browser does not keep photos.`
        : `That portrait had ${-missing} ${those} fewer: remove what it did not have.`,
    );
    return false;
  }

  get items() {
    return [...byId("more-list").children];
  }

  /** `at`: which of these photos is meant, if one is. Gives what is to be focused. */
  showProblem(text, at = null) {
    showProblem(byId("more-problem"), byId("more-files"), text);
    this.items.forEach((item, i) => item.classList.toggle("wrong", i === at));
    return this.items[at]?.querySelector("button") ?? byId("more-files");
  }
}
