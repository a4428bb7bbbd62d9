// One photo at a time. The next ones are loaded ahead, so that an answer shows the next one at once; the answer is
// sent meanwhile, and if it cannot be kept, the photo comes back.

import { Combobox } from "./combobox.js";
import { $, announce, element, formatPercent } from "./dom.js";
import { load, makeImage } from "./images.js";
import { closeZoom, openZoom } from "./zoom.js";

export const AHEAD = 5; // a browser has six connections, and one stays free for the answers
const CHOICES = 5;
const NONE = -1; // no choice is selected

const stage = $("stage");

export class Single {
  /** @param session the page: its `state`, `outbox`, `browser`, and `refresh`. */
  constructor(session) {
    this.session = session;
    this.cards = [];
    this.at = 0;
    this.shown = null;
    this.selected = 0;
    this.choices = [];
    this.combobox = new Combobox(
      () => session.state?.labels ?? [], (label, isNew) => this.answer(label, isNew), () => stage.focus({ preventScroll: true }));
    stage.addEventListener("click", (event) => this.zoom(event));
    for (const [id, act] of [
      ["none", () => this.answer("")], ["new", () => this.combobox.open(true)], ["skip", () => this.skip()],
      ["undo", () => session.undo()],
    ]) $(id).addEventListener("click", act);
    document.addEventListener("visibilitychange", () => this.pause());
  }

  get card() {
    return this.cards[this.at];
  }

  /** Take the photos that the session handed out; those with an answer on its way are left out. */
  receive(photos, reset) {
    const waiting = this.session.outbox.photos;
    const fresh = new Map(photos.filter((card) => !waiting.has(card.id)).map((card) => [card.id, card]));
    if (reset) this.cards = [];
    const current = this.card;
    const kept = this.cards.filter((card) => card === current || fresh.has(card.id));
    // The card that is shown keeps its keys.
    this.cards = kept.map((card) => (card === current ? card : fresh.get(card.id)));
    for (const card of kept) fresh.delete(card.id);
    this.cards.push(...fresh.values());
    this.at = Math.max(0, this.cards.indexOf(current));
    this.cards.forEach(load);
    this.show();
  }

  clear() {
    this.cards = [];
    this.show();
  }

  /** Put back the cards of answers that were not kept. */
  putBack(cards) {
    const ids = new Set(cards.map((card) => card.id));
    this.cards = [...cards, ...this.cards.filter((card) => !ids.has(card.id))];
    this.at = 0;
    this.show();
  }

  show() {
    const card = this.card;
    if (card && card === this.shown) return;
    const isOther = card?.id !== this.shown?.id;
    if (isOther && this.shown) closeZoom();
    this.shown = card ?? null;
    $("single").classList.toggle("empty", !card);
    // Without suggestions nothing is selected: Enter would give a label that nobody chose.
    this.selected = card?.suggestions.length ? 0 : NONE;
    if (!card) {
      this.showNothing();
      return;
    }
    stage.replaceChildren(load(card));
    stage.dataset.photo = card.id;
    stage.setAttribute("aria-label", `Photo ${card.name}`);
    $("name").textContent = card.name;
    const isTest = card.strategy === "random";
    $("tag").hidden = !isTest;
    $("tag").textContent = isTest ? "chosen at random: test set" : "";
    this.showChoices();
    this.showNeighbours();
    if (!isOther) return;
    this.since = performance.now();
    this.hiddenSince = document.hidden ? this.since : null;
  }

  showNothing() {
    const { state, outbox } = this.session;
    delete stage.dataset.photo;
    $("name").textContent = "";
    $("tag").hidden = true;
    $("compare").hidden = true;
    this.choices = [];
    this.renderChoices();
    const isLoading = outbox.jobs.length > 0 || !state;
    const left = state?.remaining ?? 0;
    let text = "Loading …";
    if (!isLoading && state.strategy === "suspects") text = "No suspected label error is left.";
    else if (!isLoading && left) text = `The ${left === 1 ? "last photo is" : `last ${left} photos are`} shown in other browsers.`;
    else if (!isLoading) text = "All photos are done.";
    stage.replaceChildren(element("p", { class: "done" }, text));
    if (!isLoading) announce(text);
  }

  showChoices() {
    const { suggestions, given_label: given } = this.card;
    this.choices = suggestions.map(({ label, probability }) => ({ label, probability, isGiven: label === given }));
    if (!this.choices.length) {
      this.choices = this.session.state.labels.slice(0, CHOICES).map((label) => ({ label, isGiven: label === given }));
    }
    this.renderChoices();
    if (!this.choices.length) $("choices").append(element("li", { class: "soft" }, "No labels yet: press n and type the first one."));
    if (given && !this.choices.some(({ isGiven }) => isGiven)) this.addKept(given);
  }

