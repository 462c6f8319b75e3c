// The dialog that asks for an API key, when the server wants one or the person opens it.

import { apiKey, setApiKey } from "./api.js";
import { byId } from "./dom.js";

let answer = null; // that is being waited for

export function offerKeyDialog() {
  const button = byId("key-open");
  button.hidden = !apiKey();
  button.addEventListener("click", () => askForKey("Give another key, or none to forget it.", apiKey()));
}

/** `hear()` whenever the dialog has been closed and there is a key. */
export function onKey(hear) {
  byId("key-dialog").addEventListener("close", () => apiKey() && hear());
}

/** The key that the person gives in place of the one that was tried, or null. Calls share one dialog. */
export function askForKey(refusal, tried) {
  if (apiKey() !== tried) return apiKey();
  const why = tried ? refusal : "This server asks for an API key. Its operator gives them out.";
  answer ??= open(why).finally(() => {
    answer = null;
  });
  return answer;
}

function open(why) {
  const dialog = byId("key-dialog");
  byId("key-why").textContent = why;
  byId("key").value = "";
  byId("key-open").hidden = false;
  dialog.showModal();
  return new Promise((resolve) => {
    const listening = new AbortController();
    const { signal } = listening;
    const end = (key) => {
      listening.abort(); // its listeners go with it
      dialog.close();
      resolve(key);
    };
    const take = (event) => {
      event.preventDefault();
      setApiKey(byId("key").value.trim());
      end(apiKey() || null);
    };
    dialog.addEventListener("cancel", () => end(null), { signal });
    byId("key-cancel").addEventListener("click", () => end(null), { signal });
    byId("key-form").addEventListener("submit", take, { signal });
  });
}
