"use strict";

// The page: a document that the run changes, and what is shown of it. Names come from folders and files: they only ever
// become text.

const page = {}; // the document, as the run tells it
const at = (id) => document.getElementById(id);
const write = (id, text) => {
  if (at(id).textContent !== text) at(id).textContent = text;
};
const percent = (share) => `${(100 * share).toFixed(2)} %`;
const nats = (loss) => loss.toFixed(4);
const count = (number) => number.toLocaleString("en");
const rate = (lr) => (lr === 0 ? "0" : lr < 1e-3 ? lr.toExponential(2).replace("e-", "e−") : lr.toPrecision(3));
const number = (value) => (Number.isFinite(value) ? value.toPrecision(3).replace("-", "−") : "no number");

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children); // text stays text
  return made;
}

// Status, numbers and table

let link = "open"; // or "lost", or "gone"
let over = false;

// What became of the run: a kind, and a sentence.
function fate() {
  const told = page.status || { kind: "waiting", text: "waiting for the run" };
  const running = told.kind === "waiting" || told.kind === "training";
  if (told.kind === "failed") return { kind: "failed", text: `The run is over, it failed: ${told.text}` };
  if (!running) return { kind: told.kind, text: `The run is over: ${told.text}.` };
  if (over) return { kind: "stopped", text: "The run is over; it did not say how it ended." };
  if (link === "open") return told;
  const text =
    link === "lost"
      ? "The run does not answer: it was ended, or its machine sleeps. Shown is what came last; trying again."
      : "The run is no longer at this address: if it was started again, it printed a new one. Shown is what came last.";
  return { kind: "lost", text };
}

