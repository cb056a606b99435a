// Arrays as heat maps: drawn on a canvas, every number to be read by pointer, finger or keyboard.
"use strict";

const SIX = 6;  // significant digits, as many as are stored

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

function written(value, digits = SIX) {
  if (value === 0) return "0";
  const text = Number(value).toPrecision(digits);
  return text.replace("-", "−").replace("e-", "e−").replace("e+", "e");
}

function shapeText(shape) { return shape.length ? "(" + shape.join(", ") + (shape.length === 1 ? ",)" : ")") : "a number"; }

// Where each number of an array stands: tiles of rows and columns. Maps (1, H, W, C) and kernels (k, k, C) have a tile
// for each channel; images (1, C, H, W) too; matrices and vectors are one tile.
function tiling(shape, channelsFirst) {
  const [a, b, c, d] = shape;
  if (shape.length === 4 && channelsFirst)
    return {tiles: a * b, rows: c, columns: d, flat: (t, r, q) => (t * c + r) * d + q};
  if (shape.length === 4)
    return {tiles: a * d, rows: b, columns: c, flat: (t, r, q) => ((Math.floor(t / d) * b + r) * c + q) * d + t % d};
  if (shape.length === 3) return {tiles: c, rows: a, columns: b, flat: (t, r, q) => (r * b + q) * c + t};
  if (shape.length === 2) return {tiles: 1, rows: a, columns: b, flat: (t, r, q) => r * b + q};
  return {tiles: 1, rows: 1, columns: shape.length ? a : 1, flat: (t, r, q) => q};
}

function indexOf(flat, shape) {
  const index = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index.unshift(flat % shape[axis]);
    flat = Math.floor(flat / shape[axis]);
  }
  return index;
}

// One scale for a whole array: around zero if any number is negative, else from zero up.
function scaleOf(low, high) {
  const signed = low < 0, most = signed ? Math.max(-low, high) : high;
  return {signed, most: most || 1, colours: signed ? COLOURS.signed : COLOURS.positive};
}

function colourOf(value, scale) {
  const share = scale.signed ? 0.5 + value / scale.most / 2 : value / scale.most;
  const last = scale.colours.length - 1;
  const place = Math.min(Math.max(share, 0), 1) * last, left = Math.min(Math.floor(place), last - 1);
  const [from, to] = [scale.colours[left], scale.colours[left + 1]];
  return from.map((channel, n) => Math.round(channel + (place - left) * (to[n] - channel)));
}

class HeatMap {
  // values: flat numbers of `shape`. options: name, room (pixels across), tallest, channelsFirst, scale, pick(flat),
  // hover(flat), and whenSeen, an observer: it is drawn when it comes into view, not before.
  constructor(values, shape, options) {
    Object.assign(this, {values, shape, options, tiling: tiling(shape, options.channelsFirst), cursor: 0});
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    this.scale = options.scale || scaleOf(low, high);
    this.canvas = make("canvas", {
      tabindex: 0, role: "application", "aria-roledescription": "heat map",  // a screen reader lets it have the arrow keys
      "aria-label": `${options.name}, shape ${shapeText(shape)}, from ${written(low, 3)} to ${written(high, 3)}; arrow keys read numbers`,
      onpointermove: event => this.point(event), onpointerdown: event => this.point(event),
      // A finger that is lifted leaves what it pointed at to be read.
      onpointerleave: event => event.pointerType === "mouse" && hideTip(), onpointercancel: hideTip, onblur: () => { hideTip(); this.draw(); },
      onfocus: () => this.canvas.matches(":focus-visible") && this.tell(this.cursor),
      onclick: event => this.pick(this.at(event)), onkeydown: event => this.key(event),
    });
    this.canvas.heatMap = this;
    if (options.whenSeen) { this.size(); options.whenSeen.observe(this.canvas); }
    else this.draw();
  }

  place() {
    const {tiles, rows, columns} = this.tiling, gap = tiles > 1 ? 4 : 0;
    const room = this.options.room, tallest = this.options.tallest || 220;
    for (let cell = this.options.cell || 16; ; cell--) {
      const across = Math.max(1, Math.min(tiles, Math.floor((room + gap) / (columns * cell + gap))));
      const down = Math.ceil(tiles / across);
      const width = across * (columns * cell + gap) - gap, height = down * (rows * cell + gap) - gap;
      if ((width <= room && height <= tallest) || cell <= 2) return {cell, gap, across, width, height};
    }
  }

  size() {
    const {width, height} = this.placed = this.place(), {canvas} = this;
    canvas.style.width = width + "px"; canvas.style.height = height + "px";
  }

