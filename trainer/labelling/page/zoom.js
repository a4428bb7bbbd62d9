// The enlarged photo: drag, scroll or use the arrow keys to move it; a click, z or Escape closes it.

import { $ } from "./dom.js";
import { makeImage } from "./images.js";

const STEP = 0.2; // part of the window that an arrow key moves

const dialog = $("zoom");
const frame = $("zoom-frame");
let drag = null;

export const isZoomed = () => dialog.open;

/** Show a photo enlarged, centred at a point given as fractions of its width and height. */
export async function openZoom(card, x = 0.5, y = 0.5) {
  const holder = makeImage(card.id, "full", `Photo ${card.name}, enlarged`);
  frame.replaceChildren(holder);
  if (!dialog.open) dialog.showModal();
  frame.focus();
  await holder.ready;
  const image = holder.querySelector("img");
  if (!image) return;
  const fit = Math.min(frame.clientWidth / image.naturalWidth, frame.clientHeight / image.naturalHeight);
  image.style.width = `${image.naturalWidth * Math.max(1 / devicePixelRatio, 2 * fit)}px`;
  frame.scrollLeft = x * frame.scrollWidth - frame.clientWidth / 2;
  frame.scrollTop = y * frame.scrollHeight - frame.clientHeight / 2;
}

export function closeZoom() {
  dialog.close();
}

/** Handle a key; return whether it was one for the enlarged photo. */
export function handleZoomKey(key) {
  if (key === "z") {
    closeZoom();
    return true;
  }
  const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
  frame.scrollBy(x * STEP * frame.clientWidth, y * STEP * frame.clientHeight);
  return x !== 0 || y !== 0;
}

$("zoom-close").addEventListener("click", closeZoom);
frame.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse") return; // fingers scroll
  drag = { x: event.clientX, y: event.clientY, left: frame.scrollLeft, top: frame.scrollTop, moved: false };
  frame.setPointerCapture(event.pointerId);
});
frame.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  drag.moved ||= Math.hypot(x, y) > 4;
  frame.scrollTo(drag.left - x, drag.top - y);
});
for (const kind of ["pointerup", "pointercancel"]) {
  frame.addEventListener(kind, () => {
    if (drag && !drag.moved && kind === "pointerup") closeZoom();
    drag = null;
  });
}