function showStatus() {
  const { kind, text } = fate();
  at("status").dataset.kind = kind;
  write("status-text", text);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function showNow() {
  const { run, now, epochs, status } = page;
  if (!run.total_steps) return;
  const step = now ? now.step : run.first_step;
  const last = epochs[epochs.length - 1];
  write("title", run.title || "A run");
  write("network", run.network);
  const epoch = Math.max(1, Math.ceil(step / run.steps_per_epoch)); // under way, or just done
  write("now-epoch", `${count(epoch)} of ${count(run.epochs)}`);
  write("now-step", `${count(step)} of ${count(run.total_steps)}`);
  if (now) {
    write("now-loss", nats(now.loss));
    write("now-accuracy", percent(now.accuracy));
    write("now-lr", rate(now.lr));
  }
  if (last) {
    write("now-val-loss", nats(last.val_loss));
    write("now-val-accuracy", percent(last.val_accuracy));
    const left = (run.total_steps - step) * (last.seconds / run.steps_per_epoch);
    write("now-left", status.kind === "training" ? duration(left) : "–");
  }
  at("bar").setAttribute("aria-valuemax", run.total_steps);
  at("bar").setAttribute("aria-valuenow", step);
  at("bar-done").style.width = `${(100 * step) / run.total_steps}%`;
  const accuracy = last ? `, ${percent(last.val_accuracy)}` : "";
  document.title = `${last ? last.epoch : 0}/${run.epochs}${accuracy} – ${run.title || "minifocal train"}`;
}

function showEpochs() {
  const { run, epochs } = page;
  const rows = at("epochs");
  const hundredths = (share) => (100 * share).toFixed(2);
  for (const record of epochs.slice(rows.childElementCount)) {
    const cells = [
      nats(record.train_loss),
      hundredths(record.train_accuracy),
      nats(record.val_loss),
      hundredths(record.val_accuracy),
      rate(record.lr),
      count(Math.round(record.images_per_second)),
    ];
    const head = element("th", { scope: "row" }, count(record.epoch));
    rows.prepend(element("tr", {}, head, ...cells.map((cell) => element("td", {}, cell))));
  }
  const last = epochs[epochs.length - 1];
  if (!last) return;
  const training = `training loss ${nats(last.train_loss)}, accuracy ${percent(last.train_accuracy)}`;
  const validation = `validation loss ${nats(last.val_loss)}, accuracy ${percent(last.val_accuracy)}`;
  write("summary", `Epoch ${last.epoch} of ${run.epochs}: ${training}; ${validation}.`);
}

function showMessages() {
  at("messages").hidden = !page.messages.length;
  at("messages").replaceChildren(...page.messages.map((message) => element("li", {}, message)));
}

function showCurves() {
  const { run, points, epochs, stride } = page;
  if (!run.total_steps) return;
  const byEpoch = document.querySelector("[name=axis]:checked").value === "epoch";
  const scale = byEpoch ? run.steps_per_epoch : 1;
  const axis = { xLabel: byEpoch ? "epoch" : "step", xHigh: run.total_steps / scale };
  const same = (value) => value;
  const wrong = (accuracy) => 100 * (1 - accuracy);
  const bySteps = (column, as) => points.map((point) => [point[0] / scale, as(point[column])]);
  const byEpochs = (key, as) => epochs.map((record) => [(record.epoch * run.steps_per_epoch) / scale, as(record[key])]);
  const three = (column, key, as, scatter) => [
    { points: bySteps(column, as), kind: "training", faint: true, scatter },
    { points: byEpochs(`train_${key}`, as), kind: "training" },
    { points: byEpochs(`val_${key}`, as), kind: "validation", dots: true },
  ];
  write("stride", stride === 1 ? "each step" : `mean of ${count(stride)} steps`);
  drawCurve(at("curve-loss"), three(1, "loss", same), axis);
  drawCurve(at("curve-wrong"), three(2, "accuracy", wrong, true), { ...axis, wrong: true });
  drawCurve(at("curve-lr"), [{ points: points.length ? bySteps(3, same) : byEpochs("lr", same), kind: "rate" }], axis);
  const [first, last] = [epochs[0], epochs[epochs.length - 1]];
  if (!last) return;
  const tell = (id, what, text) => at(id).setAttribute("aria-label", `${what} by ${axis.xLabel}: ${text}`);
  const way = (value) =>
    `validation from ${value("val", first)} after epoch ${first.epoch} to ${value("val", last)} after epoch ` +
    `${last.epoch}, where training has ${value("train", last)}`;
  tell("curve-loss", "Loss", way((part, record) => nats(record[`${part}_loss`])));
  tell("curve-wrong", "Wrong images", way((part, record) => percent(1 - record[`${part}_accuracy`])));
  tell("curve-lr", "Learning rate", `${rate(last.lr)} at the end of epoch ${last.epoch}`);
}

// Following the run

const shows = {
  status: [showStatus, showNow],
  run: [showNow, showEpochs, showCurves, showGates],
  now: [showNow],
  epochs: [showNow, showEpochs, showCurves],
  points: [showCurves],
  messages: [showMessages],
  gates: [showGates],
};
const waiting = new Set();

function showSoon(functions) {
  if (!waiting.size) setTimeout(show, 0); // not a frame's callback: a tab in the background has none
  functions.forEach((show) => waiting.add(show));
}

function show() {
  const due = [...waiting];
  waiting.clear();
  due.forEach((draw) => draw());
}

function receive({ kind, values }) {
  if (over) return; // another run at the same address is none of this page's
  if (kind === "lost" || kind === "gone" || kind === "over" || kind === "open") {
    link = kind === "over" ? "open" : kind;
    over = kind === "over";
    showSoon([showStatus]);
    return;
  }
  if (kind === "document") at("epochs").replaceChildren(); // it may be of another run, which took this one's place
  if (kind === "append") for (const [name, items] of Object.entries(values)) page[name].push(...items);
  else Object.assign(page, values);
  for (const name of Object.keys(values)) if (shows[name]) showSoon(shows[name]);
}

at("axis").addEventListener("change", showCurves);
at("block").addEventListener("change", showGates);
new ResizeObserver(() => page.run && showCurves()).observe(at("curves"));
if (window.SharedWorker) {
  const worker = new SharedWorker("live_feed.js");
  worker.port.onmessage = (event) => receive(event.data);
  worker.onerror = () => receive({ kind: "lost" }); // the server went before it gave the file
} else openFeed(receive);
