"use strict";

// Curves as SVG, drawn in the pixels of the page so that text keeps its size on a phone.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 50, right: 12, top: 10, bottom: 38 };

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count, whole) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-9); at++) found.push(at * step);
  return found;
}

function plain(value) {
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(0).replace("e-", "e−") : String(Number(value.toPrecision(3)));
}

// From 0 to 1 evenly, then by powers of ten: small shares of errors stay apart, and 0 has its place.
const wrongScale = (value) => (value < 1 ? value : 1 + Math.log10(value)) / 3;

// Draw lines [{points: [[x, y], ...], kind, faint, dots, scatter}] into an <svg>: `dots` sets some on the line,
// `scatter` draws no line but dots.
function drawCurve(svg, lines, { xLabel, xHigh, wrong }) {
  const { width, height } = svg.getBoundingClientRect();
  if (!width) return;
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  let yHigh = 0;
  for (const line of lines) for (const point of line.points) yHigh = Math.max(yHigh, point[1]);
  yHigh = (yHigh || 1) * 1.04;
  const yTicks = wrong ? [0, 1, 10, 100] : ticks(0, yHigh, 4);
  const x = (value) => MARGIN.left + ((right - MARGIN.left) * value) / xHigh;
  const y = (value) => bottom - (bottom - MARGIN.top) * (wrong ? wrongScale(value) : value / yHigh);
  const parts = [];
  for (const tick of yTicks) {
    parts.push(shape("line", { class: "gridline", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) }));
    parts.push(shape("text", { x: MARGIN.left - 7, y: y(tick) + 4, "text-anchor": "end" }, plain(tick)));
  }
  for (const tick of ticks(0, xHigh, width < 330 ? 3 : 5, true)) {
    const text = tick.toLocaleString("en");
    const fits = x(tick) + 3.8 * text.length < width;
    parts.push(shape("line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }));
    const place = fits ? { x: x(tick), "text-anchor": "middle" } : { x: width, "text-anchor": "end" };
    parts.push(shape("text", { ...place, y: bottom + 17 }, text));
  }
  parts.push(shape("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
  parts.push(shape("text", { x: (MARGIN.left + right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
  for (const { points, kind, faint, dots, scatter } of lines) {
    if (points.length > 1) {
      const path = points.map(([a, b]) => `${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join(scatter ? "h0M" : "L");
      const style = `line ${kind}${faint ? " faint" : ""}${scatter ? " scatter" : ""}`;
      parts.push(shape("path", { class: style, d: `M${path}${scatter ? "h0" : ""}` }));
    }
    if (points.length === 1 || (dots && points.length * 9 < right - MARGIN.left))
      for (const [a, b] of points) parts.push(shape("circle", { class: `point ${kind}`, cx: x(a), cy: y(b), r: 2.5 }));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
}
