// The labelling page: what the views share, and the keyboard.

import { chooseBrowserName, Outbox, request } from "./api.js";
import { $, announce, element, showBanner } from "./dom.js";
import { Grid } from "./grid.js";
import { showState } from "./panel.js";
import { AHEAD, Single } from "./single.js";
import { handleZoomKey, isZoomed } from "./zoom.js";

const STRATEGIES = {
  mixed: "mixed: most useful", uncertain: "uncertain", diverse: "diverse", novel: "novel",
  random: "random: test set", suspects: "suspects: label errors",
};
const POLL_MS = 1000; // while a head is fitted
const HEARTBEAT_MS = 60_000; // the session keeps the photos of browsers that it hears of
const CONFLICT = 409, INVALID = 400;

class Page {
  constructor(browser) {
    this.browser = browser;
    this.mode = "single";
    this.state = null;
    this.isLost = this.isPolling = false;
    this.failure = ""; // until the next answer is kept
    this.outbox = new Outbox((error, jobs) => this.handleError(error, jobs));
    this.single = new Single(this);
    this.grid = new Grid(this);
    $("mode-single").addEventListener("click", () => this.setMode("single"));
    $("mode-grid").addEventListener("click", () => this.setMode("grid"));
    $("strategy").append(...Object.entries(STRATEGIES).map(([value, text]) => element("option", { value }, text)));
    $("strategy").addEventListener("change", () => this.setStrategy($("strategy").value));
    $("measure").addEventListener("click", () => this.setStrategy("random"));
    $("help-open").addEventListener("click", () => $("help").showModal());
    document.addEventListener("keydown", (event) => this.handleKey(event));
    addEventListener("beforeunload", (event) => {
      if (this.outbox.jobs.some((job) => job.cards)) event.preventDefault();
    });
    setInterval(() => this.poll(), POLL_MS);
  }

  /** Ask for the photos that this browser holds; with `reset` in the order of the session. */
  refresh(reset = false, strategy = undefined) {
    // One such request behind the answers is enough.
    const last = this.outbox.jobs.at(-1);
    if (this.outbox.jobs.length > 1 && last.path === "next" && !last.strategy) {
      last.reset ||= reset;
      last.strategy = strategy;
      return;
    }
    const job = {
      path: "next", reset, strategy,
      body: () => ({
        browser: this.browser, mode: this.mode, count: AHEAD, label: this.mode === "grid" ? this.grid.chosenLabel : "",
        strategy: job.strategy,
      }),
      done: ({ batch, state }) => {
        this.receiveState(state);
        if (batch.mode !== this.mode) return;
        if (batch.mode === "single") this.single.receive(batch.photos, job.reset);
        else this.grid.receive(batch.photos, batch.label);
      },
    };
    this.outbox.add(job);
  }

  receiveState(state, isKept = false) {
    const isNewHead = this.state && state.fitted_answers !== this.state.fitted_answers;
    // New labels whose request is on its way can be chosen already.
    const added = this.outbox.jobs.flatMap((job) => (job.label && !state.labels.includes(job.label) ? [job.label] : []));
    this.state = { ...state, labels: [...state.labels, ...added] };
    this.heard = performance.now();
    this.isLost = false;
    if (isKept) this.failure = "";
    showBanner(this.failure || state.warning);
    showState(state);
    if (document.activeElement !== $("strategy")) $("strategy").value = state.strategy;
    const isCheck = state.strategy === "suspects"; // a session has either this strategy or all others
    for (const option of $("strategy").options) option.hidden = (option.value === "suspects") !== isCheck;
    $("strategy").disabled = isCheck;
    return isNewHead;
  }

  handleError(error, jobs) {
    const unkept = [...new Set(jobs.flatMap((job) => job.cards ?? []))];
    const cards = error.status === CONFLICT ? unkept.filter((card) => !jobs[0].cards?.includes(card)) : unkept;
    const count = unkept.length;
    this.isLost = error.status === 0;
    this.failure = count ? `Not saved: ${error.message} ${count === 1 ? "The photo has" : `${count} photos have`} no answer yet.` : "";
    showBanner(this.failure || error.message);
    if (this.mode === "grid") this.grid.putBack();
    else this.single.putBack(cards);
    if (error.status === CONFLICT) this.refresh(true);
    else if (error.status === INVALID && jobs[0].strategy) { // which these photos do not have
      this.failure = error.message;
      this.refresh(true);
    }
  }

  undo() {
    this.outbox.add({
      path: "undo", body: () => ({ browser: this.browser }),
      done: ({ photos, state }) => {
        this.receiveState(state, true);
        announce(photos.length ? "The last answer is taken back." : "There is nothing to take back.");
      },
    });
    this.refresh(true);
  }

  setMode(mode) {
    if (mode === this.mode) return;
    this.mode = mode;
    for (const name of ["single", "grid"]) {
      $(name).hidden = name !== mode;
      $(`mode-${name}`).setAttribute("aria-pressed", String(name === mode));
    }
    this.single.clear();
    this.refresh(true);
    (mode === "single" ? $("stage") : $("question")).focus({ preventScroll: true });
  }

  setStrategy(strategy) {
    if (this.mode === "grid") this.setMode("single");
    this.refresh(true, strategy);
    this.single.clear();
    $("strategy").blur();
    $("strategy").value = strategy;
    announce(`Next photos: ${STRATEGIES[strategy]}`);
  }

  /** Follow a fit in the background, and let the session know that this page is open. */
  async poll() {
    if (document.hidden || this.outbox.jobs.length || this.isPolling) return;
    if (!this.state) {
      this.refresh(true);
      return;
    }
    if (performance.now() - this.heard > HEARTBEAT_MS) {
      this.refresh();
      return;
    }
    const isWaiting = this.state.fitting || performance.now() - this.heard < 5 * POLL_MS || this.isLost;
    if (!isWaiting) return;
    this.isPolling = true;
    try {
      const { heard } = this;
      const state = await request("state");
      const isQuiet = !this.outbox.jobs.length && heard === this.heard; // else it may be older than what is shown
      const wasLost = this.isLost;
      if (isQuiet && (this.receiveState(state) || wasLost) && this.mode === "single") this.refresh();
      if (!wasLost) this.heard = heard; // a poll is no reason for the next one
    } catch (error) {
      this.isLost = true;
      showBanner(this.failure || error.message);
    } finally {
      this.isPolling = false;
    }
  }

  handleKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const { key, target } = event;
    if (isZoomed() && handleZoomKey(key)) {
      event.preventDefault();
      return;
    }
    if (isZoomed() && this.mode === "grid") return;
    if ($("help").open || key === "Escape" || key === "Tab") return;
    if (target.closest("input, select, textarea")) return;
    const isButton = target.closest("button") && !target.closest(".tile");
    if ((key === "Enter" || key === " ") && isButton && !isZoomed()) return; // the button's own
    let isHandled = true;
    if (event.repeat && !key.startsWith("Arrow")) isHandled = true; // a key that is held down answers one photo
    else if (key === "u") this.undo();
    else if (key === "g") this.setMode(this.mode === "single" ? "grid" : "single");
    else if (key === "?") $("help").showModal();
    else isHandled = (this.mode === "single" ? this.single : this.grid).handleKey(key);
    if (isHandled) event.preventDefault();
  }
}

const page = new Page(await chooseBrowserName());
page.refresh(true);
