"use strict";

// Maps of tokens as pictures: a pixel a token, coloured by one stated scale for all images of a row.

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function floats(text) {
  const view = new DataView(bytes(text).buffer);
  return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

function picture(label, width, height, colour) {
  const canvas = element("canvas", { role: "img", "aria-label": label });
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
    const colour = (at) => pixels.subarray(3 * at, 3 * at + 3);
    const canvas = picture(`validation image ${index + 1}: ${image.class}`, image.width, image.height, colour);
    const guess = gates.guesses[index];
    const sure = guess.probability === null ? "" : `, ${Math.round(100 * guess.probability)}\u00a0%`;
    const seen = element("span", { class: "quiet" }, `seen as ${guess.class}${sure}`);
    const caption = element("figcaption", {}, element("strong", {}, image.class), element("br"), seen);
    return element("figure", {}, canvas, caption);
  });
  const note = element("p", { class: "quiet" }, "and what the network takes them for");
  const head = element("div", {}, element("h3", {}, "validation images"), note);
  at("images").replaceChildren(head, element("div", { class: "maps" }, ...figures));
}

// The map of one image, with its mean and extremes for those who do not see it.
function showMap(block, row, index, table) {
  const values = floats(row.values[index]);
  const finite = values.filter(Number.isFinite);
  const mean = finite.reduce((sum, value) => sum + value, 0) / finite.length;
  const lowest = finite.reduce((found, value) => Math.min(found, value), Infinity);
  const highest = finite.reduce((found, value) => Math.max(found, value), -Infinity);
  const image = `image ${index + 1} (${page.run.images[index].class})`;
  const range = `mean ${number(mean)}, from ${number(lowest)} to ${number(highest)}`;
  const colour = (token) => colourOf(values[token], row.low, row.high, table);
  const canvas = picture(`${row.name}, ${block.name}, ${image}: ${range}`, block.width, block.height, colour);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const token = (share, tokens) => Math.min(tokens - 1, Math.max(0, Math.floor(share * tokens)));
    const r = token((event.clientY - box.top) / box.height, block.height);
    const c = token((event.clientX - box.left) / box.width, block.width);
    const value = number(values[r * block.width + c]);
    write("under", `${row.name}, ${image}, token in row ${r + 1}, column ${c + 1}: ${value}`);
  });
  return canvas;
}

function showRow(block, row) {
  const { low, high } = row;
  const table = bytes(page.run.colours[row.colours]);
  const label = `${row.name}: colours from ${number(low)} to ${number(high)}`;
  const bar = picture(label, 256, 1, (index) => table.subarray(3 * index, 3 * index + 3));
  bar.className = "scale";
  const marks = low < 0 ? [low, 0, high] : [low, high];
  const ends = marks.map((value) => element("span", {}, value === 0 ? "0" : number(value)));
  const scale = element("div", { class: "ends", "aria-hidden": "true" }, ...ends);
  const head = element("div", {}, element("h3", {}, row.name), bar, scale);
  const maps = row.values.map((_, index) => showMap(block, row, index, table));
  return element("div", { class: "row" }, head, element("div", { class: "maps" }, ...maps));
}

function showGates() {
  const { run, gates } = page;
  if (!gates) return;
  const select = at("block");
  const names = gates.blocks.map((block) => block.name);
  if ([...select.options].map((option) => option.text).join() !== names.join())
    select.replaceChildren(...names.map((name, index) => element("option", { value: index }, name)));
  const block = gates.blocks[select.value];
  const epoch = Number((gates.step / run.steps_per_epoch).toFixed(2));
  write("gates-step", gates.step ? `after step ${count(gates.step)} (epoch ${epoch})` : "before the first step");
  showImages();
  at("gates").replaceChildren(...block.rows.map((row) => showRow(block, row)));
}
