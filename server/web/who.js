// Whose faces the picture is to show: one person by photos or an identity file, or several people.
//
// Gives the wire's fields for them and says what is wrong with each. The simple case, one photo, is
// all there is to see until more is asked for.

import { byId, announce, megabytes } from "./dom.js";
import { offerToSave } from "./identity.js";
import { onKey } from "./key_dialog.js";
import { MorePhotos } from "./more_photos.js";
import { People } from "./people.js";
import { PhotoField } from "./photo.js";
import { fitTogether, textsWithin } from "./pictures.js";

// Of the largest request, for everything but the photos.
const ROOM_FOR_THE_REST = 0.03;

const byIds = (ids) => Object.fromEntries(Object.entries(ids).map(([name, id]) => [name, byId(id)]));

export class Who {
  constructor(schema) {
    const limit = Number(document.body.dataset.maxBodyBytes);
    this.room = limit * (1 - ROOM_FOR_THE_REST);
    const takesIdentities = schema.parameters.has("identity");
    const server = { room: this.room, listsFaces: schema.listsFaces, takesIdentities };
    const { mostPhotos, mostPeople, person: rules } = schema;
    const changed = () => this.update();
    this.people = new People({ most: mostPeople, rules, server }, changed);
    this.photo = new PhotoField(partsOfTheOne(), server, changed);
    const fusion = schema.parameters.get("face_fusion");
    this.more = new MorePhotos({ most: mostPhotos, fusion, room: this.room }, changed);
    byId("identity-save").hidden = !schema.makesIdentities;
    byId("several-toggle").hidden = mostPeople < 2;
    byId("more-photos").hidden = mostPhotos < 2;
    this.isSeveral = false;
    this.listen();
    this.update();
  }

