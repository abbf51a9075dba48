// The Nyström lab in the page, and the module's `render`. It follows figure.js and nystrom.js.
// The kernel, or the page's file, gives the matrices; the page computes the rest. Of a matrix that is too large for
// the page, the kernel sends what is drawn (`computed`).

const OPTIONS = ["matrix", "p", "rank", "pivots", "core", "tolerance", "oversample"];
const NYSTROM_EVENTS = [...OPTIONS, "entries", "computed"].map((name) => `change:${name}`).join(" ");
const [CELLS, ERROR_FLOOR, ERROR_CEILING] = [64, 1e-3, 1e3];
const ERROR_TICKS = [-3, -2, -1, 0, 1, 2, 3].map((e) => [10 ** e, `${e === -3 ? "≤ " : e === 3 ? "≥ " : ""}${Number((10 ** e).toPrecision(1))}`]);
const NARROW = 560; // pixels
const SLICE = 10; // milliseconds of computing between two frames

/** The entries of a matrix as the kernel sends them: single or double precision. */
function readMatrix({ m, n, W }) {
  const double = W.byteLength === 8 * m * n;
  return { m, n, a: Float64Array.from({ length: m * n }, (_, i) => (double ? W.getFloat64(8 * i, true) : W.getFloat32(4 * i, true))) };
}

/** Shrink a matrix to at most 64 rows and columns. A cell is the largest entry of its block, with its sign. */
function thumbnail(A) {
  const [high, wide] = [Math.ceil(A.m / CELLS), Math.ceil(A.n / CELLS)];
  const B = zeros(Math.ceil(A.m / high), Math.ceil(A.n / wide));
  for (let i = 0; i < A.m; i += 1)
    for (let j = 0; j < A.n; j += 1) {
      const at = Math.floor(i / high) * B.n + Math.floor(j / wide);
      const x = A.a[i * A.n + j];
      if (Math.abs(x) > Math.abs(B.a[at])) B.a[at] = x;
    }
  return B;
}

/** The absolute value at which the colours end: the 98th percentile of the cells. */
function colourScale(A) {
  const sizes = A.a.map(Math.abs).sort();
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 1;
}

