// What both labs draw with: elements, numbers, colours and the axes of a panel. No library and no build step.

const SVG = "http://www.w3.org/2000/svg";

// Notebook 7 takes arrow keys for its commands before they reach a control, unless the control itself says no.
const CONTROLS = ["input", "select", "button"];

/** Make an HTML element. Strings become text, never HTML. */
function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  if (CONTROLS.includes(tag)) node.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** Keep a plain key from the page around the lab: JupyterLab takes arrow keys for commands of its own. */
function keepKey(event) {
  if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
}

let used = 0;
/** Return an id that no other element of the page has. */
const newId = (name) => `nlora-${name}-${(used += 1)}-${Math.random().toString(36).slice(2, 7)}`;

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set the value of a control, if it differs: the browser lays a control out again even if nothing has changed. */
function setValue(control, value) {
  if (control.value !== String(value)) control.value = value;
}

/** A labelled control. `id` ties the label to it. */
function field(label, control, { wide = false, short = false, title } = {}) {
  const id = newId("field");
  control.id = id;
  const output = control.type === "range" ? h("output", { for: id, "aria-hidden": "true" }) : null;
  return h("span", { class: `field ${wide ? "wide" : ""} ${short ? "short" : ""}`, title }, h("label", { for: id }, label), control, output);
}

/** The elements of an SVG figure. They are kept from one drawing to the next, and only what differs is set. */
class Pool {
  constructor(svg, layers) {
    this.turn = 0;
    this.items = new Map();
    this.made = new Map();
    this.layers = Object.fromEntries(layers.map((name) => [name, svg.appendChild(document.createElementNS(SVG, "g"))]));
  }

  begin() {
    this.turn += 1;
  }

  put(layer, key, tag, attributes, text) {
    let item = this.items.get(key);
    if (!item) {
      item = { node: document.createElementNS(SVG, tag), attributes: {} };
      this.layers[layer].append(item.node);
      this.items.set(key, item);
    }
    for (const [name, value] of Object.entries(attributes)) {
      if (item.attributes[name] === value) continue;
      item.attributes[name] = value;
      if (value == null) item.node.removeAttribute(name);
      else item.node.setAttribute(name, value);
    }
    if (text !== undefined && item.text !== text) item.node.textContent = item.text = text;
    item.turn = this.turn;
  }

  /** Return what `make` makes for a key. It is made again only when a cause differs: most paths stay from key to key. */
  keep(key, causes, make) {
    const known = this.made.get(key);
    if (known?.causes.every((cause, i) => cause === causes[i])) return known.result;
    const result = make();
    this.made.set(key, { causes, result });
    return result;
  }

  end() {
    for (const [key, item] of this.items) {
      if (item.turn === this.turn) continue;
      item.node.remove();
      this.items.delete(key);
    }
  }
}

// --- numbers, and numbers as texts ---

/** A number as JSON holds it: null is not a number, and infinity is a word. */
const number = (v) => (v == null ? NaN : v === "inf" ? Infinity : v);

/** Round to two digits, as Python's `.1e` does: a tie goes to the even digit. */
function twoDigits(value) {
  const exact = value.toExponential(20);
  const tie = /^\d\.\d50*e/.test(exact);
  const text = tie && Number(exact[2]) % 2 === 0 ? `${exact.slice(0, 3)}${exact.slice(exact.indexOf("e"))}` : value.toExponential(1);
  return text.replace("e+", "e");
}

/** Print a rate with at most two digits: 2e-4, 1.6e-2. */
const formatRate = (rate) => twoDigits(rate).replace(".0e", "e");

/** Print a relative error in three digits: 0.907, 1.97, 50.3. */
const formatError = (error) => error.toFixed(error < 1 ? 3 : error < 10 ? 2 : 1);

/** Print median and range, as in 0.058 (0.054–0.177), or one number where they are the same. */
function formatSpread([middle, low, high], scale = 1, digits = 3, unit = "") {
  if (Number.isNaN(middle)) return "–";
  if (middle === Infinity) return "diverged";
  const top = high === Infinity ? "∞" : (high * scale).toFixed(digits);
  const range = low === high ? "" : ` (${(low * scale).toFixed(digits)}–${top})`;
  return (middle * scale).toFixed(digits) + unit + range;
}

// --- colours ---

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const known = new Map();
/** Lighten a colour on a dark page, or darken it on a light page, until its contrast is enough (WCAG 2). */
function legible(hex, dark, contrast) {
  const key = `${hex}${dark}${contrast}`;
  if (known.has(key)) return known.get(key);
  const [goal, page] = dark ? [255, 0.012] : [0, 1];
  let rgb = channels(hex);
  for (let i = 0; i < 20; i += 1) {
    const [light, low] = [luminance(rgb), page].sort((a, b) => b - a);
    if ((light + 0.05) / (low + 0.05) >= contrast) break;
    rgb = rgb.map((c) => Math.round(c + 0.1 * (goal - c)));
  }
  known.set(key, `rgb(${rgb.join(",")})`);
  return known.get(key);
}

/** Whether the page is dark: then its text is light. */
function isDark(node) {
  const rgb = getComputedStyle(node).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  return luminance(rgb) > 0.3;
}

