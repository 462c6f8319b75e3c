// The list of portraits: thumbnails to choose from. Entries are changed in place, never built anew.

import { byId, el, showBlob } from "./dom.js";
import { likenessText, shortLikeness } from "./likeness.js";
import { isRunning } from "./portraits.js";
import { progressText } from "./stage.js";

export class Shelf {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.items = new Map(); // id -> its elements
  }

  /** Put a portrait first, or bring its entry up to date. One that failed has none. */
  show(portrait) {
    if (portrait.state === "FAILED") {
      this.remove(portrait);
      return;
    }
    const entry = this.items.get(portrait.id) ?? this.add(portrait);
    const name = portrait.sent.prompt.slice(0, 120);
    const badge = isRunning(portrait) ? running(portrait) : several(portrait);
    entry.badge.textContent = badge;
    entry.badge.hidden = badge === "";
    entry.likeness.textContent = shortLikeness(portrait);
    entry.likeness.hidden = entry.likeness.textContent === "";
    entry.name.textContent = `${name}${aside(portrait)}`;
    this.explain();
    if (portrait.thumbnail && !entry.image.getAttribute("src")) showBlob(entry.image, portrait.thumbnail);
  }

  add(portrait) {
    const image = el("img", { alt: "", hidden: true });
    image.addEventListener("load", () => (image.hidden = false));
    const badge = el("span", { class: "badge", "aria-hidden": "true", hidden: true });
    const likeness = el("span", { class: "badge likeness", "aria-hidden": "true", hidden: true });
    const name = el("span", { class: "unseen" });
    const choose = () => this.onChoose(portrait);
    const button = el("button", { type: "button", onclick: choose }, image, name, likeness, badge);
    button.title = portrait.sent.prompt;
    const entry = { item: el("li", {}, button), button, image, name, badge, likeness };
    this.items.set(portrait.id, entry);
    byId("history-list").prepend(entry.item);
    byId("history").hidden = false;
    return entry;
  }

  remove({ id }) {
    this.items.get(id)?.item.remove();
    this.items.delete(id);
    byId("history").hidden = this.items.size === 0;
    this.explain();
  }

  explain() {
    const isMeasured = [...this.items.values()].some(({ likeness }) => likeness.textContent !== "");
    byId("history-likeness").hidden = !isMeasured;
  }

  /** Mark the one that is in the large view. */
  mark(portrait) {
    for (const [id, { button }] of this.items) {
      if (id === portrait?.id) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }
}

const running = ({ step, steps }) => (steps ? `${Math.floor((100 * step) / steps)} %` : "…");
const several = ({ pictures }) => (pictures.length > 1 ? `${pictures.length}` : "");

/** What the pictures on the button tell, in words. */
function aside(portrait) {
  if (isRunning(portrait)) return `. ${progressText(portrait)}`;
  const said = likenessText(portrait.pictures[0]);
  return said ? `. ${said}` : "";
}