/** Paint a matrix: red is positive, blue negative, and zero is nearly white. */
function paint(canvas, A, top) {
  if (canvas.width !== A.n || canvas.height !== A.m) [canvas.width, canvas.height] = [A.n, A.m];
  const context = canvas.getContext("2d");
  const image = context.createImageData(A.n, A.m);
  const [zero, plus, minus] = [[247, 247, 247], [178, 24, 43], [33, 102, 172]];
  A.a.forEach((x, i) => {
    const share = Math.min(Math.abs(x) / top, 1) ** 0.8;
    const end = x > 0 ? plus : minus;
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = zero[c] + share * (end[c] - zero[c]);
    image.data[4 * i + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

const cutError = (e) => (Number.isNaN(e) ? e : Math.min(Math.max(e, ERROR_FLOOR), ERROR_CEILING));
const errorText = (e) => (e > 1e-5 ? formatError(e) : "0, to rounding");
const conditionText = (c) => (c === null ? "…" : c < 1e5 ? c.toFixed(1) : "beyond 1e5: numerically singular");

/** What is drawn of one matrix: computed here, once for every choice of options. */
class Analysis {
  constructor(entry) {
    this.entry = entry;
    this.W = readMatrix(entry);
    this.made = new Map();
    this.small = thumbnail(this.W);
    this.top = colourScale(this.small);
  }

  of(o, core = o.core) {
    const key = [o.pivots, core, o.tolerance, o.oversample].join("|");
    if (!this.made.has(key)) {
      const { max_rank: maxRank, random, eps } = this.entry;
      this.made.set(key, new Nystrom(this.W, { pivots: o.pivots, core, rtol: o.tolerance, oversample: o.oversample, maxRank, random, eps }));
    }
    return this.made.get(key);
  }

  view(o) {
    const shown = this.of(o);
    const product = shown.product(o.rank);
    const residual = subtract(this.W, product);
    shown.errors[o.rank - 1] = norm(residual) / shown.total;
    const lines = [this.best(), { label: `${o.pivots}, ${o.core}`, colour: "#009e73", dash: "solid", width: 3, errors: shown.errors }];
    if (o.core !== "optimal") {
      const optimal = this.of(o, "optimal");
      optimal.error(o.rank);
      lines.splice(1, 0, { label: "optimal core", colour: "#56b4e9", dash: "dash", width: 1.5, errors: optimal.errors });
    }
    return { m: this.W.m, n: this.W.n, images: [this.small, thumbnail(product), thumbnail(residual)], top: this.top,
      lines, sigma: this.entry.sigma, rank: o.rank, error: shown.errors[o.rank - 1], condition: o.rank <= 24 ? this.condition(o) : null };
  }

  best() {
    return { label: "best possible", colour: "#767676", dash: "solid", width: 1.5, errors: this.entry.best };
  }

  condition(o) {
    return conditionOf(this.of(o).block(o.rank));
  }

  /** Whether the errors at every rank are known. */
  complete(o) {
    return [this.of(o), ...(o.core === "optimal" ? [] : [this.of(o, "optimal")])].every((a) => a.errors.every((e) => !Number.isNaN(e)));
  }

  /** Compute errors at further ranks for some milliseconds. Return whether all are known. */
  advance(o) {
    const end = performance.now() + SLICE;
    for (const approximation of o.core === "optimal" ? [this.of(o)] : [this.of(o), this.of(o, "optimal")])
      for (let k = 1; k <= approximation.maxRank; k += 1) {
        if (performance.now() > end) return false;
        approximation.error(k);
      }
    return true;
  }
}

/** The same view from what the kernel has computed of a large matrix. */
function computedView(computed, rank) {
  const images = computed.images.map(readMatrix);
  return { ...computed, images, rank, condition: number(computed.condition), lines: computed.lines.map((l) => ({ ...l, errors: l.errors.map(number) })) };
}

function drawCurves(pool, view, width, dark) {
  pool.begin();
  const narrow = width < NARROW; // then the two panels stand one above the other
  const [height, right] = [236, narrow ? width - 10 : Math.round(0.6 * width)];
  const values = view.lines.flatMap((l) => Array.from(l.errors, cutError)).filter((e) => e > 0).map(Math.log10);
  const [low, high] = [Math.min(-0.35, ...values), Math.max(0.35, ...values)];
  const ranks = view.lines[0].errors.length;
  const errors = { key: "e", box: [54, right, 22, height - 34], heading: "error at every rank",
    x: { limits: [0, ranks * (narrow ? 1.5 : 1.3)], ticks: roundTicks(0, ranks), title: "rank", titleAt: ranks },
    y: { limits: [10 ** (low - 0.1 * (high - low)), 10 ** (high + 0.05 * (high - low))], log: true, ticks: ERROR_TICKS } };
  const top = 1.05 * Math.max(...view.sigma);
  const [left, down] = narrow ? [54, height] : [right + 54, 0];
  const spectrum = { key: "s", box: [left, width - 10, down + 22, down + height - 34], heading: "singular values of W",
    x: { limits: [0, 1.03 * view.sigma.length], ticks: roundTicks(0, view.sigma.length), title: "k" }, y: { limits: [0, top], ticks: roundTicks(0, top, 4) } };
  for (const panel of [errors, spectrum]) {
    drawAxes(pool, panel);
    const x = round(panel.sx(view.rank));
    pool.put("marks", `${panel.key}-cursor`, "path", { d: `M${x} ${panel.box[2]}V${panel.box[3]}`, class: "cursor" });
  }
  const names = view.lines.map((line) => {
    const ys = Array.from(line.errors, (e) => errors.sy(cutError(e)));
    const xs = ys.map((_, i) => errors.sx(i + 1));
    pool.put("lines", `line-${line.label}`, "path", { d: linePath(xs, ys), fill: "none", stroke: legible(line.colour, dark, 3), "stroke-width": line.width, "stroke-dasharray": DASHES[line.dash] });
    return { text: line.label, x: errors.sx(ranks) + 6, at: ys.findLast(Number.isFinite) ?? errors.sy(1), fill: legible(line.colour, dark, 4.5) };
  });
  for (const n of apart(names, 14, 28, height - 40)) pool.put("names", `name-${n.text}`, "text", { x: round(n.x), y: round(n.at + 4), class: "named", style: `fill:${n.fill}` }, n.text);
  pool.put("marks", "here", "circle", { cx: round(errors.sx(view.rank)), cy: round(errors.sy(cutError(view.error))), r: 5, fill: legible("#009e73", dark, 3) });
  const s = view.sigma.map((v) => spectrum.sy(v));
  pool.put("lines", "sigma", "path", { d: linePath(s.map((_, i) => spectrum.sx(i + 1)), s), fill: "none", stroke: "currentColor", "stroke-width": 1.6 });
  pool.end();
  return down + height;
}

class NystromControls {
  constructor(model) {
    this.model = model;
    const set = (name, read) => (event) => {
      model.set(name, read(event.target));
      model.save_changes();
    };
    const menu = (name, choices, read = (input) => input.value) =>
      h("select", { onchange: set(name, read) }, ...choices.map(([label, value]) => h("option", { value }, label)));
    const slider = (name, low, high, step) => h("input", { type: "range", min: low, max: high, step, oninput: set(name, (input) => Number(input.value)) });
    const facts = model.get("facts");
    const same = (names) => names.map((name) => [name, name]);
    this.matrix = menu("matrix", model.get("choices"));
    this.p = slider("p", 0, 3, 0.1);
    this.rank = slider("rank", 1, 96, 1);
    this.tolerance = menu("tolerance", facts.tolerances, (input) => Number(input.value));
    this.pivots = menu("pivots", same(facts.pivots));
    this.core = menu("core", same(facts.cores));
    this.oversample = slider("oversample", 0, 32, 1);
    this.rows = [
      h("div", { class: "row" }, field("rank r", this.rank, { wide: true }), field("matrix", this.matrix), field("exponent p", this.p, { short: true })),
      h("div", { class: "row" }, field("rows, columns", this.pivots), field("core", this.core), field("tolerance", this.tolerance), field("extra rows", this.oversample, { short: true })),
    ];
  }

  /** The options, within what the matrix allows. */
  options(entry) {
    const o = Object.fromEntries(OPTIONS.map((name) => [name, this.model.get(name)]));
    o.rank = Math.min(o.rank, entry.max_rank);
    o.oversample = o.core === "block" ? 0 : Math.min(o.oversample, entry.m - entry.max_rank);
    return o;
  }

  draw(o, entry) {
    this.rank.max = entry.max_rank;
    this.oversample.max = Math.min(32, entry.m - entry.max_rank);
    for (const name of ["matrix", "tolerance", "pivots", "core"]) setValue(this[name], o[name]);
    for (const name of ["rank", "oversample", "p"]) {
      const text = name === "p" ? o.p.toFixed(1) : String(o[name]);
      setValue(this[name], o[name]);
      this[name].setAttribute("aria-valuetext", text);
      setText(this[name].nextSibling, text);
    }
    this.p.parentElement.hidden = o.matrix !== "power";
    this.oversample.disabled = o.core === "block";
    this.oversample.parentElement.classList.toggle("off", o.core === "block");
    this.oversample.parentElement.title = o.core === "block" ? "the core “block” takes no extra rows" : "";
  }
}

/** The key of a matrix: with a slider for the exponent there is one per exponent. */
const keyOf = (model) => (model.get("matrix") === "power" ? `power:${model.get("p").toFixed(1)}` : model.get("matrix"));

function render({ model, el }) {
  const controls = new NystromControls(model);
  const line = h("div", { class: "note row", id: newId("line"), role: "status" });
  const maps = ["W", "approximation", "what is left"].map((name) => ({ canvas: h("canvas", { role: "img", "aria-label": name, style: "width:100%;height:205px" }), caption: h("figcaption") }));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "error at every rank, and singular values");
  svg.setAttribute("aria-describedby", line.id);
  const pool = new Pool(svg, ["grid", "lines", "marks", "names"]);
  const figure = h("div", { class: "figure" }, svg);
  const pictures = h("div", { class: "maps" }, ...maps.map(({ canvas, caption }) => h("figure", {}, caption, canvas)));
  const root = h("div", { class: "nlora-lab", "data-lm-suppress-shortcuts": "true", onkeydown: keepKey }, ...controls.rows, line, pictures, figure);
  el.append(root);
  const analyses = new Map();
  let [waiting, later] = [0, 0];

  const show = (o, entry, view) => {
    const width = Math.floor(figure.clientWidth);
    if (!width) return;
    const dark = isDark(root);
    root.toggleAttribute("data-dark", dark);
    controls.draw(o, entry);
    const headings = [`W, ${view.m} × ${view.n}`, `approximation, rank ${o.rank}`, `what is left: ${view.error.toPrecision(3)} of ‖W‖`];
    maps.forEach(({ canvas, caption }, i) => {
      setText(caption, headings[i]);
      canvas.setAttribute("aria-label", headings[i]);
      paint(canvas, view.images[i], view.top);
    });
    const height = drawCurves(pool, view, width, dark);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const label = model.get("choices").find(([, value]) => value === o.matrix)[0];
    const extra = o.oversample ? `, ${o.oversample} extra rows` : "";
    setText(line, `${label} (${view.m} × ${view.n}), rank ${o.rank}, ${o.pivots}, ${o.core}${extra}: error ${errorText(view.error)}`
      + `${view.error > 1 ? ", worse than approximating W by zero" : ""}; best possible ${errorText(view.lines[0].errors[o.rank - 1])}; `
      + `condition number of the block ${conditionText(view.condition)}`);
  };

  const draw = () => {
    waiting = 0;
    clearTimeout(later);
    const key = keyOf(model);
    const entry = model.get("entries")[key];
    if (!entry) return; // the kernel sends it
    const o = controls.options(entry);
    if (!entry.W) {
      const computed = model.get("computed");
      if (computed.key === key) show(o, entry, computedView(computed, o.rank));
      return;
    }
    if (analyses.get(key)?.entry !== entry) analyses.set(key, new Analysis(entry));
    const analysis = analyses.get(key);
    const view = analysis.view(o);
    show(o, entry, view);
    const finish = () => {
      const done = analysis.advance(o);
      if (done) show(o, entry, { ...view, condition: analysis.condition(o) });
      else later = setTimeout(finish, 0);
    };
    if (!analysis.complete(o) || view.condition === null) later = setTimeout(finish, 60); // else nothing is left to show
  };
  const schedule = () => (waiting = waiting || requestAnimationFrame(draw));
  model.on(NYSTROM_EVENTS, schedule);
  const endTheme = watchTheme(schedule);
  const size = new ResizeObserver(schedule);
  size.observe(figure);
  return () => {
    cancelAnimationFrame(waiting);
    clearTimeout(later);
    model.off(NYSTROM_EVENTS, schedule);
    endTheme();
    size.disconnect();
  };
}

export default { render };
