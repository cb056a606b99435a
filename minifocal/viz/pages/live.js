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

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function floats(text) {
  const view = new DataView(bytes(text).buffer);
  return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

// Status, numbers and table

let link = "open"; // or "lost"
let over = false;

// What became of the run: a kind, and a sentence.
function fate() {
  const told = page.status || { kind: "waiting", text: "waiting for the run" };
  const running = told.kind === "waiting" || told.kind === "training";
  if (told.kind === "failed") return { kind: "failed", text: `The run is over, it failed: ${told.text}` };
  if (!running) return { kind: told.kind, text: `The run is over: ${told.text}.` };
  if (over) return { kind: "stopped", text: "The run is over; it did not say how it ended." };
  if (link === "open") return told;
  return { kind: "lost", text: "The run does not answer: it was ended, or its machine sleeps. Shown is what came last; trying again." };
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
    write("now-left", status.kind === "training" ? duration((run.total_steps - step) * (last.seconds / run.steps_per_epoch)) : "–");
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
  if (rows.childElementCount > epochs.length) rows.replaceChildren();
  for (const record of epochs.slice(rows.childElementCount)) {
    const cells = [nats(record.train_loss), (100 * record.train_accuracy).toFixed(2), nats(record.val_loss), (100 * record.val_accuracy).toFixed(2), rate(record.lr), count(Math.round(record.images_per_second))];
    rows.prepend(element("tr", {}, element("th", { scope: "row" }, count(record.epoch)), ...cells.map((cell) => element("td", {}, cell))));
  }
  const last = epochs[epochs.length - 1];
  if (last)
    write("summary", `Epoch ${last.epoch} of ${run.epochs}: training loss ${nats(last.train_loss)}, accuracy ${percent(last.train_accuracy)}; validation loss ${nats(last.val_loss)}, accuracy ${percent(last.val_accuracy)}.`);
  at("messages").hidden = !page.messages.length;
  at("messages").replaceChildren(...page.messages.map((message) => element("li", {}, message)));
}

function showCurves() {
  const { run, points, epochs, stride } = page;
  if (!run.total_steps) return;
  const byEpoch = document.querySelector("[name=axis]:checked").value === "epoch";
  const scale = byEpoch ? run.steps_per_epoch : 1;
  const along = (column, number = (value) => value) => points.map((point) => [point[0] / scale, number(point[column])]);
  const after = (key, number = (value) => value) => epochs.map((record) => [(record.epoch * run.steps_per_epoch) / scale, number(record[key])]);
  const wrong = (accuracy) => 100 * (1 - accuracy);
  const axis = { xLabel: byEpoch ? "epoch" : "step", xHigh: run.total_steps / scale, wholeX: true };
  const three = (column, key, number, scatter) => [
    { points: along(column, number), kind: "training", faint: true, scatter },
    { points: after(`train_${key}`, number), kind: "training" },
    { points: after(`val_${key}`, number), kind: "validation", dots: true },
  ];
  write("stride", stride === 1 ? "each step" : `mean of ${count(stride)} steps`);
  drawCurve(at("curve-loss"), three(1, "loss"), axis);
  drawCurve(at("curve-wrong"), three(2, "accuracy", wrong, true), { ...axis, wrong: true });
  drawCurve(at("curve-lr"), [{ points: points.length ? along(3) : after("lr"), kind: "rate" }], axis);
  const last = epochs[epochs.length - 1];
  if (!last) return;
  const from = epochs[0];
  at("curve-loss").setAttribute("aria-label", `Loss by ${axis.xLabel}: validation from ${nats(from.val_loss)} after epoch ${from.epoch} to ${nats(last.val_loss)} after epoch ${last.epoch}, training ${nats(last.train_loss)}`);
  at("curve-wrong").setAttribute("aria-label", `Wrong images by ${axis.xLabel}: validation from ${percent(1 - from.val_accuracy)} after epoch ${from.epoch} to ${percent(1 - last.val_accuracy)} after epoch ${last.epoch}, training ${percent(1 - last.train_accuracy)}`);
  at("curve-lr").setAttribute("aria-label", `Learning rate by ${axis.xLabel}: ${rate(last.lr)} at the end of epoch ${last.epoch}`);
}

// Gates

function picture(width, height, colour) {
  const canvas = element("canvas", { role: "img" });
  [canvas.width, canvas.height] = [width, height];
  const pixels = new ImageData(width, height);
  for (let index = 0; index < width * height; index++) {
    const [red, green, blue] = colour(index);
    pixels.data.set([red, green, blue, 255], 4 * index);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// As Matplotlib does it: 256 colours of equal width. What is no number is grey.
function colourOf(value, low, high, table) {
  if (!Number.isFinite(value)) return [128, 128, 128];
  const index = Math.min(255, Math.max(0, Math.floor((256 * (value - low)) / (high - low))));
  return table.subarray(3 * index, 3 * index + 3);
}

function showImages() {
  const { run, gates } = page;
  const figures = run.images.map((image, index) => {
    const pixels = bytes(image.pixels);
    const canvas = picture(image.width, image.height, (token) => pixels.subarray(3 * token, 3 * token + 3));
    canvas.setAttribute("aria-label", `validation image ${index + 1}: ${image.class}`);
    const guess = gates.guesses[index];
    const sure = guess.probability === null ? "" : `, ${Math.round(100 * guess.probability)}\u00a0%`;
    return element("figure", {}, canvas, element("figcaption", {}, element("strong", {}, image.class), element("br"), element("span", { class: "quiet" }, `seen as ${guess.class}${sure}`)));
  });
  const head = element("div", {}, element("h3", {}, "validation images"), element("p", { class: "quiet" }, "and what the network takes them for"));
  at("images").replaceChildren(head, element("div", { class: "maps" }, ...figures));
}

function showRow(block, row) {
  const { run } = page;
  const table = bytes(run.colours[row.colours]);
  const { low, high } = row;
  const maps = row.values.map((text, index) => {
    const values = floats(text);
    const canvas = picture(block.width, block.height, (token) => colourOf(values[token], low, high, table));
    const finite = values.filter(Number.isFinite);
    const extreme = (choose, start) => number(finite.reduce((found, value) => choose(found, value), start));
    const mean = finite.reduce((sum, value) => sum + value, 0) / finite.length;
    const range = `mean ${number(mean)}, from ${extreme(Math.min, Infinity)} to ${extreme(Math.max, -Infinity)}`;
    canvas.setAttribute("aria-label", `${row.name}, ${block.name}, image ${index + 1} (${run.images[index].class}): ${range}`);
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (position, size, tokens) => Math.min(tokens - 1, Math.max(0, Math.floor((position / size) * tokens)));
      const [r, c] = [place(event.clientY - box.top, box.height, block.height), place(event.clientX - box.left, box.width, block.width)];
      write("under", `${row.name}, image ${index + 1} (${run.images[index].class}), token in row ${r + 1}, column ${c + 1}: ${number(values[r * block.width + c])}`);
    });
    return canvas;
  });
  const bar = picture(256, 1, (index) => table.subarray(3 * index, 3 * index + 3));
  bar.className = "scale";
  bar.setAttribute("aria-label", `${row.name}: colours from ${number(low)} to ${number(high)}`);
  const ends = [low, ...(low < 0 ? [0] : []), high].map((value) => element("span", {}, value === 0 ? "0" : number(value)));
  const head = element("div", {}, element("h3", {}, row.name), bar, element("div", { class: "ends", "aria-hidden": "true" }, ...ends));
  return element("div", { class: "row" }, head, element("div", { class: "maps" }, ...maps));
}

function showGates() {
  const { run, gates } = page;
  if (!gates) return;
  const select = at("block");
  const names = gates.blocks.map((block) => block.name);
  if (select.options.length !== names.length) select.replaceChildren(...names.map((name, index) => element("option", { value: index }, name)));
  const block = gates.blocks[select.value];
  const epoch = gates.step / run.steps_per_epoch;
  write("gates-step", gates.step ? `after step ${count(gates.step)} (epoch ${Number(epoch.toFixed(2))})` : "before the first step");
  showImages();
  at("gates").replaceChildren(...block.rows.map((row) => showRow(block, row)));
}

// Following the run

const shows = { status: [showStatus, showNow], run: [showNow, showEpochs, showCurves, showGates], now: [showNow], epochs: [showNow, showEpochs, showCurves], points: [showCurves], messages: [showEpochs], gates: [showGates] };
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
  if (kind === "lost" || kind === "over" || kind === "open") {
    link = kind === "lost" ? "lost" : "open";
    over = kind === "over";
    showSoon([showStatus]);
    return;
  }
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
