// Where people are in the picture: boxes on a plane of the picture's shape, to be moved and resized by
// mouse and touch. The same is done by keyboard in the fields of each person; this only draws and drags.
//
// A region is {left, top, width, height} in percent of the picture.

import { el } from "./dom.js";

const CORNERS = ["nw", "ne", "sw", "se"];
const SMALLEST = 5; // percent
const ENOUGH = 20; // percent, for somebody who is new

const between = (low, value, high) => Math.min(Math.max(value, low), high);

/** The region with one side of it set to a number, as far as it stays in the picture; the others stay. */
export function withSide(region, side, number) {
  const value = Math.round(number);
  if (side === "left") return { ...region, left: between(0, value, 100 - region.width) };
  if (side === "top") return { ...region, top: between(0, value, 100 - region.height) };
  const start = side === "width" ? region.left : region.top;
  return { ...region, [side]: between(SMALLEST, value, 100 - start) };
}

function moved({ left, top, width, height }, across, down) {
  return {
    left: Math.round(between(0, left + across, 100 - width)),
    top: Math.round(between(0, top + down, 100 - height)),
    width,
    height,
  };
}

function resized({ left, top, width, height }, corner, across, down) {
  const [x1, x2] = corner.includes("w")
    ? [between(0, left + across, left + width - SMALLEST), left + width]
    : [left, between(left + SMALLEST, left + width + across, 100)];
  const [y1, y2] = corner.includes("n")
    ? [between(0, top + down, top + height - SMALLEST), top + height]
    : [top, between(top + SMALLEST, top + height + down, 100)];
  const [l, t] = [Math.round(x1), Math.round(y1)];
  return { left: l, top: t, width: Math.round(x2) - l, height: Math.round(y2) - t };
}

/** Columns side by side for that many people. */
export function columns(count) {
  const edges = Array.from({ length: count + 1 }, (_, i) => Math.round((100 * i) / count));
  return edges.slice(1).map((right, i) => ({ left: edges[i], top: 0, width: right - edges[i], height: 100 }));
}

/** For one more beside these regions: the largest free part, or the column that has the least of them. */
export function freePlace(regions) {
  const isEnough = ({ width, height }) => Math.min(width, height) >= ENOUGH;
  const free = rectanglesBetween(regions).filter((area) => isEnough(area) && shared(area, regions) === 0);
  // Of two as large the taller one: people are.
  const largest = free.sort((a, b) => b.width * b.height - a.width * a.height || b.height - a.height)[0];
  if (largest) return largest;
  return columns(regions.length + 1).sort((a, b) => shared(a, regions) - shared(b, regions))[0];
}

/** All that have edges of these regions, or of the picture, as their own. */
function rectanglesBetween(regions) {
  const across = spans(regions.flatMap(({ left, width }) => [left, left + width]));
  const down = spans(regions.flatMap(({ top, height }) => [top, top + height]));
  return across.flatMap(([left, right]) =>
    down.map(([top, bottom]) => ({ left, top, width: right - left, height: bottom - top })),
  );
}

function spans(edges) {
  const all = [...new Set([0, 100, ...edges])];
  return all.flatMap((from) => all.filter((to) => to > from).map((to) => [from, to]));
}

/** How much of an area these regions cover; what two cover counts twice. */
function shared(area, regions) {
  const common = (start, length) => (one) => {
    const end = Math.min(area[start] + area[length], one[start] + one[length]);
    return Math.max(0, end - Math.max(area[start], one[start]));
  };
  const [across, down] = [common("left", "width"), common("top", "height")];
  return regions.reduce((sum, one) => sum + across(one) * down(one), 0);
}

export class Regions {
  constructor(plane) {
    this.plane = plane;
    this.boxes = new Map(); // person -> element
  }

  setShape({ width, height }) {
    this.plane.style.setProperty("--width", width);
    this.plane.style.setProperty("--height", height);
  }

  /** Draw the boxes of these people, anew. Each has a `name`, a `number`, a `region` and `setRegion`. */
  show(people) {
    this.boxes = new Map(people.map((person) => [person, this.box(person)]));
    this.plane.replaceChildren(...this.boxes.values());
    for (const person of people) this.place(person);
  }

  box(person) {
    const handles = CORNERS.map((corner) => el("i", { class: `handle ${corner}` }));
    const name = el("span", {}, person.name);
    const box = el("div", { class: `region person-${person.number}` }, name, ...handles);
    box.addEventListener("pointerdown", (event) => this.drag(event, person, box));
    return box;
  }

  place(person) {
    const box = this.boxes.get(person);
    for (const [side, percent] of Object.entries(person.region)) box?.style.setProperty(side, `${percent}%`);
  }

  /** Put the box of this person above the others. */
  raise(person) {
    for (const [other, box] of this.boxes) box.classList.toggle("raised", other === person);
  }

  drag(event, person, box) {
    if (event.button !== 0) return;
    event.preventDefault(); // else the browser selects text
    this.raise(person);
    const corner = CORNERS.find((one) => event.target.classList.contains(one));
    const from = person.region;
    const { width, height } = this.plane.getBoundingClientRect();
    const move = ({ clientX, clientY }) => {
      const across = (100 * (clientX - event.clientX)) / width;
      const down = (100 * (clientY - event.clientY)) / height;
      person.setRegion(corner ? resized(from, corner, across, down) : moved(from, across, down));
    };
    const dragging = new AbortController();
    const { signal } = dragging;
    box.setPointerCapture(event.pointerId);
    box.addEventListener("pointermove", move, { signal });
    for (const end of ["pointerup", "pointercancel"]) {
      box.addEventListener(end, () => dragging.abort(), { signal });
    }
  }
}
