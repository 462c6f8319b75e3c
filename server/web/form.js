// The form: photo, prompt and parameters in; one request out. What is wrong is said where it can be mended.
//
// Knows the fields, not what becomes of a request.

import { announce, byId, showProblem } from "./dom.js";
import { Controls } from "./controls.js";
import { PhotoField } from "./photo.js";
import { Presets, Shapes } from "./presets.js";

export class RequestForm {
  /** `onSubmit` is called for the button and for Ctrl + Enter. */
  constructor({ parameters, listsFaces }, onSubmit) {
    this.parameters = parameters;
    this.photo = new PhotoField({ limit: Number(document.body.dataset.maxBodyBytes), listsFaces });
    // The picker counts faces from the largest, so the order has no control of its own beside it.
    const elsewhere = listsFaces ? ["face_index", "face_order"] : [];
    this.controls = new Controls(parameters, { elsewhere, onChange: () => this.controlsChanged() });
    this.controls.show(byId("controls"), byId("outputs"));
    this.presets = new Presets(byId("presets"), this.controls);
    this.shapes = new Shapes(byId("shapes"), this.controls);
    this.controls.set({ identity_similarity: true }); // costs little, and the gallery shows it
    byId("prompt-hint").textContent = parameters.get("prompt").meaning;
    byId("prompt").placeholder = parameters.get("prompt").example;
    this.listen(onSubmit);
  }

  listen(onSubmit) {
    const form = byId("request");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      onSubmit();
    });
    form.addEventListener("keydown", (event) => {
      const isShortcut = event.key === "Enter" && (event.ctrlKey || event.metaKey);
      if (isShortcut && !byId("go").disabled) form.requestSubmit();
    });
    byId("prompt").addEventListener("input", () => this.showPromptProblem(""));
    byId("ideas").addEventListener("click", ({ target }) => {
      if (target.value) this.setPrompt(target.value);
    });
    byId("reset").addEventListener("click", () => this.controls.reset());
  }

  controlsChanged() {
    const count = Object.keys(this.controls.changed()).length;
    byId("changed").textContent = count ? `${count} changed` : "";
    this.presets?.sync();
    this.shapes?.sync();
  }

  setPrompt(text) {
    byId("prompt").value = text;
    this.showPromptProblem("");
  }

  /** Take over the parameters of an earlier request. */
  fill({ prompt, ...values }) {
    this.controls.reset();
    this.controls.set(values);
    this.setPrompt(prompt);
    byId("prompt").focus();
    announce("The form has these settings now.");
  }

  /** The parameters without the photo, or null where something has to be mended first; that is focused. */
  checked() {
    const hasPhoto = this.photo.check();
    const prompt = byId("prompt").value.trim();
    this.showPromptProblem(prompt ? "" : "Say what to paint.");
    const wrong = this.controls.check();
    const first = [!hasPhoto && this.photo, !prompt && byId("prompt"), wrong].find(Boolean);
    if (!first) return { prompt, ...this.controls.changed(), ...this.photo.choice() };
    openSettingsFor(wrong);
    first.focus();
    byId("form-problem").textContent = "Something is missing or not right; it is marked above.";
    return null;
  }

  setBusy(isBusy) {
    byId("go").disabled = isBusy;
    byId("go").textContent = isBusy ? "Sending …" : "Make the portrait";
  }

  /** An error in words: above the button, and beside each field that it names. */
  showError(message, fields = []) {
    byId("form-problem").textContent = message;
    const named = fields.length ? fields : this.fieldsNamedIn(message);
    for (const { field, message: text } of named) this.showFieldProblem(field, text);
  }

  /** A job that failed tells all in one text; a sentence about a parameter begins with its name. */
  fieldsNamedIn(message) {
    const named = message
      .split(/(?<=\.)\s+/)
      .map((sentence) => ({ field: sentence.split(" ", 1)[0], message: sentence }))
      .filter(({ field }) => this.parameters.has(field));
    const isAboutThePhoto = /\b(photo|face)\b/i.test(message);
    return named.length || !isAboutThePhoto ? named : [{ field: "main_face_image", message }];
  }

  showFieldProblem(field, text) {
    if (field === "main_face_image") this.photo.showProblem(text);
    else if (field === "prompt") this.showPromptProblem(text);
    else this.controls.get(field)?.show(text);
    openSettingsFor(this.controls.get(field));
  }

  showPromptProblem(text) {
    showProblem(byId("prompt-problem"), byId("prompt"), text);
  }

  forgetProblems() {
    byId("form-problem").textContent = "";
    this.photo.showProblem("");
    this.showPromptProblem("");
    for (const control of this.controls.all.values()) control.show("");
  }
}

function openSettingsFor(control) {
  control?.element.closest("details")?.setAttribute("open", "");
}
