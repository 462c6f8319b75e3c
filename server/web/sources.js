// Where a request has photos and identity files: their fields, and the request without what is in them.
//
// In lists, in the history and in copied code the name of a file stands in the place of its text.
// Knows the wire's names of these fields; no element of the page.

import { titleOf } from "./words.js";

/** The fields that say whose faces a picture shows, and what belongs to them. */
const ABOUT_FACES = ["main_face_image", "face_images", "face_fusion", "identity", "faces", "face_index"];

/** What is left of a request: everything that is not about whose faces are meant. */
export function withoutSources(request) {
  return Object.fromEntries(Object.entries(request).filter(([name]) => !ABOUT_FACES.includes(name)));
}

/** The request with `change(text, file name)` in the place of each photo and identity file. */
export function mapFiles(request, change) {
  const { main_face_image: main, face_images: more, identity, faces, ...rest } = request;
  const first = main === undefined ? 1 : 2;
  return {
    ...(main !== undefined && { main_face_image: change(main, "photo.jpg") }),
    ...(more && { face_images: more.map((text, i) => change(text, `photo-${i + first}.jpg`)) }),
    ...(identity !== undefined && { identity: change(identity, "identity.safetensors") }),
    ...(faces && { faces: faces.map((person, i) => personWith(person, i + 1, change)) }),
    ...rest,
  };
}

function personWith({ photo, identity, ...rest }, number, change) {
  return {
    ...(photo !== undefined && { photo: change(photo, `person-${number}.jpg`) }),
    ...(identity !== undefined && { identity: change(identity, `person-${number}.safetensors`) }),
    ...rest,
  };
}

/** The request with names in the place of files, to be kept and shown. */
export const withNames = (request) => mapFiles(request, (_, name) => name);

/** The names of its files, in order. */
export function filesOf(request) {
  const names = [];
  mapFiles(request, (_, name) => names.push(name));
  return names;
}

/** What a kept request tells of its faces, by name of a row. */
export function whoseFaces(request) {
  const { face_images: more, main_face_image: main, face_fusion, identity, faces, face_index } = request;
  if (faces) return Object.fromEntries(faces.map((person, i) => [`person ${i + 1}`, inShort(person)]));
  if (identity !== undefined) return { face: "from an identity file" };
  return {
    ...(more && { photos: more.length + (main === undefined ? 0 : 1) }),
    ...(face_fusion && { face_fusion }),
    ...(face_index && { face_index }),
  };
}

function inShort({ identity, box, ...values }) {
  const [left, top, right, bottom] = (box ?? [0, 0, 1, 1]).map((fraction) => Math.round(100 * fraction));
  const place = `${left} to ${right} % across, ${top} to ${bottom} % down`;
  const named = ["weight", "start_step", "end_step"].filter((name) => name in values);
  const strengths = named.map((name) => `${titleOf(name).toLowerCase()} ${values[name]}`);
  return [place, ...strengths, ...(identity === undefined ? [] : ["from an identity file"])].join(", ");
}
