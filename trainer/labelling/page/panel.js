// The side panel: numbers, expected accuracy, learning curve, photos per label.

import { $, element, formatNumber, formatPercent, pluralize, svg } from "./dom.js";

const WIDTH = 260, HEIGHT = 120, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 20;

const LATEST_MS = 200; // time after which the panel is drawn even if the page is busy

let waiting = null; // the state that is drawn next
const drawn = new Map(); // section -> what it was drawn from

/** Draw the panel once the page has nothing else to do: the next photo comes first. */
export function showState(state) {
  const isScheduled = waiting !== null;
  waiting = state;
  if (isScheduled) return;
  const draw = () => {
    const latest = waiting;
    waiting = null;
    drawState(latest);
  };
  if (window.requestIdleCallback) requestIdleCallback(draw, { timeout: LATEST_MS });
  else setTimeout(draw, LATEST_MS / 4);
}

/** Return whether a section has to be drawn: it was drawn from other values, or never. */
function hasChanged(section, values) {
  const key = JSON.stringify(values);
  const isOther = drawn.get(section) !== key;
  drawn.set(section, key);
  return isOther;
}

function drawState(state) {
  $("labelled").textContent = formatNumber(state.labelled);
  $("test").textContent = formatNumber(state.test);
  $("nothing").textContent = formatNumber(state.none_of_these);
  $("skipped").textContent = formatNumber(state.skipped);
  const done = state.labelled + state.none_of_these;
  $("progress").max = Math.max(1, done + state.remaining);
  $("progress").value = done;
  $("left").textContent = `${formatNumber(state.remaining)} left`;
  $("left").title = state.near_duplicates
    ? `${pluralize(state.near_duplicates, "photo")} nearly equal to a labelled one: not asked for` : "";
  $("output").textContent = `Saved to ${state.output.split(/[\\/]/).at(-1)}`;
  $("output").title = state.output;
  showAccuracy(state);
  if (hasChanged("curve", state.curve)) showCurve(state.curve);
  if (hasChanged("labels", [state.labels, state.per_label])) showLabels(state);
}

function showAccuracy({ accuracy, strategy, test }) {
  $("interval").hidden = !accuracy;
  $("measure").hidden = Boolean(accuracy) || strategy === "random" || strategy === "suspects";
  if (!accuracy) {
    $("accuracy").textContent = "–";
    $("accuracy-note").textContent = test
      ? "Measured after the next fit." : "Measured on photos chosen at random, which become the test set.";
    return;
  }
  $("accuracy").textContent = formatPercent(accuracy.value);
  $("accuracy-note").textContent = `${formatPercent(accuracy.low)} to ${formatPercent(accuracy.high)}`
    + ` (95\u00a0% interval), on ${pluralize(accuracy.n, "photo")} chosen at random`;
  const [reach, at] = $("interval").children;
  reach.style.left = `${100 * accuracy.low}%`;
  reach.style.width = `${100 * (accuracy.high - accuracy.low)}%`;
  at.style.left = `${100 * accuracy.value}%`;
}

function showCurve(curve) {
  $("curve-section").hidden = curve.length < 2;
  if (curve.length < 2) return;
  const first = curve[0], last = curve.at(-1);
  const x = (answers) => LEFT + (answers - first.answers) / Math.max(1, last.answers - first.answers) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - value) * (HEIGHT - TOP - BOTTOM);
  const join = (points) => points.map(([across, up]) => `${across.toFixed(1)},${up.toFixed(1)}`).join(" ");
  const title = `Accuracy by number of labels: ${formatPercent(first.accuracy.value)} with ${first.answers}, `
    + `${formatPercent(last.accuracy.value)} with ${last.answers}`;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img", "aria-label": title });
  for (const value of [0, 0.5, 1]) {
    drawing.append(
      svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, formatPercent(value)));
  }
  const band = [
    ...curve.map(({ answers, accuracy }) => [x(answers), y(accuracy.high)]),
    ...curve.toReversed().map(({ answers, accuracy }) => [x(answers), y(accuracy.low)]),
  ];
  drawing.append(
    svg("polygon", { points: join(band), class: "band" }),
    svg("polyline", { points: join(curve.map(({ answers, accuracy }) => [x(answers), y(accuracy.value)])), class: "line" }),
    svg("circle", { cx: x(last.answers), cy: y(last.accuracy.value), r: 3.5, class: "dot" }),
    svg("text", { x: LEFT, y: HEIGHT - 4 }, `${first.answers}`),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, pluralize(last.answers, "label")));
  $("curve").replaceChildren(drawing);
}

function showLabels({ labels, per_label: counts }) {
  const most = Math.max(1, ...Object.values(counts));
  $("no-labels").hidden = labels.length > 0;
  $("per-label").replaceChildren(...labels.map((label) => {
    const count = counts[label] ?? 0;
    const bar = element("i", { "aria-hidden": "true" });
    bar.style.width = `${100 * count / most}%`;
    return element("li", {}, element("bdi", {}, label), element("span", {}, formatNumber(count)), bar);
  }));
}
