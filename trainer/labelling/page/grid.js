// A grid of photos that the model takes for one label: a click takes out the wrong ones, Enter accepts the others.

import { $, announce, element, pluralize } from "./dom.js";
import { makeImage } from "./images.js";
import { openZoom } from "./zoom.js";

const tiles = $("tiles");

export class Grid {
  /** @param session the page: its `state`, `outbox`, `browser`, `refresh` and `undo`. */
  constructor(session) {
    this.session = session;
    this.cards = [];
    this.label = "";
    this.rejected = new Set();
    this.isSending = false;
    $("accept").addEventListener("click", () => this.accept());
    $("grid-undo").addEventListener("click", () => session.undo());
    $("grid-label").addEventListener("change", (event) => {
      session.refresh(true);
      event.target.blur();
    });
  }

  /** Return the label that a person chose; "" for the one with the most photos left. */
  get chosenLabel() {
    return $("grid-label").value;
  }

  receive(photos, label) {
    const isSame = this.label === label && photos.length === this.cards.length
      && photos.every((card, index) => card.id === this.cards[index].id);
    this.setSending(false);
    this.showLabels();
    if (isSame && photos.length) return;
    this.cards = photos;
    this.label = label;
    this.rejected.clear();
    this.since = performance.now();
    this.show();
  }

  /** Let a person go on with photos whose answers were not kept. */
  putBack() {
    this.setSending(false);
  }

  setSending(isSending) {
    this.isSending = isSending;
    tiles.inert = isSending;
    $("accept").disabled = isSending;
  }

  showLabels() {
    const { labels } = this.session.state;
    const chosen = this.chosenLabel;
    if ($("grid-label").options.length === labels.length + 1) return;
    $("grid-label").replaceChildren(
      element("option", { value: "" }, "most photos left"), ...labels.map((label) => element("option", { value: label }, label)));
    $("grid-label").value = chosen;
  }

  show() {
    $("grid").classList.toggle("empty", !this.cards.length);
    if (!this.cards.length) {
      const isLoading = this.session.outbox.jobs.length > 1;
      let text = this.chosenLabel ? "The model takes no other photo for this label." : "No photo is left.";
      if (!this.session.state.fitted_answers) {
        text = "The grid needs a model: label some photos one by one first.";
      }
      $("question").textContent = isLoading ? "Loading …" : text;
      tiles.replaceChildren();
      $("accept").hidden = true;
      return;
    }
    $("question").replaceChildren("Is every photo ", element("bdi", {}, this.label), "?");
    tiles.replaceChildren(...this.cards.map((card, index) => this.makeTile(card, index)));
    this.showCount();
    announce(`${pluralize(this.cards.length, "photo")}: is every one ${this.label}?`);
  }

  makeTile(card, index) {
    const tile = element("button", {
      type: "button", class: "tile", "aria-pressed": "false", "aria-label": `Take out photo ${card.name}`, tabindex: index ? -1 : 0,
    }, makeImage(card.id, "small", ""));
    tile.addEventListener("click", () => this.toggle(index));
    const zoom = element("button", { type: "button", class: "enlarge", "aria-label": `Enlarge photo ${card.name}`, tabindex: -1 }, "⤢");
    zoom.addEventListener("click", () => openZoom(card));
    return element("div", { class: "cell" }, tile, zoom);
  }

  zoom(index) {
    if (index >= 0) openZoom(this.cards[index]);
  }

  get buttons() {
    return [...tiles.querySelectorAll(".tile")];
  }

  toggle(index) {
    const { id } = this.cards[index];
    const isOut = !this.rejected.delete(id);
    if (isOut) this.rejected.add(id);
    this.buttons[index].setAttribute("aria-pressed", String(isOut));
    this.showCount();
  }

  showCount() {
    const count = this.cards.length - this.rejected.size;
    $("accept").hidden = false;
    $("accept").replaceChildren(
      element("kbd", { "aria-hidden": "true" }, "Enter"),
      ...(count ? [`Accept ${pluralize(count, "photo")} as `, element("bdi", {}, this.label)] : ["Take out all photos"]));
  }

  accept() {
    if (!this.cards.length || this.isSending) return;
    const { outbox, browser } = this.session;
    const seconds = Math.round((performance.now() - this.since) / this.cards.length) / 1000;
    const { label } = this;
    const answers = this.cards.filter(({ id }) => !this.rejected.has(id)).map(({ id }) => ({ photo: id, label, seconds }));
    const rejected = [...this.rejected];
    outbox.add({
      path: "answer", cards: this.cards, body: () => ({ browser, answers, rejected }),
      done: (state) => this.session.receiveState(state, true),
    });
    announce(`${pluralize(answers.length, "photo")} labelled ${label}.`);
    this.setSending(true);
    this.session.refresh(true);
  }

  focus(index) {
    const { buttons } = this;
    if (index < 0 || index >= buttons.length) return;
    buttons.forEach((button, at) => { button.tabIndex = at === index ? 0 : -1; });
    buttons[index].focus();
  }

  handleKey(key) {
    const index = this.buttons.indexOf(document.activeElement);
    const columns = getComputedStyle(tiles).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    if (step) this.focus(index < 0 ? 0 : index + step);
    else if (key === "Enter") this.accept();
    else if (key === "x" && index >= 0) this.toggle(index);
    else if (key === "z") this.zoom(index < 0 ? this.buttons.findIndex((tile) => tile.matches(":hover")) : index);
    else return false;
    return true;
  }
}
