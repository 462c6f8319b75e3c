// Identity files: the face of a person saved as a file, by the server that reads it.

import { call } from "./api.js";
import { byId } from "./dom.js";
import { save } from "./save.js";

const FILE_NAME = "identity.safetensors";

/** Lets the person save whom `fields()` (as the wire takes them) describes; `onError(error)`. */
export function offerToSave({ fields, onError }) {
  const button = byId("identity-save");
  button.addEventListener("click", async () => {
    button.disabled = true;
    byId("identity-status").textContent = "Reading the face …";
    try {
      const response = await call("v1/identities", { method: "POST", json: await fields() });
      save(await response.blob(), FILE_NAME);
      byId("identity-status").textContent = `Saved as ${FILE_NAME}.`;
    } catch (error) {
      byId("identity-status").textContent = "";
      onError(error);
    }
    button.disabled = false;
  });
}
