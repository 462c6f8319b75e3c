// What the server says is wrong, in the words of the page, and where in a request that can be mended.
//
// Knows the wire's form of errors; no element of the page.

import { inWordsOfThePage } from "./words.js";

const ABOUT_FACES = ["no_face", "several_faces", "image_rejected", "identity_rejected"]; // codes
// A text about one of several photos begins with its field: "face_images[1]: The photo is damaged."
const PLACE = /^((?:main_face_image|face_images|identity|faces)[\w[\].]*):? /;

/** Is there something in a request that can be changed, so that it does not fail this way again? */
export const isMendable = ({ fields }) => Boolean(fields?.length);

/** {message, fields: [{field, message}]} of an error on the wire; `sent`: the request, where it is known. */
export function faultOf({ error, code, fields }, sent = {}) {
  const [, place] = PLACE.exec(error) ?? [];
  const suspects = place || !ABOUT_FACES.includes(code) ? [] : suspectsOf(code, sent);
  const text = sent.faces && suspects.length ? `${suspects.join(" or ")}: ${error}` : error;
  const places = [place, ...suspects].filter(Boolean).map((field) => ({ field, message: text }));
  const named = fields?.length ? fields : places;
  const inWords = ({ field, message }) => ({ field, message: inWordsOfThePage(message) });
  return { message: inWordsOfThePage(text), fields: named.map(inWords) };
}

/** Whose face it can be about, where the server does not say so: it names a photo only beside others. */
function suspectsOf(code, { faces }) {
  if (!faces) return ["main_face_image"];
  const source = code === "identity_rejected" ? "identity" : "photo";
  return faces.flatMap((person, at) => (source in person ? [`faces[${at}].${source}`] : []));
}
