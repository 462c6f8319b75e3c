// The list of portraits: thumbnails to choose from. Entries are changed in place, never built anew.

import { byId, el, showBlob } from "./dom.js";
import { isRunning } from "./portraits.js";
import { progressText } from "./stage.js";

export class Shelf {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.items = new Map(); // id -> {item, button, image, badge}
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
    entry.button.setAttribute(
      "aria-label",
      isRunning(portrait) ? `${name}. ${progressText(portrait)}` : name,
    );
    if (portrait.thumbnail && !entry.image.getAttribute("src")) showBlob(entry.image, portrait.thumbnail);
  }

  add(portrait) {
    const image = el("img", { alt: "", hidden: true });
    image.addEventListener("load", () => (image.hidden = false));
    const badge = el("span", { class: "badge", "aria-hidden": "true", hidden: true });
    const button = el("button", { type: "button", onclick: () => this.onChoose(portrait) }, image, badge);
    button.title = portrait.sent.prompt;
    const entry = { item: el("li", {}, button), button, image, badge };
    this.items.set(portrait.id, entry);
    byId("history-list").prepend(entry.item);
    byId("history").hidden = false;
    return entry;
  }

  remove({ id }) {
    this.items.get(id)?.item.remove();
    this.items.delete(id);
    byId("history").hidden = this.items.size === 0;
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
