// The large view of one portrait: what it will be, how it stands, what it became.
//
// Progress changes what is there; only another state builds the view anew, so that the keyboard's
// focus stays where it is. What the buttons do is handed in.

import { BASE, pause } from "./api.js";
import { announce, duration, el, showBlob } from "./dom.js";
import { isMendable } from "./faults.js";
import { explanation, likenessText } from "./likeness.js";
import { fetchPicture, isRunning } from "./portraits.js";
import { Preview } from "./preview.js";
import { SNIPPETS } from "./snippets.js";
import { whoseFaces, withoutSources } from "./sources.js";
import { titleOf } from "./words.js";

const QUARTERS = 4; // how often progress is told to people who do not see it
const ANOTHER_TRY_MS = 30_000; // for a picture that could not be loaded

export class Stage {
  /** `actions`: what the buttons do, by name; `sizeOf(sent)`: the size a picture will have. */
  constructor(root, { actions, sizeOf }) {
    this.root = root;
    this.actions = actions;
    this.sizeOf = sizeOf;
    this.portrait = null;
    this.problem = el("p", { class: "problem boxed", role: "alert" });
    this.show(null);
  }

  show(portrait) {
    const isSame = portrait !== null && portrait === this.portrait && isRunning(portrait) && this.running;
    this.portrait = portrait;
    if (!isSame) this.build();
    if (this.running) this.update();
  }

  build() {
    const had = this.root.contains(document.activeElement);
    this.running = null;
    this.problem.textContent = "";
    this.root.replaceChildren(...this.parts());
    if (had) this.root.focus();
  }

  parts() {
    if (this.portrait === null) return [welcome(this.sizeOf({}))];
    if (isRunning(this.portrait)) return this.work();
    if (this.portrait.state === "FAILED") return this.failure();
    return this.portrait.pictures.length ? this.result() : [];
  }

  work() {
    const { sent } = this.portrait;
    const count = sent.num_outputs ?? 1;
    const frames = Array.from({ length: count }, () => framed(this.sizeOf(sent), { class: "frame waiting" }));
    const text = el("p", { class: "progress-text" });
    const bar = el("progress", { "aria-label": "Progress", max: 1 });
    const cancel = el(
      "button",
      { type: "button", class: "button", onclick: () => this.actions.cancel(this.portrait) },
      "Cancel",
    );
    this.running = { preview: new Preview(frames[0]), text, bar, cancel, told: null };
    // With the empty captions of the pictures, which then come into the same places.
    const figures = frames.map((frame) => el("figure", {}, frame, el("figcaption")));
    const line = el("div", { class: "progress-line" }, text, cancel);
    return [over(this.problem, line, bar), gallery(figures), under(quote(sent.prompt))];
  }

  update() {
    const { preview, text, bar, cancel } = this.running;
    const { state, step, steps, cancelled } = this.portrait;
    text.textContent = progressText(this.portrait);
    if (steps && state !== "QUEUED") bar.value = step / steps;
    else bar.removeAttribute("value");
    cancel.disabled = cancelled === true;
    preview.show(this.portrait);
    this.tellQuarters();
  }

  tellQuarters() {
    const { state, step, steps, trouble } = this.portrait;
    const now = `${trouble ?? ""} ${state} ${steps ? Math.floor((QUARTERS * step) / steps) : 0}`;
    if (now !== this.running.told) announce(progressText(this.portrait));
    this.running.told = now;
  }

  failure() {
    const { fault, code, sent } = this.portrait;
    const isCancelled = code === "cancelled";
    const buttons = [this.button("Try again", "retry"), this.button("Use these settings", "reuse")];
    if (isMendable(fault)) buttons.unshift(this.button("Show what to change", "mend"));
    return [
      el(
        "div",
        { class: `outcome ${isCancelled ? "calm" : "wrong"}` },
        el("h2", {}, isCancelled ? "Cancelled" : "No picture this time"),
        isCancelled ? null : el("p", {}, fault.message),
        el("div", { class: "buttons" }, ...buttons),
      ),
      quote(sent.prompt),
    ];
  }

  result() {
    const { pictures, sent } = this.portrait;
    const buttons = [
      this.button("Same again, another seed", "again"),
      this.button("Use these settings", "reuse"),
      this.button("Delete", "remove", "quiet"),
    ];
    return [
      over(quote(sent.prompt)),
      gallery(pictures.map((picture, i) => this.figure(picture, i))),
      under(
        explanation(this.portrait),
        el("div", { class: "buttons" }, ...buttons),
        this.problem,
        this.copyRow(),
        this.facts(),
      ),
    ];
  }

  copyRow() {
    const chips = Object.keys(SNIPPETS).map((language) => {
      const copy = () => this.actions.copy(this.portrait, language);
      return el("button", { type: "button", class: "chip", onclick: copy }, language);
    });
    this.copied = el("span", { class: "hint" }, "Copy as");
    return el(
      "div",
      { class: "buttons", role: "group", "aria-label": "Copy the request" },
      this.copied,
      ...chips,
    );
  }

  /** Beside the button that was used. */
  showError({ message }) {
    this.problem.textContent = message;
  }

