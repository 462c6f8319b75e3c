// The form: faces, prompt and parameters in; one request out. What is wrong is said where it can be mended.
//
// Knows the fields, not what becomes of a request.

import { announce, byId, showProblem } from "./dom.js";
import { Controls } from "./controls.js";
import { Presets, Shapes } from "./presets.js";
import { Who } from "./who.js";

export class RequestForm {
  /** `onSubmit` is called for the button and for Ctrl + Enter. */
  constructor(schema, onSubmit) {
    const { parameters, listsFaces } = schema;
    this.who = new Who(schema);
    // The picker counts faces from the largest, so the order has no control of its own beside it.
    const elsewhere = listsFaces ? ["face_index", "face_order"] : [];
    this.controls = new Controls(parameters, { elsewhere, onChange: () => this.controlsChanged() });
    this.controls.show(byId("controls"), byId("outputs"));
    this.presets = new Presets(byId("presets"), this.controls, ({ start_step: step }) =>
      this.who.people.setStartStep(step ?? null),
    );
    this.shapes = new Shapes(byId("shapes"), this.controls);
    this.controlsChanged();
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
    const count = this.controls.countOfChanged;
    byId("changed").textContent = count ? `${count} changed` : "";
    this.presets?.sync();
    this.shapes?.sync();
    this.who.setShape({ width: this.controls.value("width"), height: this.controls.value("height") });
  }

  setPrompt(text) {
    byId("prompt").value = text;
    this.showPromptProblem("");
  }

  /** Take over an earlier request, but for its photos. */
  fill({ prompt, ...values }) {
    this.controls.fill(values);
    this.who.fill(values);
    this.setPrompt(prompt);
    byId("prompt").focus();
    announce("The form has these settings now.");
  }

  /** The request without its faces, or null where something has to be mended first; that is focused. */
  checked() {
    const who = this.who.check();
    const prompt = byId("prompt").value.trim();
    this.showPromptProblem(prompt ? "" : "Say what to paint.");
    const wrong = this.controls.check();
    const first = [who, !prompt && byId("prompt"), wrong].find(Boolean);
    if (!first) return { prompt, ...this.controls.changed() };
    openSettingsFor(wrong);
    first.focus();
    byId("form-problem").textContent = "Something is missing or not right; it is marked above.";
    return null;
  }

  /** Are the files here that an earlier request had? Else says which are missing, and what to do then. */
  hasFilesLike(request) {
    const missing = this.who.missingOf(request);
    missing?.focus();
    if (missing) byId("form-problem").textContent = "Choose what is marked above, then make the portrait.";
    return missing === null;
  }

  setBusy(isBusy) {
    byId("go").disabled = isBusy;
    byId("go").textContent = isBusy ? "Sending …" : "Make the portrait";
  }

  /** An error: above the button and beside each field it is about. Gives the first to be focused. */
  showError({ message, fields = [] }) {
    byId("form-problem").textContent = message;
    const shown = fields.map(({ field, message: text }) => this.showFieldProblem(field, text));
    return shown.find(Boolean) ?? null;
  }

  showFieldProblem(field, text) {
    const control = this.controls.get(field);
    if (field === "prompt") this.showPromptProblem(text);
    else control?.show(text);
    openSettingsFor(control);
    if (field === "prompt") return byId("prompt");
    return control ?? this.who.showProblem(field, text);
  }

  showPromptProblem(text) {
    showProblem(byId("prompt-problem"), byId("prompt"), text);
  }

  forgetProblems() {
    byId("form-problem").textContent = "";
    this.who.forgetProblems();
    this.showPromptProblem("");
    for (const control of this.controls.all.values()) control.show("");
  }
}

function openSettingsFor(control) {
  control?.element.closest("details")?.setAttribute("open", "");
}
