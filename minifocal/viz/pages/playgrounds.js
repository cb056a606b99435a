// Two playgrounds: a depthwise convolution and its way back, and gates that choose among levels.
"use strict";

function choice(label, names, onchange, id) {
  const select = make("select", {id}, ...names.map((name, value) => make("option", {value}, name)));
  select.addEventListener("change", () => onchange(+select.value));
  return make("label", {}, label, select);
}

// Makes anew what stands in a place, and gives the focus to the successor of what had it.
function remake(place, act) {
  const before = document.activeElement, {id, heatMap} = before;
  const inside = place.contains(before);
  act();
  const after = inside && byId(id);
  if (!after || after === before) return;
  if (heatMap) after.heatMap.cursor = heatMap.cursor;
  after.focus({preventScroll: true});
}

function panel(name, values, shape, options = {}) {
  const map = new HeatMap(values, shape, {name, room: 200, tallest: 200, cell: 26, ...options});
  map.canvas.id = options.id;
  return [map, make("figure", {"data-name": name},
    make("figcaption", {}, make("code", {}, name), make("span", {class: "soft"}, ` ${shapeText(shape)}`)),
    make("div", {class: "map"}, map.canvas), scaleBar(map.scale))];
}

// One channel of a map (1, H, W, C) or of a kernel (k, k, C), flat.
function channelOf(number, channel) {
  const shown = arrays[number].shown, C = shown[shown.length - 1], all = values(number);
  return Float64Array.from({length: all.length / C}, (_, n) => all[n * C + channel]);
}

