// Picture files as they are sent: their size, a smaller copy or a part where one is needed, their text.
//
// Knows no element of the page and no route.

import { el } from "./dom.js";

const JPEG_QUALITY = 0.92;
const SMALLER = 0.8; // of each side, until a copy fits
const MARGIN = 1.5; // around a face, of its box's width and height
const FACE_PX = 112; // of a face to choose from: sharp on a phone
const FACE_SPAN = 1.4; // of its box's longer side
const COVER = "#808080"; // over faces that are not meant

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
  return blobOf(canvas, type, quality);
}

/**
 * {blob, size}: the part of a picture around one face, in the pixels it has; other faces are covered.
 * Boxes: left, top, right and bottom in fractions of the upright picture.
 */
export async function partAround(blob, { chosen, others }) {
  const bitmap = await createImageBitmap(blob);
  const face = inPixels(chosen, bitmap);
  const [x, y] = [Math.max(0, face.x - MARGIN * face.width), Math.max(0, face.y - MARGIN * face.height)].map(
    Math.floor,
  );
  const size = {
    width: Math.ceil(Math.min(bitmap.width, face.x + (1 + MARGIN) * face.width)) - x,
    height: Math.ceil(Math.min(bitmap.height, face.y + (1 + MARGIN) * face.height)) - y,
  };
  const canvas = el("canvas", size);
  const context = canvas.getContext("2d");
  const draw = () => context.drawImage(bitmap, -x, -y);
  draw();
  context.fillStyle = COVER;
  for (const other of others.map((box) => inPixels(box, bitmap))) {
    context.fillRect(other.x - x, other.y - y, other.width, other.height);
  }
  // Where faces overlap, the one that is meant stays whole.
  context.beginPath();
  context.rect(face.x - x, face.y - y, face.width, face.height);
  context.clip();
  draw();
  bitmap.close();
  return { blob: await blobOf(canvas, "image/jpeg", JPEG_QUALITY), size };
}

/** Draw each face of a photo ({box}) into the canvas that is its own. */
export async function drawFaces(blob, faces, canvases) {
  const bitmap = await createImageBitmap(blob);
  faces.forEach(({ box }, i) => {
    const { x, y, width, height } = inPixels(box, bitmap);
    const side = FACE_SPAN * Math.max(width, height);
    const [left, top] = [x + (width - side) / 2, y + (height - side) / 2];
    canvases[i].width = canvases[i].height = FACE_PX;
    canvases[i].getContext("2d").drawImage(bitmap, left, top, side, side, 0, 0, FACE_PX, FACE_PX);
  });
  bitmap.close();
}

function inPixels([left, top, right, bottom], { width, height }) {
  return { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
}

const blobOf = (canvas, type, quality) => new Promise((done) => canvas.toBlob(done, type, quality));

/** The file as text: "data:image/jpeg;base64,...". */
export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Can photos ({text}) go into one request as they are? */
export const fitTogether = (photos, room) => photos.reduce((sum, { text }) => sum + text.length, 0) <= room;

/** The texts of photos ({blob, size, text}) for one request, smaller copies where they need more room. */
export function textsWithin(photos, room) {
  const share = room / photos.length;
  const fits = fitTogether(photos, room);
  const within = async (photo) =>
    fits || photo.text.length <= share ? photo.text : dataUri((await fitting(photo, share * 0.99)).blob);
  return Promise.all(photos.map(within));
}