  listen() {
    byId("photo-camera").addEventListener("change", () => this.photo.takeFrom(byId("photo-camera")));
    byId("identity-file").addEventListener("change", () => this.photo.takeFrom(byId("identity-file")));
    byId("photo-remove").addEventListener("click", () => {
      this.photo.clear();
      byId("photo-file").focus();
    });
    byId("several-toggle").addEventListener("click", () => this.toggleSeveral());
    onKey(() => this.allPhotos().forEach((photo) => photo.lookAgain()));
    document.addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (file) this.take(file);
    });
    listenForDrops(byId("who"), (file, place) => this.take(file, place));
    const problem = (error) => this.photo.showProblem(error.message);
    offerToSave({ fields: () => this.fieldsOfTheOne(), onError: problem });
  }

  /** `place`: the element on which it was dropped, if it was. */
  take(file, place = null) {
    if (this.isSeveral) this.people.take(file, place);
    else this.photo.take(file);
  }

  allPhotos() {
    return [this.photo, ...this.people.all.map(({ photo }) => photo)];
  }

  /** A photo that has been chosen already is the first person's. */
  toggleSeveral() {
    this.setSeveral(!this.isSeveral);
    const [first] = this.people.all;
    if (this.isSeveral && first.photo.isEmpty && !this.photo.isEmpty) first.photo.adopt(this.photo);
  }

  setSeveral(isSeveral) {
    if (isSeveral === this.isSeveral) return;
    this.isSeveral = isSeveral;
    if (isSeveral) this.people.begin();
    byId("one-person").hidden = isSeveral;
    byId("several-people").hidden = !isSeveral;
    byId("who-legend").textContent = isSeveral ? "People" : "Photo";
    byId("several-toggle").textContent = isSeveral ? "Back to one person" : "Several people in one picture";
    announce(isSeveral ? "Several people: each has a photo and a place." : "One person.");
  }

  update() {
    if (this.more === undefined) return; // its parts are still being made
    const { photo, more, people } = this;
    people.showNote(this.copiesRemark(people.all.map((person) => person.photo.photo).filter(Boolean)));
    byId("identity-save").disabled = photo.photo === null;
    byId("photo-hint").hidden = photo.identity !== null;
    byId("more-photos").classList.toggle("unused", photo.identity !== null);
    byId("more-note").textContent = this.note();
    const count = photo.identity === null ? more.photos.length : 0;
    byId("more-count").textContent = count ? `${count + 1} photos` : "";
  }

  /** What is good to know about the photos together. */
  note() {
    const { photo, more } = this;
    if (more.photos.length === 0) return "";
    if (photo.identity !== null) return "Not sent: the identity file takes the place of all photos.";
    const isPart = photo.picker.index > 0;
    const part = isPart ? "Of the first photo, only the part around the chosen face is sent." : "";
    const given = [photo.photo, ...more.photos].filter(Boolean);
    return `${part} ${this.copiesRemark(given)}`.trim();
  }

  /** Several photos share the room of a request. */
  copiesRemark(photos) {
    if (photos.length < 2 || fitTogether(photos, this.room)) return "";
    const most = megabytes(Number(document.body.dataset.maxBodyBytes));
    const why = `Together these photos are above the ${most} this server takes in one request`;
    return `${why}: smaller copies are sent.`;
  }

  setShape(size) {
    this.people.setShape(size);
  }

  /** What has to be mended first, or null. */
  check() {
    if (this.isSeveral) return this.people.check();
    return this.photo.check() ? null : this.photo;
  }

  /** What the wire takes, once `check` has found nothing. */
  fields() {
    return this.isSeveral ? this.fieldsOfSeveral() : this.fieldsOfTheOne();
  }

  async fieldsOfTheOne() {
    const { photo, more } = this;
    if (photo.identity !== null) return { identity: photo.identity };
    const isAlone = more.photos.length === 0;
    const first = isAlone ? photo.photo : await photo.photoOfTheFace(); // a number would count in each photo
    const [main, ...others] = await textsWithin([first, ...more.photos], this.room);
    return {
      main_face_image: main,
      ...(others.length && { face_images: others }),
      ...more.fusion(),
      ...(isAlone && photo.choice()),
    };
  }

  async fieldsOfSeveral() {
    const withPhotos = this.people.all.filter(({ photo }) => photo.photo !== null);
    const texts = await textsWithin(
      withPhotos.map(({ photo }) => photo.photo),
      this.room,
    );
    const faces = this.people.all.map((person) => {
      const at = withPhotos.indexOf(person);
      const source = at < 0 ? { identity: person.photo.identity } : { photo: texts[at] };
      return { ...source, ...person.fields() };
    });
    return { faces };
  }

  /** As an earlier request had them, but for photos and files. */
  fill({ faces, face_fusion: fusion }) {
    this.setSeveral(faces !== undefined);
    if (faces) this.people.fill(faces);
    this.more.setFusion(fusion ?? this.more.initial);
  }

  /** Says which files of an earlier request are to be chosen again; gives what to do first, or null. */
  missingOf(request) {
    if (this.isSeveral) {
      const person = this.people.all.filter(({ photo }, i) => !photo.isLike(request.faces[i]))[0];
      return person?.photo ?? null;
    }
    const isThere = this.photo.isLike(request);
    const areThere = request.identity !== undefined || this.more.areLike(request);
    if (!areThere) byId("more").open = true;
    return isThere ? (areThere ? null : byId("more-files")) : this.photo;
  }

  /** Say what is wrong with a field; what can be focused to mend it, or null for a field that is not here. */
  showProblem(field, text) {
    const [, at, name] = /^faces\[(\d+)\]\.?(.*)/.exec(field) ?? [];
    if (at !== undefined && this.people.all[at]) return this.people.all[at].showProblem(name, text);
    if (field === "faces") return this.showProblemOfPeople(text);
    if (field.startsWith("face_images")) return this.showProblemOfMore(field, text);
    if (!["main_face_image", "identity", "face_index"].includes(field)) return null;
    this.photo.showProblem(text);
    return this.photo;
  }

  showProblemOfPeople(text) {
    this.people.showProblem(text);
    return this.people.all[0].photo;
  }

  showProblemOfMore(field, text) {
    byId("more").open = true;
    const [, at] = /\[(\d+)\]/.exec(field) ?? [];
    return this.more.showProblem(text, at === undefined ? null : Number(at));
  }

  forgetProblems() {
    this.photo.showProblem("");
    this.more.showProblem("");
    this.people.forgetProblems();
  }
}

const partsOfTheOne = () =>
  byIds({
    frame: "photo-frame",
    image: "photo-image",
    name: "photo-name",
    status: "photo-faces",
    problem: "photo-problem",
    empty: "photo-empty",
    chosen: "photo-chosen",
    zone: "drop",
    input: "photo-file",
    change: "photo-change",
  });

function listenForDrops(zone, take) {
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault(); // else the browser would leave the page for the picture
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0], event.target);
  });
}