function drawConv(place) {
  const blocks = summary.playground, state = {block: 0, level: 0, channel: 0, x: null, H: 0, W: 0, k: 3, kernel: null, back: false, dz: null, at: 0};
  const KERNELS = {
    "the network's": null,
    "the token itself": k => (i, j) => +(i === (k - 1) / 2 && j === (k - 1) / 2),
    "a mean": k => () => 1 / (k * k),
    "an edge": k => (i, j) => (j - (k - 1) / 2) / (k * k),
    "of zeros": () => () => 0,
  };
  const controls = make("div", {class: "controls"}), kernelBox = make("div", {class: "kernel", role: "group", "aria-label": "Kernel"});
  const maps = make("div", {class: "maps"}), sum = make("p", {class: "sum number"});
  place.append(
    make("h3", {id: "conv-title"}, "Depthwise convolution, one channel"),
    make("p", {class: "says"}, "Change a weight, or click a token of the map to set it to one or to zero. Point at a token of z: the sum that it is appears below, with the tokens that it sees marked."),
    controls, make("p", {class: "soft"}, "kernel K"), kernelBox, maps, sum);

  function source() { return blocks[state.block]; }

  function kernelNames() { return Object.keys(KERNELS).filter(name => KERNELS[name] || source().kernels.length); }

  function takeMap(kind) {
    const number = source().maps[state.level];
    [, state.H, state.W] = arrays[number].shown;
    const {H, W} = state;
    if (kind === 0) state.x = channelOf(number, state.channel);
    else if (kind === 1) state.x = Float64Array.from({length: H * W}, (_, n) => +(n === Math.floor(H / 2) * W + Math.floor(W / 2)));
    else state.x = Float64Array.from({length: H * W}, (_, n) => (n % W) / W + Math.floor(n / W) / H);
    state.dz = Float64Array.from({length: H * W}, (_, n) => +(n === Math.floor(H / 2) * W + Math.floor(W / 2)));
    state.at = Math.floor(H / 2) * W + Math.floor(W / 2);
  }

  function takeKernel(name) {
    if (KERNELS[name] === null) {
      const number = source().kernels[state.level];
      state.k = arrays[number].shown[0];
      state.kernel = channelOf(number, state.channel);
    } else {
      const {k} = state, fill = KERNELS[name](k);
      state.kernel = Float64Array.from({length: k * k}, (_, n) => fill(Math.floor(n / k), n % k));
    }
    drawKernel();
  }

  function drawKernel() {
    const {k} = state;
    kernelBox.style.gridTemplateColumns = `repeat(${k}, auto)`;
    kernelBox.replaceChildren(...Array.from(state.kernel, (weight, n) => make("input", {
      type: "number", step: "any", value: +weight.toPrecision(3), "aria-label": `K[${Math.floor(n / k)}, ${n % k}]`,
      oninput: event => { state.kernel[n] = Number(event.target.value) || 0; draw(); },
    })));
  }

  function seen(at) {  // the tokens that token `at` of z looks at, with the weight of each
    const {H, W, k} = state, r = (k - 1) / 2, h = Math.floor(at / W), w = at % W, found = [];
    for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) {
      const u = h + i - r, v = w + j - r;
      if (u >= 0 && u < H && v >= 0 && v < W) found.push([u * W + v, i * k + j]);
    }
    return found;
  }

  let xMap = null;
  function explain(at) {
    state.at = at;
    const terms = seen(at), z = terms.reduce((total, [n, m]) => total + state.kernel[m] * state.x[n], 0);
    xMap.draw(terms.map(([n]) => n));
    const shown = terms.slice(0, 9).map(([n, m]) => `${written(state.kernel[m], 3)}·${written(state.x[n], 3)}`).join(" + ");
    sum.textContent = `z[${Math.floor(at / state.W)}, ${at % state.W}] = ${shown}${terms.length > 9 ? ` + ${terms.length - 9} more` : ""} = ${written(z)}`;
  }

  function draw() {
    const {x, H, W, kernel, k, dz} = state, shape = [H, W];
    const z = numerics.depthwiseConv(x, H, W, kernel, k);
    state.z = z;
    const [one, xFigure] = panel("x", x, shape, {id: "conv-x", pick: n => { x[n] = x[n] ? 0 : 1; draw(); }});
    xMap = one;
    const figures = [xFigure, panel("z", z, shape, {id: "conv-z", hover: explain, pick: explain})[1]];
    if (state.back) {
      const {dx, dkernel} = numerics.depthwiseConvBackward(dz, x, H, W, kernel, k);
      Object.assign(state, {dx, dkernel});
      figures.push(panel("dz", dz, shape, {id: "conv-dz", pick: n => { dz[n] = dz[n] ? 0 : 1; draw(); }})[1],
        panel("dx", dx, shape, {id: "conv-dx"})[1], panel("dK", dkernel, [k, k], {id: "conv-dK"})[1]);
    }
    remake(maps, () => { maps.replaceChildren(...figures); explain(state.at); });
  }

  function restart() {
    const depth = arrays[source().maps[0]].shown[3];
    state.channel = Math.min(Math.max(Math.round(state.channel) || 0, 0), depth - 1);
    takeMap(0); takeKernel(kernelNames()[0]); remake(controls, () => drawControls(depth)); draw();
  }

  function drawControls(depth) {
    const block = source(), names = kernelNames();
    const channel = make("input", {type: "number", id: "conv-channel", min: 0, max: depth - 1, value: state.channel,
      onchange: event => { state.channel = Number(event.target.value); restart(); }});
    const pick = (label, list, value, act, id) => {
      const box = choice(label, list, act, id);
      box.lastChild.value = value;
      return box;
    };
    const items = [pick("block", blocks.map(other => other.name), state.block, n => { state.block = n; state.level = 0; restart(); }, "conv-block")];
    if (block.kernels.length) items.push(pick("level", block.kernels.map((_, n) => String(n + 1)), state.level, n => { state.level = n; restart(); }, "conv-level"));
    else items.push(pick("kernel of", ["3 × 3", "5 × 5", "7 × 7"], (state.k - 3) / 2, n => { state.k = 2 * n + 3; restart(); }, "conv-size"));
    items.push(make("label", {}, `channel, 0 to ${depth - 1}`, channel),
      choice("map x", [block.kernels.length ? "the network's" : "the query", "one in the middle", "a ramp"], n => { takeMap(n); draw(); }, "conv-map"),
      choice("kernel K", names, n => { takeKernel(names[n]); draw(); }, "conv-kernel"));
    const back = make("input", {type: "checkbox", id: "conv-back", onchange: event => { state.back = event.target.checked; draw(); }});
    back.checked = state.back;
    items.push(make("label", {}, "the way back", back));
    controls.replaceChildren(...items);
  }

  restart();
  return state;
}

