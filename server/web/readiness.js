// Whether the server can paint now, how far the loading of its engine is, and what it says of its pictures.

import { BASE } from "./api.js";
import { announce, byId, capitalised } from "./dom.js";

const LOOK_AGAIN_MS = 1000; // at a server that is not ready

/** Looks until the server is ready: then `onReady({profile, ...})`. Resolves after the first look. */
export async function watchReadiness(onReady) {
  const response = await fetch(new URL("ready", BASE), { cache: "no-store" });
  const answer = await response.json();
  showState(response.ok, answer);
  showLoading(response.ok ? null : answer);
  byId("notice").textContent = answer.notice ? `${capitalised(answer.notice)}.` : "";
  byId("notice").hidden = !answer.notice;
  if (response.ok) onReady(answer);
  else setTimeout(() => lookAgain(onReady), LOOK_AGAIN_MS);
}

function lookAgain(onReady) {
  watchReadiness(onReady).catch(() => setTimeout(() => lookAgain(onReady), LOOK_AGAIN_MS));
}

function showState(isReady, { profile, device }) {
  const text = isReady ? `${profile} on ${device}` : "Not ready";
  const state = byId("server-state");
  state.classList.toggle("is-ready", isReady);
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
