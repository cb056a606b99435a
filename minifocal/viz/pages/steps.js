// The page: one step at a time, the map and the list that show where it stands, and the keys that move.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = DATA.colours;
const {steps, arrays, sources, summary} = DATA;
const byId = id => document.getElementById(id);
let VALUES = null;  // every number of the page, in the order of `arrays`

// The numbers are float32, their bytes sorted by significance, deflated and written in base 64.
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = planes.length / 4, bytes = new Uint8Array(planes.length);
  for (let n = 0; n < count; n++) for (let byte = 0; byte < 4; byte++) bytes[4 * n + byte] = planes[byte * count + n];
  return new Float32Array(bytes.buffer);
}

function values(number) {
  const {offset, shown} = arrays[number];
  return VALUES.subarray(offset, offset + shown.reduce((product, n) => product * n, 1));
}

const detail = {depth: 0, step: 0, most: Math.max(...steps.map(step => step.depth))};

// The steps at one level of detail: those of that depth, and those above it that hold nothing more.
function row(depth) { return steps.filter(step => step.depth === depth || (step.depth < depth && !step.steps.length)); }

function move(way) {
  const step = steps[detail.step];
  if (way === "in") {
    if (step.steps.length) go(step.steps[0], step.depth + 1);
  } else if (way === "out") {
    if (step.parent !== null) go(step.parent, step.depth - 1);
  } else {
    const here = row(detail.depth), place = here.findIndex(other => other.number === step.number);
    const next = here[place + (way === "next" ? 1 : -1)];
    if (next) go(next.number, detail.depth);
  }
}

let addressLater = 0;

function go(number, depth) {
  detail.depth = depth;
  show(number);
  // After a row of keys, once: browsers ignore an address that changes too often.
  clearTimeout(addressLater);
  addressLater = setTimeout(() => history.replaceState(null, "", "#" + steps[number].slug), 200);
}

function fromAddress() {
  clearTimeout(addressLater);
  const step = steps.find(other => "#" + other.slug === location.hash) || steps[0];
  if (step.depth > detail.depth || step.steps.length) detail.depth = step.depth;
  show(step.number);
}

function line(step) {  // from the whole pass down to the step
  const above = step.parent === null ? [] : line(steps[step.parent]);
  return [...above, step];
}

function link(step, attributes = {}) {
  return make("a", {href: "#" + step.slug, "data-step": step.number, ...attributes}, step.title);
}

const whenSeen = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) if (isIntersecting) { whenSeen.unobserve(target); target.heatMap.draw(); }
}, {rootMargin: "500px"});
window.addEventListener("beforeprint", () => document.querySelectorAll("#step canvas").forEach(canvas => canvas.heatMap.draw()));

function show(number) {
  const moved = number !== detail.step, step = steps[detail.step = number];
  const panel = byId("step"), focused = ["step", "list"].find(id => byId(id).contains(document.activeElement));
  whenSeen.disconnect();
  panel.replaceChildren(...stepContent(step));
  const here = row(detail.depth), place = here.findIndex(other => other.number === number);
  byId("position").textContent = `step ${place + 1} of ${here.length}, detail ${detail.depth + 1} of ${detail.most + 1}`;
  // Not `disabled`: that would take the focus, and the keys with it.
  const end = {back: place <= 0, next: place >= here.length - 1, in: !step.steps.length, out: step.parent === null};
  for (const [id, nowhere] of Object.entries(end)) byId(id).setAttribute("aria-disabled", nowhere);
  const open = new Set(line(step).map(other => other.number));
  for (const box of document.querySelectorAll("#map a"))
    box.toggleAttribute("aria-current", false) || (open.has(+box.dataset.step) && box.setAttribute("aria-current", "step"));
  showList(step, open);
  const box = document.querySelector("#map a[aria-current]");
  if (box) box.parentElement.scrollLeft = box.offsetLeft - box.parentElement.clientWidth / 2;
  document.title = `${step.title}, ${step.way} — a step through FocalNet`;
  // The link that led here is gone: its place keeps the focus.
  if (focused) (focused === "list" ? byId("list").querySelector("[aria-current]") : panel).focus({preventScroll: true});
  if (moved && panel.getBoundingClientRect().top < 0) panel.scrollIntoView();
  hideTip();
  say(`${step.title}, ${step.way}; step ${place + 1} of ${here.length}`);
}