  draw(marked = null) {
    this.size();
    const {tiles, rows, columns, flat} = this.tiling, {cell, gap, across, width, height} = this.placed;
    const sharp = window.devicePixelRatio || 1, canvas = this.canvas;
    canvas.width = Math.round(width * sharp); canvas.height = Math.round(height * sharp);
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    for (let t = 0; t < tiles; t++) {
      const left = (t % across) * (columns * cell + gap), top = Math.floor(t / across) * (rows * cell + gap);
      for (let r = 0; r < rows; r++) for (let q = 0; q < columns; q++) {
        pen.fillStyle = `rgb(${colourOf(this.values[flat(t, r, q)], this.scale)})`;
        pen.fillRect(left + q * cell, top + r * cell, cell, cell);
      }
    }
    for (const one of [].concat(marked === null ? [] : marked)) {
      const [left, top] = this.corner(one);
      pen.strokeStyle = "#000"; pen.lineWidth = 3; pen.strokeRect(left + 1, top + 1, cell - 2, cell - 2);
      pen.strokeStyle = "#fff"; pen.lineWidth = 1; pen.strokeRect(left + 1, top + 1, cell - 2, cell - 2);
    }
  }

  corner(visible) {  // of the visible-th cell, counted tile by tile
    const {rows, columns} = this.tiling, {cell, gap, across} = this.placed;
    const t = Math.floor(visible / (rows * columns)), r = Math.floor(visible / columns) % rows, q = visible % columns;
    return [(t % across) * (columns * cell + gap) + q * cell, Math.floor(t / across) * (rows * cell + gap) + r * cell];
  }

  at(event) {
    const {tiles, rows, columns} = this.tiling, {cell, gap, across} = this.placed;
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const across_ = columns * cell + gap, down_ = rows * cell + gap;
    const t = Math.floor(y / down_) * across + Math.floor(x / across_);
    const q = Math.floor((x % across_) / cell), r = Math.floor((y % down_) / cell);
    const inside = t >= 0 && t < tiles && q >= 0 && q < columns && r >= 0 && r < rows && x >= 0 && y >= 0;
    return inside && x < across * across_ ? (t * rows + r) * columns + q : null;
  }

  flat(visible) {
    const {rows, columns, flat} = this.tiling;
    return flat(Math.floor(visible / (rows * columns)), Math.floor(visible / columns) % rows, visible % columns);
  }

  text(visible) {
    const flat = this.flat(visible), index = indexOf(flat, this.shape);
    return `${this.options.name}[${index.join(", ")}] = ${written(this.values[flat])}`;
  }

  point(event) {
    const visible = this.at(event);
    if (visible === null) return hideTip();
    showTip(this.text(visible), event.clientX, event.clientY);
    if (this.options.hover) this.options.hover(this.flat(visible));
    return undefined;
  }

  pick(visible) {
    if (visible === null) return;
    this.cursor = visible;
    if (this.options.pick) this.options.pick(this.flat(visible));
  }

  tell(visible) {
    this.cursor = visible;
    this.draw(visible);
    const [left, top] = this.corner(visible), frame = this.canvas.parentElement;
    if (frame) {  // a large map scrolls in its frame
      frame.scrollLeft = Math.max(left - frame.clientWidth + 40, Math.min(frame.scrollLeft, left - 20));
      frame.scrollTop = Math.max(top - frame.clientHeight + 40, Math.min(frame.scrollTop, top - 20));
    }
    const box = this.canvas.getBoundingClientRect();
    showTip(this.text(visible), box.left + left, box.top + top);
    say(this.text(visible));
    if (this.options.hover) this.options.hover(this.flat(visible));
  }

  key(event) {
    const {tiles, rows, columns} = this.tiling, size = rows * columns;
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: size, PageUp: -size}[event.key];
    if (event.key === "Escape") { this.canvas.blur(); event.stopPropagation(); return; }
    if (event.key === "Enter" || event.key === " ") this.pick(this.cursor);
    else if (step === undefined) return;
    else this.tell(Math.min(Math.max(this.cursor + step, 0), tiles * size - 1));
    event.preventDefault();
    event.stopPropagation();
  }
}

function scaleBar(scale) {
  const stops = scale.colours.map(colour => `rgb(${colour})`).join(", ");
  return make("div", {class: "scale"},
    make("span", {class: "number"}, scale.signed ? written(-scale.most, 3) : "0"),
    make("i", {style: `background: linear-gradient(to right, ${stops})`}),
    make("span", {class: "number"}, written(scale.most, 3)));
}

function showTip(text, x, y) {
  const tip = document.getElementById("tip");
  tip.textContent = text;
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(4, Math.min(x + 14, room)) + "px";
  tip.style.top = (y > 60 ? y - 36 : y + 22) + "px";
}

function hideTip() { document.getElementById("tip").hidden = true; }

document.addEventListener("pointerdown", event => event.target.heatMap || hideTip());

function say(text) { document.getElementById("said").textContent = text; }
