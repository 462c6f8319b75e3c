// The small picture of how far a portrait is, in the frame in which the portrait will be.
//
// It changes with every step; where the reader wants less motion, with every quarter of the steps.

import { el } from "./dom.js";

const QUARTERS = 4;

const wantsCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export class Preview {
  constructor(frame) {
    this.frame = frame;
    this.image = null;
    this.quarter = null;
  }

  show({ preview, step, steps }) {
    if (!preview || !this.isTime(step, steps)) return;
    if (this.image?.getAttribute("src") === preview) return;
    this.put(preview);
    this.image.alt = `Preview of the picture after step ${step} of ${steps}`;
  }

  isTime(step, steps) {
    const quarter = Math.floor((QUARTERS * step) / steps);
    const isNew = this.quarter !== quarter;
    this.quarter = quarter;
    return isNew || !wantsCalm();
  }

  put(preview) {
    if (!this.image) {
      this.image = el("img", { class: "preview" });
      this.frame.append(this.image);
    }
    this.image.src = preview;
  }

  /** The last one under the finished picture, until that is there. */
  stayUntilLoaded({ preview }, picture) {
    if (!preview) return;
    this.put(preview);
    this.image.alt = "";
    picture.addEventListener("load", () => this.image.remove(), { once: true });
  }
}