function stepContent(step) {
  const back = step.way === "backward", sum = back && step.operation === "add";
  const trail = make("ol", {class: "trail", "aria-label": "Where this step stands"},
    ...line(step).slice(0, -1).map(above => make("li", {}, link(above))));
  const arrow = back ? "← backward" : "forward →";
  const content = [
    trail,
    make("h2", {}, step.title, " ", make("span", {class: "way " + step.way}, arrow)),
    make("p", {class: "says"}, step.says),
  ];
  if (step.path) content.push(make("p", {}, make("code", {}, step.path)));
  if (step.formulas.length) {
    const box = make("div", {class: "formula", role: "group", tabindex: 0, "aria-label": "Formula"});
    box.innerHTML = step.formulas.map(number => DATA.formulas[number]).join("");  // MathML of the page's maker
    content.push(box);
  }
  if (step.about) content.push(textBox(step.about, make("pre", {tabindex: 0, "aria-label": "About " + step.about}, DATA.about[step.about])));
  content.push(...step.sources.map(sourceBox));
  if (step.steps.length) content.push(make("h3", {}, "Inside, in order"),
    make("ol", {class: "parts"}, ...step.steps.map(number => make("li", {}, link(steps[number])))));
  content.push(make("h3", {}, back && !sum ? "Comes back" : "Goes in"), ...step.in.map(arrayFigure));
  if (step.settings.length) content.push(make("ul", {class: "kept settings"}, ...step.settings.map(([name, value]) => keptItem({name, value}))));
  if (step.kept.length) content.push(make("h3", {}, back ? "Taken from the cache" : "Kept in the cache, for the way back"),
    make("ul", {class: "kept"}, ...step.kept.map(item => keptItem(item))));
  content.push(make("h3", {}, back && !sum ? "Goes on: the gradients" : "Comes out"), ...step.out.map(arrayFigure));
  if (step.parameters.length) content.push(make("h3", {}, "Parameters, and the sizes of their gradients"),
    make("div", {class: "wide", tabindex: 0, role: "group", "aria-label": "Parameters"}, make("table", {class: "rows"},
      make("thead", {}, make("tr", {}, ...["parameter", "shape", "L2 norm of the gradient"].map(head => make("th", {scope: "col"}, head)))),
      make("tbody", {}, ...step.parameters.map(parameter => make("tr", {},
        make("td", {}, parameter.name), make("td", {}, shapeText(parameter.shape)),
        make("td", {class: "n"}, written(parameter.norm, 4))))))));
  return content;
}

function sourceBox(number) {
  const source = sources[number], code = make("pre", {tabindex: 0, "aria-label": "Source of " + source.name});
  for (const [where, text] of source.lines)
    code.append(make("span", {"aria-hidden": "true"}, String(where).padStart(4) + "  "), text + "\n");
  return textBox(`${source.file}: ${source.name}`, code);
}

function textBox(title, text) { return make("div", {class: "source"}, make("p", {}, title), text); }

function roomFor(element) { return Math.max(240, Math.min(element.clientWidth, 900) - 4); }

function arrayFigure(entry) {
  const array = arrays[entry.array], notes = [];
  if (entry.parameter) notes.push("the parameter " + entry.parameter);
  const part = array.shown.join() !== array.shape.join() ? `; shown: the first ${shapeText(array.shown)}` : "";
  const norm = array.shape.length ? `; L2 norm ${written(array.norm, 4)}` : "";
  const caption = make("figcaption", {}, make("code", {}, entry.name),
    make("span", {class: "soft"}, ` ${shapeText(array.shape)}${part}${norm}${notes.map(note => "; " + note).join("")}`));
  if (entry.from !== undefined) caption.append(make("span", {class: "soft"}, "; from ", link(steps[entry.from])));
  const figure = make("figure", {"data-name": entry.name}, caption);
  if (array.shape.length) {
    const map = new HeatMap(values(entry.array), array.shown,
      {whenSeen, name: entry.name, room: roomFor(byId("step")), channelsFirst: entry.channels_first, scale: scaleOf(array.low, array.high)});
    figure.append(make("div", {class: "map"}, map.canvas), scaleBar(map.scale));
  } else figure.append(make("p", {class: "number"}, written(values(entry.array)[0])));
  if (entry.check) figure.append(checkBox(entry));
  return figure;
}

function checkBox({name, check}) {
  const good = check.error <= DATA.tolerance[check.method];
  const box = make("details", {class: "check"}, make("summary", {},
    make("span", {class: good ? "good" : "bad"}, good ? "✓ " : "✗ "),
    `${check.rows.length} elements of ${name} against the ${check.method}: largest relative error ${written(check.error, 2)}`));
  box.append(make("div", {class: "wide", tabindex: 0, role: "group", "aria-label": `Elements of ${name}`}, make("table", {class: "rows"},
    make("thead", {}, make("tr", {}, ...["element", "by hand", "numeric", "relative error"].map(head => make("th", {scope: "col"}, head)))),
    make("tbody", {}, ...check.rows.map(([index, hand, numeric, error]) => make("tr", {},
      make("td", {}, index.join(", ")), make("td", {class: "n"}, written(hand)), make("td", {class: "n"}, written(numeric)),
      make("td", {class: "n"}, written(error, 2))))))));
  return box;
}