/** Call `changed` when the page turns dark or light. Return what ends that. */
function watchTheme(changed) {
  const observer = new MutationObserver(changed);
  for (const node of [document.documentElement, document.body])
    observer.observe(node, { attributes: true, attributeFilter: ["class", "style", "data-jp-theme-light", "data-theme"] });
  const query = matchMedia("(prefers-color-scheme: dark)");
  query.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    query.removeEventListener("change", changed);
  };
}

const DASHES = {
  solid: null, dash: "6 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "10 4", longdashdot: "10 3 2 3",
};

/** A short line in a hue and dash, for a chip or a row of a table. */
function swatch(colour, dash) {
  const svg = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "line");
  const attributes = { x1: 0, x2: 24, y1: 5, y2: 5, stroke: colour, "stroke-width": 3, "stroke-dasharray": DASHES[dash] };
  for (const [name, value] of Object.entries(attributes)) if (value != null) line.setAttribute(name, value);
  for (const [name, value] of Object.entries({ width: 24, height: 10, "aria-hidden": "true" })) svg.setAttribute(name, value);
  svg.append(line);
  return svg;
}

// --- scales and axes ---

const round = (value) => Math.round(value * 10) / 10;

/** Return a function from values to pixels. */
function scale([low, high], [from, to], logarithmic = false) {
  const f = logarithmic ? Math.log10 : (v) => v;
  const [a, b] = [f(low), f(high)];
  return (value) => from + ((f(value) - a) / (b - a)) * (to - from);
}

/** Ticks at round places, about `count` of them. */
function roundTicks(low, high, count = 5) {
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((s) => s * unit >= rough) * unit;
  const ticks = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) ticks.push([v, String(Number(v.toPrecision(6)))]);
  return ticks;
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const power = (e) => `10${e < 0 ? "⁻" : ""}${[...String(Math.abs(e))].map((d) => SUPERSCRIPTS[d]).join("")}`;
const LOSS_TICKS = [-4, -3, -2, -1, 0, 1, 2].flatMap((e) => [1, 2, 5].map((m) => [m * 10 ** e, String(Number((m * 10 ** e).toPrecision(1)))]));
const RATE_TICKS = [-6, -5, -4, -3, -2, -1, 0, 1].map((e) => [10 ** e, power(e)]);

/** Draw heading, grid and ticks of a panel. Give it the functions `sx` and `sy` from values to pixels, and a name of both. */
function drawAxes(pool, panel) {
  const { key, box: [left, right, top, bottom], x, y } = panel;
  panel.scales = [...panel.box, ...x.limits, ...y.limits, y.log].join();
  panel.sx = scale(x.limits, [left, right], x.log);
  panel.sy = scale(y.limits, [bottom, top], y.log);
  const within = (axis, v) => v >= axis.limits[0] * (axis.log ? 0.999 : 1) - 1e-12 && v <= axis.limits[1] * (axis.log ? 1.001 : 1) + 1e-12;
  pool.put("grid", `${key}-heading`, "text", { x: left, y: top - 8, class: "heading" }, panel.heading);
  for (const [value, text] of y.ticks.filter(([v]) => within(y, v))) {
    const at = round(panel.sy(value));
    pool.put("grid", `${key}-y${value}`, "path", { d: `M${left} ${at}H${right}`, class: "grid" });
    pool.put("grid", `${key}-Y${value}`, "text", { x: left - 6, y: at + 4, class: "tick end" }, text);
  }
  for (const [value, text] of x.ticks.filter(([v]) => within(x, v))) {
    const at = round(panel.sx(value));
    pool.put("grid", `${key}-x${value}`, "path", { d: `M${at} ${top}V${bottom}`, class: "grid" });
    if (!x.silent) pool.put("grid", `${key}-X${value}`, "text", { x: at, y: bottom + 15, class: "tick middle" }, text);
  }
  if (x.title) pool.put("grid", `${key}-title`, "text", { x: round(x.titleAt === undefined ? right : panel.sx(x.titleAt)), y: bottom + 30, class: "tick end" }, x.title);
}

/** A path through points. A value that is not a number interrupts it. */
function linePath(xs, ys) {
  let path = "";
  let pen = "M";
  for (let i = 0; i < xs.length; i += 1) {
    if (!Number.isFinite(ys[i])) {
      pen = "M";
      continue;
    }
    path += `${pen}${round(xs[i])} ${round(ys[i])}`;
    pen = "L";
  }
  return path;
}

/** Move labels apart vertically, `gap` pixels each, within the limits. Labels have a place `at`. */
function apart(labels, gap, top, bottom) {
  const sorted = [...labels].sort((a, b) => a.at - b.at);
  const groups = [];
  for (const label of sorted) {
    groups.push({ labels: [label], at: label.at });
    while (groups.length > 1) {
      const [a, b] = groups.slice(-2);
      if (b.at - a.at >= (gap * (a.labels.length + b.labels.length)) / 2) break;
      const total = a.labels.length + b.labels.length;
      const at = (a.at * a.labels.length + b.at * b.labels.length) / total;
      groups.splice(-2, 2, { labels: [...a.labels, ...b.labels], at });
    }
  }
  for (const group of groups) {
    const half = (gap * (group.labels.length - 1)) / 2;
    const middle = Math.min(Math.max(group.at, top + half), bottom - half);
    group.labels.forEach((label, i) => (label.at = middle - half + i * gap));
  }
  return labels;
}
