// Photos, loaded ahead and decoded before they are shown.

import { element } from "./dom.js";

const KEPT = 24; // photos that stay loaded after they were answered, for undo

const loaded = new Map();

export const photoAddress = (id, size) => `photo/${id}/${size}`;

/** Return an element with a photo, or with the reason why there is none. */
export function makeImage(id, size, description) {
  const image = element("img", { alt: description, draggable: "false" });
  image.decoding = "sync"; // it was decoded by `load`
  image.src = photoAddress(id, size);
  const holder = element("div", { class: "photo loading" }, image);
  holder.ready = image.decode().catch(() => {}).then(async () => {
    if (!image.naturalWidth) holder.replaceChildren(element("p", { class: "broken" }, await findReason(image.src)));
    holder.classList.remove("loading");
  });
  return holder;
}

/** Load the photo of a card; the same element is returned each time. */
export function load(card) {
  let holder = loaded.get(card.id);
  if (holder) loaded.delete(card.id); // and again at the end: the first one is the oldest
  else holder = makeImage(card.id, "medium", `Photo ${card.name}`);
  loaded.set(card.id, holder);
  while (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
  return holder;
}

async function findReason(address) {
  try {
    const response = await fetch(address);
    return response.ok ? "This photo cannot be shown by the browser." : (await response.json()).error;
  } catch {
    return "The photo could not be loaded: the session does not answer.";
  }
}
