// Wires the page: what the server offers, the form, the portraits and the views of them.

import { apiKey, callJson, whenKeyIsNeeded } from "./api.js";
import { announce, byId } from "./dom.js";
import { RequestForm } from "./form.js";
import { History } from "./history.js";
import { askForKey, offerKeyDialog } from "./key_dialog.js";
import { fetchPicture, Portraits } from "./portraits.js";
import { watchReadiness } from "./readiness.js";
import { save } from "./save.js";
import { readSchema } from "./schema.js";
import { Shelf } from "./shelf.js";
import { SNIPPETS } from "./snippets.js";
import { filesOf } from "./sources.js";
import { Stage } from "./stage.js";

const DRAWN = "tiny"; // the profile whose faces are drawn, and like nobody to a recogniser

async function start() {
  whenKeyIsNeeded(askForKey);
  offerKeyDialog();
  let known; // resolves once the server is ready, which may be long after the page is shown
  const ready = new Promise((resolve) => (known = resolve));
  let page = null;
  const watching = watchReadiness({ onReady: known, isBusy: () => page?.portraits.isBusy });
  const [openapi, history] = await Promise.all([callJson("openapi.json"), History.open(), watching]);
  page = new Page(readSchema(openapi), history);
  ready.then(({ profile }) => page.form.controls.begin("identity_similarity", profile !== DRAWN));
  byId("app").hidden = false;
  await page.recall();
}

class Page {
  constructor(schema, history) {
    this.schema = schema;
    this.requests = new Map(); // id of a portrait -> its request with all files, while the page is open
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
      cancel: (portrait) => this.attempt(() => this.portraits.cancel(portrait), this.stage),
      remove: (portrait) => this.attempt(() => this.portraits.remove(portrait), this.stage),
      download: ({ path }, name) =>
        this.attempt(async () => save(await fetchPicture(path), name), this.stage),
      retry: () => this.submit(),
      mend: ({ fault }) => this.form.showError(fault)?.focus(),
      again: (portrait) => this.again(portrait),
      reuse: (portrait) => this.form.fill(portrait.sent),
      copy: (portrait, language) => this.copy(portrait, language),
    };
  }

  /** What goes wrong is told by whatever the person has used, the form or the stage. */
  async attempt(action, teller = this.form) {
    try {
      await action();
    } catch (error) {
      teller.showError(error)?.focus();
    }
  }

  async submit() {
    const parameters = this.form.checked();
    if (parameters) await this.send(async () => ({ ...(await this.form.who.fields()), ...parameters }));
  }

  /** `request()`: with all files; reading them may take a moment. */
  async send(request) {
    this.form.forgetProblems();
    this.form.setBusy(true);
    await this.attempt(async () => {
      const whole = await request();
      const portrait = await this.portraits.submit(whole);
      this.requests.set(portrait.id, whole);
      this.shelf.show(portrait);
      this.look(portrait);
    });
    this.form.setBusy(false);
  }

  /** The same request with a seed that the server draws. Photos are not remembered beyond the page. */
  again(portrait) {
    const { seed: _, ...request } = this.requests.get(portrait.id) ?? portrait.sent;
    if (this.requests.has(portrait.id)) {
      this.send(async () => request);
      return;
    }
    this.form.forgetProblems();
    this.form.fill(request); // then only photos are missing, or those in the form are meant
    if (this.form.hasFilesLike(request)) this.submit();
  }

  async copy(portrait, language) {
    const [{ seed }] = portrait.pictures;
    const request = { ...portrait.sent, seed: Number.isSafeInteger(Number(seed)) ? Number(seed) : seed };
    const format = request.output_format ?? this.schema.parameters.get("output_format").initial;
    const text = SNIPPETS[language](request, { needsKey: apiKey() !== "", format });
    try {
      await navigator.clipboard.writeText(text);
      announce(`Copied as ${language}.`);
      this.stage.tellCopied(`Copied; it reads ${listed(filesOf(request))}`);
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
    const isMine = !portrait.cancelled && this.requests.has(portrait.id);
    const field = isMine ? this.form.showError(portrait.fault) : null;
    if (!isMine) announce(portrait.fault.message);
    else if (field && !isBusyElsewhere()) field.focus();
  }

  gone(portrait) {
    this.requests.delete(portrait.id);
    this.shelf.remove(portrait);
    if (this.stage.portrait === portrait) this.look(this.newest(), { quietly: true });
  }

  /** The pixels a request will give, as far as the page can know. */
  sizeOf(sent) {
    const side = (name) => sent[name] ?? this.schema.parameters.get(name).initial;
    return { width: side("width"), height: side("height") };
  }
}

/** Is the person about to fill in something? Then the focus is not taken away. */
function isBusyElsewhere() {
  const { activeElement: focused } = document;
  return ["INPUT", "TEXTAREA", "SELECT"].includes(focused.tagName) || focused.closest("dialog") !== null;
}

const listed = (names) => (names.length > 2 ? `${names.length} files` : names.join(" and "));

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
