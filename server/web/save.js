// Saves bytes that the page holds as a file of the person at the browser.

import { el } from "./dom.js";

const LET_GO_MS = 60_000; // of what the browser is saving

export function save(blob, name) {
  const held = URL.createObjectURL(blob);
  el("a", { href: held, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(held), LET_GO_MS);
}
