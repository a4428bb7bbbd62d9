// Helpers for elements and numbers.

export const $ = (id) => document.getElementById(id);

/** Return a new element with attributes and children; texts are never parsed as HTML. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const formatPercent = (value) => `${Math.round(100 * value)}\u00a0%`;
const numbers = new Intl.NumberFormat("en"); // toLocaleString would make one for each number
export const formatNumber = (value) => numbers.format(value);
export const pluralize = (count, noun) => `${formatNumber(count)} ${noun}${count === 1 ? "" : "s"}`;

/** Say something to screen readers. */
export function announce(text) {
  $("live").textContent = text;
}

/** Show an error, or nothing for "". */
export function showBanner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}
