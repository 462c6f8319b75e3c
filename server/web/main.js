// Wires the page: what the server offers, the form, the portraits and the views of them.

import { BASE, apiKey, callJson, whenKeyIsNeeded } from "./api.js";
import { announce, byId, capitalised, el } from "./dom.js";
import { RequestForm } from "./form.js";
import { History } from "./history.js";
import { askForKey, offerKeyDialog } from "./key_dialog.js";
import { Portraits } from "./portraits.js";
import { readSchema } from "./schema.js";
import { Shelf } from "./shelf.js";
import { SNIPPETS } from "./snippets.js";
import { Stage } from "./stage.js";

const LOOK_AGAIN_MS = 2000; // at a server that is not ready
const LET_GO_MS = 60_000; // of a picture that the browser is saving

async function start() {
  whenKeyIsNeeded(askForKey);
  offerKeyDialog();
  const [openapi, history] = await Promise.all([callJson("openapi.json"), History.open(), showReadiness()]);
  const page = new Page(readSchema(openapi), history);
  byId("app").hidden = false;
  await page.recall();
}

class Page {
  constructor(schema, history) {
    this.schema = schema;
    this.photos = new Map(); // id of a portrait -> its photo, while the page is open
    this.form = new RequestForm(schema, () => this.submit());
    this.portraits = new Portraits(history, {
      previews: schema.sendsPreviews,
      onChange: (portrait) => this.changed(portrait),
      onGone: (portrait) => this.gone(portrait),
    });
    this.shelf = new Shelf((portrait) => this.look(portrait));
    this.stage = new Stage(byId("stage"), { actions: this.actions(), sizeOf: (sent) => this.sizeOf(sent) });
    this.listen();
  }

  listen() {
    byId("history-clear").addEventListener("click", () => byId("clear-dialog").showModal());
    byId("clear-cancel").addEventListener("click", () => byId("clear-dialog").close());
    byId("clear-confirm").addEventListener("click", () => this.clear());
    byId("code-close").addEventListener("click", () => byId("code-dialog").close());
  }

  /** What the buttons of a portrait do. */
  actions() {
    return {
      cancel: (portrait) => this.attempt(() => this.portraits.cancel(portrait)),
      remove: (portrait) => this.attempt(() => this.portraits.remove(portrait)),
      download: (address, name) => this.attempt(() => download(address, name)),
      retry: () => this.submit(),
      again: (portrait) => this.again(portrait),
      reuse: (portrait) => this.form.fill(portrait.sent),
      copy: (portrait, language) => this.copy(portrait, language),
    };
  }

  async attempt(action) {
    try {
      await action();
    } catch (error) {
      this.form.showError(error.message, error.fields);
    }
  }

  async submit(parameters = this.form.checked(), photo = this.form.photo.photo) {
    if (parameters === null) return;
    this.form.forgetProblems();
    this.form.setBusy(true);
    await this.attempt(async () => {
      const portrait = await this.portraits.submit(parameters, photo);
      this.photos.set(portrait.id, photo);
      this.shelf.show(portrait);
      this.look(portrait);
    });
    this.form.setBusy(false);
  }

  /** The same request with a seed that the server draws. Photos are not remembered beyond the page. */
  again(portrait) {
    const { photo: field } = this.form;
    const { seed: _, ...parameters } = portrait.sent;
    const own = this.photos.get(portrait.id);
    if (own) {
      this.submit(parameters, own);
    } else if (field.photo) {
      const { face_index: __, ...others } = parameters;
      this.submit({ ...others, ...field.choice() }, field.photo);
    } else {
      field.showProblem("Choose the photo again: this browser does not keep photos.");
      field.focus();
    }
  }

  async copy(portrait, language) {
    const { prompt, ...rest } = portrait.sent;
    const [{ seed }] = portrait.pictures;
    const parameters = { prompt, ...rest, seed: Number.isSafeInteger(Number(seed)) ? Number(seed) : seed };
    const format = parameters.output_format ?? this.schema.parameters.get("output_format").initial;
    const text = SNIPPETS[language](parameters, { needsKey: apiKey() !== "", format });
    try {
      await navigator.clipboard.writeText(text);
      announce(`Copied as ${language}.`);
      this.stage.tellCopied("Copied; it reads photo.jpg");
    } catch {
      // No clipboard outside https and this machine's own addresses.
      byId("code-text").value = text;
      byId("code-dialog").showModal();
      byId("code-text").select();
    }
  }

  async clear() {
    byId("clear-dialog").close();
    await this.portraits.clear();
    announce("The list is empty.");
  }

  /** Show what this browser remembers. */
  async recall() {
    await this.portraits.recall();
    for (const portrait of this.portraits.all.values()) this.shelf.show(portrait);
    const newest = this.newest();
    if (newest) this.look(newest, { quietly: true });
  }

  newest() {
    return [...this.portraits.all.values()].at(-1) ?? null;
  }

  /** Put a portrait, or none, into the large view. */
  look(portrait, { quietly = false } = {}) {
    this.stage.show(portrait);
    this.shelf.mark(portrait);
    if (!quietly) bringIntoView(byId("stage"));
  }

  changed(portrait) {
    this.shelf.show(portrait);
    if (this.stage.portrait === portrait) this.look(portrait, { quietly: true });
    if (portrait.thumbnail !== undefined) announce("The portrait is done.");
    if (portrait.state === "FAILED") this.failed(portrait);
  }

  /** Beside the fields only what this page has sent; what an earlier visit sent is told in its place. */
  failed(portrait) {
    if (!portrait.cancelled && this.photos.has(portrait.id)) this.form.showError(portrait.error);
    else announce(portrait.error);
  }

  gone(portrait) {
    this.photos.delete(portrait.id);
    this.shelf.remove(portrait);
    if (this.stage.portrait === portrait) this.look(this.newest(), { quietly: true });
  }

  /** The pixels a request will give, as far as the page can know. */
  sizeOf(sent) {
    const side = (name) => sent[name] ?? this.schema.parameters.get(name).initial;
    return { width: side("width"), height: side("height") };
  }
}

/** Save a picture under a name that tells it from others; the server's own are numbers within a job. */
async function download(address, name) {
  const response = await fetch(address);
  if (!response.ok) throw new Error("The server no longer has this picture.");
  const held = URL.createObjectURL(await response.blob());
  el("a", { href: held, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(held), LET_GO_MS);
}

/** Say whether the server is ready, and what it has to say about its pictures. Looks again until it is. */
async function showReadiness() {
  const response = await fetch(new URL("ready", BASE), { cache: "no-store" });
  const { profile, device, notice, error } = await response.json();
  const state = byId("server-state");
  state.classList.toggle("is-ready", response.ok);
  state.textContent = response.ok ? `${profile} on ${device}` : error;
  byId("notice").textContent = notice ? `${capitalised(notice)}.` : "";
  byId("notice").hidden = !notice;
  if (!response.ok) setTimeout(lookAgain, LOOK_AGAIN_MS);
}

function lookAgain() {
  showReadiness().catch(() => setTimeout(lookAgain, LOOK_AGAIN_MS));
}

function bringIntoView(element) {
  const { top } = element.getBoundingClientRect();
  if (top >= 0 && top < innerHeight / 3) return;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: isCalm ? "auto" : "smooth", block: "start" });
}

start().catch((error) => {
  byId("trouble").textContent =
    "The server does not answer as this page expects. Reload the page when it runs.";
  byId("trouble").hidden = false;
  throw error; // for the console
});
