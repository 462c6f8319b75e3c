// Several people of one picture: their list, and the plane on which their boxes are drawn.
//
// Knows no route. How one person is described, `person.js` knows.

import { announce, byId, el } from "./dom.js";
import { Person } from "./person.js";
import { columns, freePlace, Regions } from "./regions.js";

export class People {
  /** `most`: how many there may be; `rules`: the parameters of a person; `server`: as for a PhotoField. */
  constructor({ most, rules, server }, onChange) {
    this.most = most;
    this.rules = rules;
    this.server = server;
    this.onChange = onChange;
    this.all = [];
    this.startStep = null; // of the look; null: the default
    this.regions = new Regions(byId("plane"));
    this.note = el("p", { class: "hint", role: "status" });
    byId("person-add").before(this.note);
    byId("person-add").addEventListener("click", () => {
      this.add();
      this.all.at(-1).photo.focus();
    });
  }

  /** Begin with two, side by side. */
  begin() {
    while (this.all.length < 2) this.add();
  }

  add() {
    const hears = {
      onRegion: (person) => this.regions.place(person),
      onRemove: (person) => this.remove(person),
      onFocus: (person) => this.regions.raise(person),
      onChange: () => this.onChange(),
    };
    const place = freePlace(this.all.map(({ region }) => region));
    const person = new Person(place, { rules: this.rules, server: this.server, hears });
    person.set({ start_step: this.startStep });
    this.all.push(person);
    byId("people-list").append(person.element);
    this.update();
  }

  remove(person) {
    const at = this.all.indexOf(person);
    person.photo.clear();
    person.element.remove();
    this.all.splice(at, 1);
    this.update();
    announce(`${person.name} removed.`);
    this.all[Math.min(at, this.all.length - 1)].photo.focus();
  }

  update() {
    this.all.forEach((person, i) => person.renumber(i + 1));
    for (const person of this.all) person.remover.hidden = this.all.length === 1;
    byId("person-add").hidden = this.all.length >= this.most;
    this.placeInColumns();
    this.regions.show(this.all);
    this.onChange();
  }

  /** As long as nobody has placed anybody. */
  placeInColumns() {
    if (this.all.some(({ isPlaced }) => isPlaced)) return;
    const places = columns(this.all.length);
    this.all.forEach((person, i) => person.setRegion(places[i], { byHand: false }));
  }

  /** A look says when faces come in; people have steps of their own. */
  setStartStep(step) {
    this.startStep = step;
    for (const person of this.all) person.set({ start_step: step });
  }

  setShape(size) {
    this.regions.setShape(size);
  }

  /** A file that was dropped on one of them, or is the first one's who has none. */
  take(file, place) {
    const meant = this.all.find(({ element }) => element.contains(place));
    const person = meant ?? this.all.find(({ photo }) => photo.isEmpty) ?? this.all.at(-1);
    person.photo.take(file);
  }

  /** As an earlier request had them, but for the photos. */
  fill(people) {
    while (this.all.length < people.length) this.add();
    while (this.all.length > people.length) this.remove(this.all.at(-1));
    people.forEach((values, i) => this.all[i].fill(values));
  }

  /** What has to be mended first, or null. */
  check() {
    return this.all.map((person) => person.check()).find((wrong) => wrong !== null) ?? null;
  }

  showNote(text) {
    this.note.textContent = text;
  }

  showProblem(text) {
    byId("people-problem").textContent = text;
  }

  forgetProblems() {
    this.showProblem("");
    for (const person of this.all) person.forgetProblems();
  }
}
