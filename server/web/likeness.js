// How alike the faces of photo and picture are, in words. Numbers are the server's; null: no face was seen.

import { el } from "./dom.js";

const EXPLAINED = "Likeness compares the faces: about 0 for strangers, 1 for the same photo.";

// An identity file may come without what is compared; then nobody is counted.
const isMeasured = ({ similarity }) => Array.isArray(similarity) && similarity.length > 0;
const inDigits = (number) => (number === null ? "none" : number.toFixed(2));

/** "Likeness 0.71", for several people "Likeness 1: 0.71, 2: none"; empty where nobody asked. */
export function likenessText(picture) {
  if (!isMeasured(picture)) return "";
  const { similarity } = picture;
  if (similarity.every((one) => one === null)) return "Likeness: no face seen";
  if (similarity.length === 1) return `Likeness ${inDigits(similarity[0])}`;
  return `Likeness ${similarity.map((one, i) => `${i + 1}: ${inDigits(one)}`).join(", ")}`;
}

/** For a thumbnail: the lowest number of its people; empty where there is none. */
export function shortLikeness({ pictures }) {
  const [first] = pictures;
  const numbers = first && isMeasured(first) ? first.similarity.filter((one) => one !== null) : [];
  return numbers.length ? Math.min(...numbers).toFixed(2) : "";
}

/** One line on what the numbers mean; null where there are none. */
export function explanation({ pictures }) {
  if (!pictures.some(isMeasured)) return null;
  return el("p", { class: "hint centred" }, EXPLAINED);
}