function drawGating(place) {
  const blocks = summary.playground, focal = summary.modulation === "focal";
  const state = {block: 0, factors: [], token: 0};
  const controls = make("div", {class: "controls"}), maps = make("div", {class: "maps"});
  const table = make("div", {class: "wide", tabindex: 0, role: "group", "aria-label": "The chosen token, level by level"});
  place.append(
    make("h3", {id: "gating-title"}, "Gates"),
    make("p", {class: "says"}, focal
      ? "Each level's context times its gate, added up, gives the aggregate; the linear map h makes the modulator of it; the query is multiplied by that. Turn a level down, up or round, and see what the modulator loses."
      : "The contexts are added up and multiplied by one gate a channel: the modulator; the query is multiplied by that. Turn a context down, up or round, and see what the modulator loses."),
    controls, maps, table);

  function compute(block, factors) {
    const [, H, W, C] = arrays[block.q].shown, T = H * W;
    const contexts = block.contexts.map(values), gates = values(block.gates);
    const sum = (focal ? numerics.gatedSum : numerics.channelGatedSum)(contexts, gates, factors, T, C);
    const modulator = focal ? numerics.linear(sum, values(block.weight), values(block.bias), T, C, C) : sum;
    return {H, W, C, T, contexts, gates, sum, modulator, product: numerics.multiply(values(block.q), modulator)};
  }

  function draw() {
    const block = blocks[state.block], now = compute(block, state.factors), as = compute(block, state.factors.map(() => 1));
    Object.assign(state, {now});
    const {H, W, C, T} = now, shape = [H, W], before = numerics.norms(as.modulator, T, C), productBefore = numerics.norms(as.product, T, C);
    const scale = scaleOf(0, 1.5 * Math.max(...before)), productScale = scaleOf(0, 1.5 * Math.max(...productBefore));
    const options = {pick: n => { state.token = n; draw(); }};
    const [one, first] = panel("|modulator|", numerics.norms(now.modulator, T, C), shape, {...options, scale, id: "gating-modulator"});
    const [two, second] = panel("|q × modulator|", numerics.norms(now.product, T, C), shape, {...options, scale: productScale, id: "gating-product"});
    remake(maps, () => { maps.replaceChildren(first, second); one.draw(state.token); two.draw(state.token); });
    const t = state.token, L = now.contexts.length;
    const norm = (x, whole) => written(numerics.norms(x.subarray(whole ? 0 : t * C, whole ? C : (t + 1) * C), 1, C)[0], 4);
    const gate = l => focal ? written(now.gates[t * L + l], 4)
      : written(now.gates.subarray(t * C, (t + 1) * C).reduce((sum, g) => sum + g, 0) / C, 4);
    const rows = now.contexts.map((context, l) => [levelName(l, L), gate(l), norm(context, context.length === C), written(state.factors[l], 3)]);
    const total = x => written(numerics.norms(x.subarray(t * C, (t + 1) * C), 1, C)[0], SIX);
    table.replaceChildren(make("p", {}, `Token at row ${Math.floor(t / W)}, column ${t % W} (click another one)`),
      make("table", {class: "rows"},
        make("thead", {}, make("tr", {}, ...["level", focal ? "gate" : "gate, mean", "|context|", "times"].map(head => make("th", {scope: "col"}, head)))),
        make("tbody", {}, ...rows.map(cells => make("tr", {}, ...cells.map((cell, n) => make("td", n ? {class: "n"} : {}, cell)))))),
      make("p", {class: "number"}, `|modulator| ${total(now.modulator)} (in the pass ${total(as.modulator)}), |q × modulator| ${total(now.product)} (${total(as.product)})`));
  }

  function levelName(l, count) {
    if (focal && l === count - 1) return "whole map";
    return summary.modulation === "box_mean" ? "all levels" : `level ${l + 1}`;  // its levels are kept as their sum
  }

  function restart() {
    const block = blocks[state.block], L = block.contexts.length;
    state.factors = block.contexts.map(() => 1);
    state.token = Math.min(state.token, arrays[block.q].shown[1] * arrays[block.q].shown[2] - 1);
    const box = choice("block", blocks.map(other => other.name), n => { state.block = n; restart(); }, "gating-block");
    box.lastChild.value = state.block;
    remake(controls, () => controls.replaceChildren(box, ...state.factors.map((_, l) => make("label", {}, levelName(l, L) + ", times",
      make("input", {type: "range", min: -1, max: 2, step: 0.05, value: 1, id: `gating-${l}`,
        oninput: event => { state.factors[l] = +event.target.value; draw(); }})))));
    draw();
  }

  restart();
  return state;
}

function drawPlaygrounds() {
  if (!summary.playground.length) {
    const text = "The arrays of this network are too large to be on the page whole, so there is nothing to compute with.";
    byId("playgrounds").querySelector("p").textContent = text;
    byId("playgrounds").querySelector(".pair").remove();
    return;
  }
  window.minifocal.conv = drawConv(byId("conv"));
  window.minifocal.gating = drawGating(byId("gating"));
}
