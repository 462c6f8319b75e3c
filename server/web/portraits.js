// Portraits in the making and made: submit, follow, cancel, delete, remember. No element of the page.
//
// A portrait is a plain object:
//   id, at (ms), sent (the request, with names in the place of files), state (the wire's words), cancelled,
//   position (jobs before it), step, steps, left (seconds), preview (data URI), error, code, fields,
//   pictures [{path, seed, width, height, bytes, similarity: [a number or null for each person]}],
//   seconds, thumbnail (Blob)

import { ApiError, BASE, call, callJson, eventsOf } from "./api.js";
import { redrawn } from "./pictures.js";
import { withNames } from "./sources.js";

const ATTEMPTS = 8; // to open a stream that ended too early, one after the other
const THUMBNAIL_PX = 256;
const KNOWS_NO_MORE = [401, 404];

/** Until its pictures are known, or it has failed. */
export const isRunning = ({ state, pictures }) => state !== "FAILED" && pictures.length === 0;

export class Portraits {
  /** `onChange(portrait)` hears of every change; of a portrait that is gone, `onGone(portrait)`. */
  constructor(history, { previews, onChange, onGone }) {
    this.history = history;
    this.query = previews ? "?preview=true" : "";
    this.onChange = onChange;
    this.onGone = onGone;
    this.all = new Map(); // by id, the oldest first
  }

  /** What this browser remembers; what was running is followed again. */
  async recall() {
    for (const portrait of (await this.history.all()).reverse()) {
      this.all.set(portrait.id, portrait);
      if (isRunning(portrait)) this.follow(portrait);
    }
  }

  /** Queue a portrait. Throws ApiError. */
  async submit(request) {
    const { request_id: id, status } = await callJson("v2/flux-pulid", { method: "POST", json: request });
    const sent = withNames(request);
    const portrait = { id, at: Date.now(), sent, state: status, step: 0, steps: 0, pictures: [] };
    this.all.set(id, portrait);
    await this.history.put(portrait);
    this.follow(portrait);
    return portrait;
  }

  /** Take part in a job until it has ended, however often the stream breaks. */
  async follow(portrait) {
    try {
      for await (const status of statuses(portrait.id, this.query)) {
        this.tell(portrait, readStatus(status));
      }
      if (portrait.state === "COMPLETED") await this.complete(portrait);
    } catch (error) {
      this.tell(portrait, { state: "FAILED", error: error.message });
    }
    if (portrait.state !== "FAILED") return;
    this.all.delete(portrait.id); // what failed is told once and not kept
    await this.history.forget(portrait.id);
  }

  async complete(portrait) {
    const result = await callJson(`v2/requests/${portrait.id}`);
    const pictures = picturesOf(result);
    this.tell(portrait, { pictures, seconds: result.metrics.inference_time });
    portrait.preview = null; // it was shown until the picture is loaded, and is not kept
    await this.history.put(portrait);
    const thumbnail = await thumbnailOf(pictures[0]).catch(() => null); // the list shows an empty place then
    this.tell(portrait, { thumbnail });
    await this.history.put(portrait);
  }

  tell(portrait, news) {
    Object.assign(portrait, news);
    this.onChange(portrait);
  }

  async cancel(portrait) {
    this.tell(portrait, { cancelled: true });
    try {
      await call(`v2/requests/${portrait.id}`, { method: "DELETE" });
    } catch (error) {
      this.tell(portrait, { cancelled: false });
      throw error;
    }
  }

  /** Delete a portrait here and, where the server still knows it, there. */
  async remove(portrait) {
    try {
      await call(`v2/requests/${portrait.id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    await this.forget(portrait);
  }

  async forget(portrait) {
    this.all.delete(portrait.id);
    await this.history.forget(portrait.id);
    this.onGone(portrait);
  }

  /** Forget everything that has ended. */
  async clear() {
    for (const portrait of [...this.all.values()]) {
      if (!isRunning(portrait)) await this.forget(portrait);
    }
  }
}

/** The statuses of a job up to its last. Throws ApiError when the server does not know it or stays away. */
async function* statuses(id, query) {
  let failure = new ApiError(
    "The server stopped telling how this portrait stands. Reload the page to look again.",
  );
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    try {
      let last = null;
      for await (const status of eventsOf(`v2/requests/${id}/events${query}`)) {
        yield (last = status);
        attempt = 0;
      }
      if (last?.status === "COMPLETED" || last?.status === "FAILED") return;
    } catch (error) {
      if (KNOWS_NO_MORE.includes(error.status)) throw error;
      failure = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500 * (attempt + 1)));
  }
  throw failure;
}

function readStatus({ status, queue_position: position, progress, preview, error, code, fields }) {
  return {
    state: status,
    position: position ?? null,
    ...(progress && { step: progress.step, steps: progress.num_steps, left: progress.seconds_left ?? null }),
    ...(isPreview(preview) && { preview }),
    ...(error && { error, code, fields: fields ?? [] }),
  };
}

const isPreview = (text) => typeof text === "string" && text.startsWith("data:image/");

function picturesOf({ seed, images, identity_similarity: similarities = [] }) {
  return images.map(({ url, width, height, file_size: bytes }, i) => ({
    path: `outputs/${url.split("/outputs/").at(-1)}`, // under the page's own address, whatever public_url is
    seed: String((BigInt(seed) + BigInt(i)) % 2n ** 63n),
    width,
    height,
    bytes,
    similarity: similarities[i],
  }));
}

async function thumbnailOf({ path, width, height }) {
  const response = await fetch(new URL(path, BASE));
  const scale = THUMBNAIL_PX / Math.max(width, height);
  const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
  return redrawn(await response.blob(), size, "image/webp", 0.8);
}
