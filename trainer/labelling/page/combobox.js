// Type-ahead for labels (the combobox pattern of ARIA): the names that begin with or contain the text, and a new one.

import { $, element } from "./dom.js";

const SHOWN = 8;

const input = $("other");
const list = $("options");

/** Return a label as it is compared: without case and without accents. */
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().trim();

/** Return the labels that fit a text, those that begin with it first. */
export function findLabels(labels, text) {
  const wanted = fold(text);
  const rank = (label) => {
    const folded = fold(label);
    if (folded.startsWith(wanted)) return folded === wanted ? 0 : 1;
    if (folded.split(/[\s_-]+/).some((word) => word.startsWith(wanted))) return 2;
    return folded.includes(wanted) ? 3 : 4;
  };
  return labels.map((label) => [rank(label), label]).filter(([found]) => found < 4)
    .sort(([a], [b]) => a - b).map(([, label]) => label).slice(0, SHOWN);
}

export class Combobox {
  /**
   * @param {() => string[]} getLabels returns all labels.
   * @param {(label: string, isNew: boolean) => void} onChoice receives the chosen label.
   * @param {() => void} onLeave is called when it is left without a choice.
   */
  constructor(getLabels, onChoice, onLeave) {
    Object.assign(this, { getLabels, onChoice, onLeave, choices: [], selected: 0, onlyNew: false });
    input.addEventListener("input", () => this.update());
    input.addEventListener("focus", () => this.update());
    input.addEventListener("blur", () => this.close());
    input.addEventListener("keydown", (event) => this.handleKey(event));
    // A press would move the focus away, and so close the list before the click.
    list.addEventListener("pointerdown", (event) => event.preventDefault());
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose(Number(option.dataset.index));
    });
  }

  open(onlyNew = false) {
    this.onlyNew = onlyNew;
    input.placeholder = onlyNew ? "Name of the new label" : "Other label …";
    input.focus();
    this.update();
  }

  close() {
    input.value = "";
    input.placeholder = "Other label …";
    this.onlyNew = false;
    this.choices = [];
    this.render();
  }

  update() {
    const text = input.value.normalize("NFC").trim().replace(/\s+/g, " ");
    const labels = this.getLabels();
    this.choices = findLabels(labels, text).map((label) => ({ label, isNew: false }));
    const exists = labels.some((label) => label.toLowerCase() === text.toLowerCase());
    if (text && !exists) {
      const choice = { label: text, isNew: true };
      if (this.onlyNew) this.choices.unshift(choice);
      else this.choices.push(choice);
    } else if (this.onlyNew && !text) {
      this.choices = [];
    }
    this.selected = 0;
    this.render();
  }

  render() {
    list.replaceChildren(...this.choices.map(({ label, isNew }, index) => element(
      "li", { role: "option", id: `option-${index}`, "data-index": index, "aria-selected": index === this.selected ? "true" : "false" },
      ...(isNew ? [element("span", { class: "soft" }, "New label ")] : []), element("bdi", {}, label))));
    const isOpen = this.choices.length > 0;
    list.hidden = !isOpen;
    input.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) input.setAttribute("aria-activedescendant", `option-${this.selected}`);
    else input.removeAttribute("aria-activedescendant");
    list.children[this.selected]?.scrollIntoView({ block: "nearest" });
  }

  handleKey(event) {
    if (event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.choices.length) {
      this.selected = (this.selected + step + this.choices.length) % this.choices.length;
      this.render();
    } else if (event.key === "Enter") {
      this.choose(this.selected);
    } else if (event.key === "Escape") {
      this.close();
      this.onLeave();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  choose(index) {
    const choice = this.choices[index];
    if (!choice) return;
    this.close();
    this.onChoice(choice.label, choice.isNew);
  }
}
