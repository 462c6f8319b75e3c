// Picture files as they are sent: their size, a smaller copy where one is needed, their text.
//
// Knows no element of the page and no route.

import { el } from "./dom.js";

const JPEG_QUALITY = 0.92;
const SMALLER = 0.8; // of each side, until a copy fits

/** Width and height in pixels, upright; null for what the browser cannot read. */
export async function sizeOf(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const { width, height } = bitmap;
    bitmap.close();
    return { width, height };
  } catch {
    return null;
  }
}

/** {blob, size}: as they are, or a copy small enough that its base64 text has at most `room` bytes. */
export async function fitting({ blob, size }, room) {
  // A canvas that is too large for the browser gives no blob at all.
  const fits = ({ blob: one }) => one !== null && Math.ceil(one.size / 3) * 4 <= room;
  let sent = { blob, size };
  for (let scale = 1; !fits(sent) && scale > 0.01; scale *= SMALLER) {
    const smaller = { width: Math.round(size.width * scale), height: Math.round(size.height * scale) };
    sent = { blob: await redrawn(blob, smaller, "image/jpeg", JPEG_QUALITY), size: smaller };
  }
  return sent;
}

/** The picture at another size. */
export async function redrawn(blob, { width, height }, type, quality) {
  const bitmap = await createImageBitmap(blob);
  const canvas = el("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, type, quality));
}

/** The file as text: "data:image/jpeg;base64,...". */
export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The texts of photos ({blob, size, text}) for one request, smaller copies where they need more room. */
export function textsWithin(photos, room) {
  const share = room / photos.length;
  const fits = photos.reduce((sum, { text }) => sum + text.length, 0) <= room;
  const within = async (photo) =>
    fits || photo.text.length <= share ? photo.text : dataUri((await fitting(photo, share * 0.99)).blob);
  return Promise.all(photos.map(within));
}
