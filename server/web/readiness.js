// Whether the server can be reached and can paint now, how far the loading of its engine is, and what it
// says of its pictures.

import { BASE, pause, tryNow } from "./api.js";
import { announce, byId } from "./dom.js";
import { capitalised } from "./words.js";

const SOON_MS = 2000; // while a portrait is in the making, or the server is not ready or out of reach
const LATER_MS = 30_000;
const PATIENCE_MS = 10_000; // with one look

/**
 * Looks as long as the page is open. Whenever the server is ready: `onReady({profile, ...})`.
 * `isBusy()`: is a portrait in the making? Resolves after the first look; throws where that had no answer.
 */
export async function watchReadiness({ onReady, isBusy }) {
  goOn(await look(onReady), { onReady, isBusy });
}

async function goOn(isReady, { onReady, isBusy }) {
  for (let isWell = isReady, isAway = false; ; ) {
    await untilNextLook(() => isWell && !isBusy());
    try {
      isWell = await look(onReady);
      if (isAway) tryNow();
      isAway = false;
    } catch {
      isWell = false;
      isAway = true;
      showState("is-away", "No connection to the server");
      byId("loading").hidden = true; // nobody knows how far it is
    }
  }
}

/** Soon, or later while `isCalm()`. */
async function untilNextLook(isCalm) {
  const last = performance.now();
  let isEarly = false;
  do isEarly = await pause(SOON_MS);
  while (!isEarly && isCalm() && performance.now() - last < LATER_MS);
}

/** Is the server ready? Throws where it does not say so itself. */
async function look(onReady) {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  const response = await fetch(new URL("ready", BASE), { cache: "no-store", signal });
  const answer = await response.json();
  showLoading(response.ok ? null : answer);
  if (!response.ok) {
    showState("is-waiting", `Not ready${answer.reason ? `: ${whatOf(answer.reason)}` : ""}`);
    return false;
  }
  showState("is-ready", `${answer.profile} on ${answer.device}`);
  byId("notice").textContent = answer.notice ? `${capitalised(answer.notice)}.` : "";
  byId("notice").hidden = !answer.notice;
  onReady(answer);
  return true;
}

/** "the engine is still loading: FLUX transformer, 43 percent" without the part that changes all the time. */
const whatOf = (reason) => reason.split(":")[0];

function showState(kind, text) {
  const state = byId("server-state");
  state.className = `state ${kind}`;
  if (state.textContent !== text) state.textContent = text; // it is read aloud each time it is set
}

function showLoading(answer) {
  const banner = byId("loading");
  if (answer === null) {
    if (!banner.hidden) announce("The server is ready.");
    banner.hidden = true;
    return;
  }
  const percent = percentIn(answer.reason ?? "");
  byId("loading-text").textContent = sentence(answer);
  byId("loading-bar").hidden = percent === null;
  if (percent !== null) byId("loading-bar").value = percent;
  banner.hidden = false;
}

/** "the engine is still loading: FLUX transformer, 43 percent" has a number; other reasons have none. */
function percentIn(reason) {
  const found = /(\d+) percent$/.exec(reason);
  return found ? Number(found[1]) : null;
}

const sentence = ({ reason, error }) =>
  reason ? `${capitalised(reason)}. The form can be filled in meanwhile.` : error;
