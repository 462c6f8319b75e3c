// Portraits in the making and made: submit, follow, cancel, delete, remember. No element of the page.
//
// A portrait is a plain object:
//   id, at (ms), sent (the request, with names in the place of files), state (the wire's words), cancelled,
//   trouble (why it is not known now how it stands, or null), position (jobs before it), step, steps,
//   left (seconds), preview (data URI), code, fault (as `faults.js` tells it),
//   pictures [{path, seed, width, height, bytes, similarity: [a number or null for each person]}],
//   seconds, thumbnail (Blob)

import { call, callJson, eventsOf, pause } from "./api.js";
import { faultOf } from "./faults.js";
import { redrawn } from "./pictures.js";
import { withNames } from "./sources.js";

const FIRST_PAUSE_MS = 500; // before another look at a job; doubled each time
const LONGEST_PAUSE_MS = 30_000;
const THUMBNAIL_PX = 256;
const GONE =
  "The server no longer knows this portrait. It may have expired, been deleted, or be another key's.";

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

  get isBusy() {
    return [...this.all.values()].some(isRunning);
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

  /**
   * Take part in a job until it has ended. No failed connection ends that: the server has accepted the
   * job and still has it when it is back. Only the server can say that it failed, or is not known (404).
   */
  async follow(portrait) {
    for (let failures = 0; isRunning(portrait) && this.all.has(portrait.id); failures += 1) {
      try {
        await this.listen(portrait, () => (failures = 0));
        if (portrait.state === "COMPLETED") await this.fetchPictures(portrait);
      } catch (error) {
        this.tell(portrait, newsOf(error));
        if (error.status === 401) await untilTriedNow(); // who gave no key is not asked all the time
      }
      if (isRunning(portrait) && (await pause(pauseAfter(failures)))) failures = 0;
    }
    if (portrait.state === "FAILED") await this.drop(portrait);
    else if (!isRunning(portrait)) await this.complete(portrait);
  }

  /** Hear how a job stands, until it has ended or the stream has. */
  async listen(portrait, onNews) {
    if (portrait.state === "COMPLETED") return;
    for await (const status of eventsOf(`v2/requests/${portrait.id}/events${this.query}`)) {
      this.tell(portrait, { ...readStatus(status, portrait.sent), trouble: null });
      onNews();
    }
  }

  async fetchPictures(portrait) {
    const result = await callJson(`v2/requests/${portrait.id}`);
    this.tell(portrait, {
      pictures: picturesOf(result),
      seconds: result.metrics.inference_time,
      trouble: null,
    });
  }

  /** Remember its pictures, and a small copy of the first. */
  async complete(portrait) {
    portrait.preview = null; // it was shown until the picture is loaded, and is not kept
    await this.history.put(portrait);
    const thumbnail = await thumbnailOf(portrait.pictures[0]).catch(() => null); // an empty place in the list
    this.tell(portrait, { thumbnail });
    await this.history.put(portrait);
  }

  /** What failed is told once and not kept. */
  async drop(portrait) {
    this.all.delete(portrait.id);
    await this.history.forget(portrait.id);
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

/** What an error tells of a portrait that is being followed. */
function newsOf({ status, message }) {
  if (status === 404) return { state: "FAILED", fault: { message: GONE } };
  if (status === 401) return { trouble: "Waiting for an API key" };
  return { trouble: status ? `${message} Trying again` : "Connection lost, trying again" };
}

async function untilTriedNow() {
  while (!(await pause(LONGEST_PAUSE_MS)));
}

const pauseAfter = (failures) => Math.min(FIRST_PAUSE_MS * 2 ** failures, LONGEST_PAUSE_MS);

function readStatus({ status, queue_position: position, progress, preview, error, code, fields }, sent) {
  return {
    state: status,
    position: position ?? null,
    ...(progress && { step: progress.step, steps: progress.num_steps, left: progress.seconds_left ?? null }),
    ...(isPreview(preview) && { preview }),
    ...(error && { code, fault: faultOf({ error, code, fields }, sent) }),
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

/** The file of a picture. Throws ApiError, with 404 for one that the server no longer has. */
export async function fetchPicture(path) {
  return (await call(path, { cache: "default", mayAskForKey: false })).blob();
}

async function thumbnailOf({ path, width, height }) {
  const scale = THUMBNAIL_PX / Math.max(width, height);
  const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
  return redrawn(await fetchPicture(path), size, "image/webp", 0.8);
}
