// Elements, and figures as text. Text is only ever text: nothing here, or anywhere on the page, reads markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes, listeners (`onclick`) and children; false and null are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A radio button inside its label, which it covers: the label is what is seen and hit. */
export function radioIn(attributes, onChoose, ...label) {
  const radio = el("input", { type: "radio", oninput: onChoose, ...attributes });
  return { radio, label: el("label", {}, radio, ...label) };
}

/** Tell people who do not see the page what has just happened. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Show the problem with one field beside it, or take it away with an empty text. */
export function showProblem(element, input, text) {
  element.textContent = text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

/** Seconds as "8 s" or "2 min 5 s". */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Show a picture that is held in memory, and let go of it once it is drawn. */
export function showBlob(image, blob) {
  const address = URL.createObjectURL(blob);
  const release = () => URL.revokeObjectURL(address);
  image.addEventListener("load", release, { once: true });
  image.addEventListener("error", release, { once: true });
  image.src = address;
}