function keptItem(item) {
  const text = item.name ? [make("code", {}, item.name), " "] : [];
  if (item.value !== undefined) return make("li", {}, ...text, item.name ? "= " : "", item.value);
  if (item.array === undefined) return make("li", {}, ...text,
    `${item.type}: ${item.arrays} array${item.arrays > 1 ? "s" : ""}, ${item.numbers.toLocaleString("en")} numbers`);
  const array = arrays[item.array];
  const about = `${shapeText(array.shape)}${item.same ? `: the very array ${item.same}` : ""}`;
  const box = make("details", {ontoggle: () => {
    if (box.open && !box.querySelector("figure")) box.append(arrayFigure({name: item.name, array: item.array}));
  }}, make("summary", {}, ...text, about));
  return make("li", {}, box);
}

function drawMap() {
  const map = byId("map");
  // A box for each part of the network, and for each block of a stage; the way back stands below, from right to left.
  const boxes = top => top.steps.flatMap(number => {
    const part = steps[number], blocks = part.steps.filter(inner => steps[inner].path.includes(".blocks."));
    return blocks.length ? part.steps.map(inner => [steps[inner], `${part.title}: ${steps[inner].title}`]) : [[part, part.title]];
  });
  const [forward, loss, lossBack, backward] = steps.filter(step => step.depth === 0);
  const rows = [[...boxes(forward), [loss, "Loss"]], [...boxes(backward).reverse(), [lossBack, "Loss"]]];
  map.style.gridTemplateColumns = `auto repeat(${Math.max(rows[0].length, rows[1].length)}, minmax(98px, 1fr))`;
  rows.forEach((boxesOfRow, index) => {
    map.append(make("span", {}, index ? "backward ←" : "forward →"));
    for (const [step, title] of boxesOfRow)
      map.append(make("a", {href: "#" + step.slug, "data-step": step.number, class: step.way}, title));
  });
}

function showList(step, open) {
  const branch = number => {
    const other = steps[number];
    const item = make("li", {}, link(other, number === step.number ? {"aria-current": "step"} : {}));
    if (open.has(number) && other.steps.length) item.append(make("ul", {}, ...other.steps.map(branch)));
    return item;
  };
  const list = byId("list");
  list.replaceChildren(make("ul", {}, ...steps.filter(other => other.parent === null).map(other => branch(other.number))));
  const here = list.querySelector("[aria-current]");
  if (here) list.scrollTop = here.offsetTop - list.clientHeight / 2;
}

function drawHead() {
  const {classes, label} = summary, chances = values(summary.probabilities);
  byId("summary").textContent =
    `${summary.name}, through a network with ${summary.modulation} modulation and ${summary.parameters.toLocaleString("en")} ` +
    `parameters, and back from the loss of the class ${classes[label]}: ${written(summary.loss, 4)}.`;
  const picture = make("img", {src: DATA.picture, alt: "The image: " + summary.name});
  const order = [...chances.keys()].sort((one, other) => chances[other] - chances[one]).slice(0, 3);
  byId("answer").append(picture, make("table", {"aria-label": "The likeliest classes"}, make("tbody", {},
    ...order.map(n => make("tr", {}, make("td", {}, classes[n]), make("td", {}, `${(100 * chances[n]).toFixed(1)} %`))))));
}

function drawTheme() {
  const names = ["system", "light", "dark"];
  let chosen = 0;
  byId("theme").addEventListener("click", () => {
    chosen = (chosen + 1) % 3;
    const root = document.documentElement;
    if (chosen) root.dataset.theme = names[chosen]; else delete root.dataset.theme;
    byId("theme").setAttribute("aria-label", "Colours: " + (chosen ? names[chosen] : "as the system"));
  });
}

document.addEventListener("keydown", event => {
  const way = {ArrowRight: "next", ArrowLeft: "back", ArrowDown: "in", ArrowUp: "out"}[event.key];
  const typing = event.target.closest("input, select"), box = event.target.closest("pre, .wide, .formula");
  const scrolls = box && (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight);
  if (!way || typing || scrolls || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  move(way);
});

window.addEventListener("hashchange", fromAddress);
for (const way of ["back", "out", "in", "next"]) byId(way).addEventListener("click", () => move(way));
byId("skip").addEventListener("click", event => { event.preventDefault(); byId("step").focus(); });
let resizing = 0;
window.addEventListener("resize", () => {
  const width = document.documentElement.clientWidth;
  if (width !== resizing && VALUES) { resizing = width; show(detail.step); }
});

unpack(byId("values").textContent).then(numbers => {
  VALUES = numbers;
  resizing = document.documentElement.clientWidth;
  drawHead();
  drawTheme();
  drawMap();
  drawPlaygrounds();
  fromAddress();
  document.documentElement.dataset.ready = "true";
}).catch(error => {
  byId("summary").textContent = `This browser cannot show the page: ${error.message}`;
  throw error;
});

window.minifocal = {numerics, steps, arrays, values, written, move, detail};