  /** Say beside the copy buttons what has become of it. */
  tellCopied(text) {
    this.copied.textContent = text;
  }

  figure(picture, i) {
    const { width, height, path, seed, bytes } = picture;
    const address = new URL(path, BASE).href;
    const { prompt } = this.portrait.sent;
    const count = this.portrait.pictures.length;
    const alt = `Picture ${i + 1} of ${count}: ${prompt}`;
    const image = el("img", { alt, width, height });
    image.addEventListener("error", () => this.standIn(image, picture, i), { once: true });
    image.src = address;
    const frame = framed(
      picture,
      { class: "frame", href: address, target: "_blank", rel: "noopener" },
      image,
    );
    if (i === 0) new Preview(frame).stayUntilLoaded(this.portrait, image);
    const name = `portrait-${seed}.${path.split(".").at(-1)}`;
    const title = `${width} × ${height}, ${Math.ceil(bytes / 1000)} kB`;
    const download = (event) => {
      event.preventDefault();
      this.actions.download(picture, name);
    };
    return el(
      "figure",
      {},
      frame,
      el(
        "figcaption",
        {},
        el("span", {}, `Seed ${seed}`),
        likenessText(picture) && el("span", {}, likenessText(picture)),
        el(
          "a",
          { href: address, title, "aria-label": `Download picture ${i + 1}`, onclick: download },
          "Download",
        ),
      ),
    );
  }

  /** For a picture that did not load: the thumbnail, and why, and another try where there is hope. */
  async standIn(image, picture, i) {
    const figure = image.closest("figure");
    const { thumbnail } = this.portrait; // of the first
    image.hidden = !(thumbnail && i === 0);
    if (!image.hidden) showBlob(image, thumbnail);
    image.closest("a").removeAttribute("href");
    const { status, message } = await fetchPicture(picture.path).catch((error) => error);
    const isGone = status === 404;
    const what = isGone
      ? "The server no longer has this picture."
      : `This picture did not load. ${message ?? ""}`;
    const shown = image.hidden ? "" : " This is the small copy that this browser keeps.";
    const again = () => figure.isConnected && figure.replaceWith(this.figure(picture, i));
    const retry = el("button", { type: "button", class: "button small", onclick: again }, "Try again");
    figure.querySelector("figcaption").replaceChildren(what + shown, ...(isGone ? [] : [retry]));
    if (isGone) return;
    await pause(ANOTHER_TRY_MS);
    again();
  }

  facts() {
    const { sent, pictures, seconds, at } = this.portrait;
    const [{ width, height, seed }] = pictures;
    const rows = {
      ...whoseFaces(sent),
      ...withoutSources(sent),
      size: `${width} × ${height}`,
      seed,
      time: duration(seconds),
      made: new Date(at).toLocaleString(),
    };
    delete rows.prompt;
    const cells = Object.entries(rows).flatMap(([name, value]) => [
      el("dt", {}, titleOf(name)),
      el("dd", {}, String(value)),
    ]);
    return el("details", { class: "facts" }, el("summary", {}, "Parameters"), el("dl", {}, ...cells));
  }

  button(text, action, kind = "button") {
    return el(
      "button",
      { type: "button", class: kind, onclick: () => this.actions[action](this.portrait) },
      text,
    );
  }
}

/** "Step 3 of 20, about 12 s left". */
export function progressText({ state, position, step, steps, left, cancelled, trouble }) {
  if (trouble) return trouble;
  if (cancelled) return "Cancelling …";
  if (state === "COMPLETED") return "Finishing the picture";
  if (state === "QUEUED") {
    if (position === null || position === undefined) return "Waiting for its turn";
    return position === 0 ? "Next in line" : `Waiting, ${position} before this one`;
  }
  if (!steps || step === 0) return "Reading the face and the prompt";
  if (step === steps) return "Finishing the picture";
  return `Step ${step} of ${steps}${left === null ? "" : `, about ${duration(left)} left`}`;
}

function welcome(size) {
  const steps = [
    ["Choose a photo", "with one clear face. It stays between this browser and this server."],
    ["Say what to paint", "in a few words, or take one of the ideas."],
    ["Make the portrait", "and watch it come up here, step by step."],
  ];
  const items = steps.map(([what, how]) => el("li", {}, el("strong", {}, what), ` ${how}`));
  return el("div", { class: "welcome" }, framed(size, { class: "frame" }, el("ol", {}, ...items)));
}

const quote = (prompt) => el("p", { class: "quote" }, prompt);

const gallery = (figures) => el("div", { class: `gallery of-${figures.length}` }, ...figures);

// Above and below the pictures: as high while they are painted as when they are done.
const over = (...parts) => el("div", { class: "over" }, ...parts);
const under = (...parts) => el("div", { class: "under" }, ...parts);

/** A frame that has the picture's shape before there is a picture, so that nothing moves. */
function framed({ width, height }, attributes, ...children) {
  const frame = el(attributes.href ? "a" : "div", attributes, ...children);
  frame.style.setProperty("--width", width);
  frame.style.setProperty("--height", height);
  return frame;
}
