// The list of portraits, in this browser only: parameters, addresses and a thumbnail each, never a photo.
//
// IndexedDB, because thumbnails are pictures. Where the browser refuses it (private windows), the list
// lasts as long as the page.

export const KEPT = 30;

const STORE = "portraits";

export class History {
  static async open() {
    try {
      return new History(await database());
    } catch {
      return new History(null);
    }
  }

  constructor(db) {
    this.db = db;
  }

  /** The newest first. */
  async all() {
    if (!this.db) return [];
    const portraits = await this.run("readonly", (store) => store.getAll());
    return portraits.sort((one, other) => other.at - one.at);
  }

  async put(portrait) {
    if (!this.db) return;
    await this.run("readwrite", (store) => store.put(portrait));
    for (const { id } of (await this.all()).slice(KEPT)) await this.forget(id);
  }

  async forget(id) {
    if (this.db) await this.run("readwrite", (store) => store.delete(id));
  }

  run(mode, order) {
    return done(order(this.db.transaction(STORE, mode).objectStore(STORE)));
  }
}

function database() {
  const opening = indexedDB.open("flux-pulid", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
  return done(opening);
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
