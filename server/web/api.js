// The server's routes, over fetch: the API key, errors as sentences, server-sent events, when to try again.
//
// Knows no parameter and no element of the page. Addresses are relative to the page's own, so that it
// works behind a proxy that adds a path.

import { faultOf } from "./faults.js";

const KEY = "flux-pulid-api-key"; // in sessionStorage: gone with the tab
const SILENCE_MS = 40_000; // of a stream whose connection is dead: the server sends something every 15 s

export const BASE = new URL(".", location.href);

export class ApiError extends Error {
  constructor(message, { status = 0, fields = [] } = {}) {
    super(message);
    this.status = status; // 0: there was no answer
    this.fields = fields; // [{field, message}], in the words of the page like the message
  }
}

let askForKey = async () => null; // resolves to a key, or to null where the person gives none

export function whenKeyIsNeeded(ask) {
  askForKey = ask;
}

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  tryNow();
}

const pauses = new Set(); // what ends each

/** Wait before another try. Resolves to true where `tryNow` ended it. */
export function pause(ms) {
  return new Promise((resolve) => {
    const end = (isEarly) => {
      clearTimeout(timer);
      pauses.delete(end);
      resolve(isEarly);
    };
    const timer = setTimeout(end, ms, false);
    pauses.add(end);
  });
}

/** Whatever waits for its next try has it now: there is reason to hope. */
export function tryNow() {
  for (const end of [...pauses]) end(true);
}

addEventListener("online", tryNow);
document.addEventListener("visibilitychange", () => document.hidden || tryNow());

/** The response of a call that succeeded. Asks for a key where the server wants one and the call may. Throws ApiError. */
export async function call(
  path,
  { method = "GET", json, signal, cache = "no-store", mayAskForKey = true } = {},
) {
  for (;;) {
    const key = apiKey();
    const headers = {
      ...(key && { "x-api-key": key }),
      ...(json !== undefined && { "content-type": "application/json" }),
    };
    const body = json === undefined ? undefined : JSON.stringify(json);
    const response = await reach(path, { method, headers, body, signal, cache });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !mayAskForKey || (await askForKey(error.message, key)) === null) throw error;
  }
}

export async function callJson(path, options) {
  return parseJson(await (await call(path, options)).text());
}

async function reach(path, options) {
  try {
    return await fetch(new URL(path, BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Check that it runs, then try again.");
  }
}

async function errorOf(response) {
  const text = await response.text();
  try {
    const { message, fields } = faultOf(JSON.parse(text));
    return new ApiError(message, { status: response.status, fields });
  } catch {
    // Not from this server: a proxy before it.
    return new ApiError(`The server answered with status ${response.status}.`, { status: response.status });
  }
}

/** JSON whose integers beyond 2^53 stay what they are, as text: seeds have 63 bits. */
export function parseJson(text) {
  return JSON.parse(text, (_, value, context) => {
    const isRounded = Number.isInteger(value) && !Number.isSafeInteger(value);
    return isRounded && context?.source ? context.source : value;
  });
}

/** The events of a job, until the stream ends. Throws where it breaks or falls silent. */
export async function* eventsOf(path) {
  const silence = new AbortController();
  const response = await call(path, { signal: silence.signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let timer;
  try {
    for (;;) {
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const { value, done } = await reader.read();
      clearTimeout(timer);
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      yield* events.map(dataOf).filter(Boolean).map(parseJson);
    }
  } finally {
    clearTimeout(timer);
    await reader.cancel().catch(() => {}); // it has ended, or the connection has
  }
}

function dataOf(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