  renderChoices() {
    $("choices").replaceChildren(...this.choices.map(({ label, probability, isGiven }, index) => {
      const button = element("button", { type: "button", "aria-keyshortcuts": String(index + 1) },
        element("kbd", { "aria-hidden": "true" }, String(index + 1)), element("bdi", {}, label));
      if (isGiven) button.append(element("span", { class: "tag" }, "given"));
      if (probability !== undefined) {
        const bar = element("i", { "aria-hidden": "true" });
        bar.style.width = `${100 * probability}%`;
        button.append(element("span", { class: "probability" }, formatPercent(probability)), bar);
      }
      if (index === this.selected) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => this.answer(label));
      return element("li", {}, button);
    }));
  }

  addKept(given) {
    const button = element("button", { type: "button", "aria-keyshortcuts": "k" },
      element("kbd", { "aria-hidden": "true" }, "k"), element("bdi", {}, given), element("span", { class: "tag" }, "given"));
    button.addEventListener("click", () => this.answer(given));
    $("choices").append(element("li", {}, button));
  }

  showNeighbours() {
    const { neighbours, given_label: given } = this.card;
    $("compare").hidden = neighbours.length === 0;
    $("compare").replaceChildren(...neighbours.map(({ label, photos }) => element(
      "section", {},
      element("h2", {}, "Nearest ", element("bdi", {}, label), element("span", { class: "tag" }, label === given ? "given" : "suggested")),
      element("div", { class: "row" }, ...photos.map((id) => this.makeNeighbour(id, label))))));
  }

  makeNeighbour(id, label) {
    const button = element("button", { type: "button", "aria-label": `Enlarge a photo of ${label}` }, makeImage(id, "small", ""));
    button.addEventListener("click", () => openZoom({ id, name: label }));
    return button;
  }

  select(step) {
    if (!this.choices.length) return;
    const start = this.selected === NONE && step < 0 ? 0 : this.selected;
    this.selected = (start + step + this.choices.length) % this.choices.length;
    const buttons = [...$("choices").querySelectorAll("button")].slice(0, this.choices.length);
    buttons.forEach((button, index) => {
      if (index === this.selected) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    announce(`${this.choices[this.selected].label} selected`);
  }

  move(step) {
    const next = this.at + step;
    if (next < 0 || next >= this.cards.length) return;
    this.at = next;
    this.show();
    announce(this.describe());
  }

  describe() {
    const best = this.choices[0];
    if (!this.card) return "";
    return best?.probability === undefined ? `Photo ${this.card.name}.`
      : `Photo ${this.card.name}. ${best.label}, ${formatPercent(best.probability)}.`;
  }

  answer(label, isNew = false) {
    const card = this.card;
    if (!card) return;
    const { outbox, browser } = this.session;
    if (isNew) {
      outbox.add({
        path: "label", label, cards: [card], body: () => ({ browser, name: label }),
        done: ({ labels }) => { this.session.state.labels = labels; },
      });
      this.session.state.labels = [...this.session.state.labels, label]; // until the session has answered
    }
    const seconds = Math.round(performance.now() - this.since) / 1000;
    this.take(card, {
      path: "answer", body: () => ({ browser, answers: [{ photo: card.id, label, seconds }] }),
    }, label || "None of these");
  }

  skip() {
    const card = this.card;
    if (!card) return;
    const { browser } = this.session;
    this.take(card, { path: "skip", body: () => ({ browser, photos: [card.id] }) }, "Skipped");
  }

  /** Send what was decided about a card, and show the next one. */
  take(card, job, words) {
    this.cards.splice(this.at, 1);
    if (this.at >= this.cards.length) this.at = 0;
    this.session.outbox.add({ ...job, cards: [card], done: (state) => this.session.receiveState(state, true) });
    this.session.refresh();
    this.show();
    stage.focus({ preventScroll: true });
    announce(`${words}. ${this.describe()}`);
  }

  zoom(event) {
    if (!this.card) return;
    const image = stage.querySelector("img");
    if (!image) return;
    const box = image.getBoundingClientRect();
    const inside = event && event.clientX !== 0;
    openZoom(this.card, inside ? (event.clientX - box.left) / box.width : 0.5, inside ? (event.clientY - box.top) / box.height : 0.5);
  }

  /** Do not count the time in which the page is hidden. */
  pause() {
    if (document.hidden) this.hiddenSince = performance.now();
    else if (this.hiddenSince !== null) {
      this.since += performance.now() - this.hiddenSince;
      this.hiddenSince = null;
    }
  }

  handleKey(key) {
    const number = Number(key);
    if (number >= 1 && number <= this.choices.length) this.answer(this.choices[number - 1].label);
    else if (key === "Enter" && this.choices[this.selected]) this.answer(this.choices[this.selected].label);
    else if (key === "k" && this.card?.given_label) this.answer(this.card.given_label);
    else if (key === "ArrowDown") this.select(1);
    else if (key === "ArrowUp") this.select(-1);
    else if (key === "ArrowRight") this.move(1);
    else if (key === "ArrowLeft") this.move(-1);
    else if (key === "/") this.combobox.open();
    else if (key === "n") this.combobox.open(true);
    else if (key === "x") this.answer("");
    else if (key === "s") this.skip();
    else if (key === "z") this.zoom();
    else return false;
    return true;
  }
}
