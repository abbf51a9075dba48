// The fine-tuning lab: recorded runs as the controls select them. It follows figure.js in the same module.
// First what is shown, as numbers; then the figure; then the controls.

const [FLOOR, CEILING, WINDOW] = [1e-3, 5, 10]; // losses outside are drawn at the edge; steps of a running mean
const NO_LOSS = 65535;

const cut = (loss) => (Number.isNaN(loss) ? CEILING : Math.min(Math.max(loss, FLOOR), CEILING));

// --- what was recorded ---

/** Read the recorded runs that `pages/recorded.py` has written: points by task, method, init of N, steps and rank. */
function readRecorded(data, curves) {
  const book = { ...data, method: new Map(data.methods.map((m) => [m.name, m])), cells: new Map() };
  book.budgets = [...new Set(data.cells.map((c) => c.steps))].sort((a, b) => a - b); // recorded numbers of steps
  book.measures = Object.keys(MEASURES).filter((name) => name === "accuracy" || data.cells.some((c) => c[name]));
  const [low, span] = [Math.log(data.curve_range[0]), Math.log(data.curve_range[1] / data.curve_range[0]) / (NO_LOSS - 1)];
  let offset = 0;
  const read = (count) => {
    const values = new Float64Array(count);
    for (let i = 0; i < count; i += 1, offset += 2) {
      const code = curves.getUint16(offset, true);
      values[i] = code === NO_LOSS ? NaN : Math.exp(low + span * code);
    }
    return values;
  };
  for (const cell of data.cells) {
    cell.points = cell.lr.map((lr, i) => {
      const steps = data.grids[cell.grid[i]];
      const spread = (what) => (cell[what] ? cell[what][i].map(number) : [NaN, NaN, NaN]);
      return {
        lr, cell, loss: spread("loss"), accuracy: spread("accuracy"), test_loss: spread("test_loss"),
        validation: number(cell.validation[i]), seeds: cell.seeds[i], diverged: cell.diverged[i],
        trainable: cell.trainable[i],
        curve: { steps, middle: read(steps.length), low: read(steps.length), high: read(steps.length) },
      };
    });
    const key = [cell.task, cell.method, cell.init].join("|");
    if (!book.cells.has(key)) book.cells.set(key, []);
    book.cells.get(key).push(cell);
  }
  return book;
}

/** The known number nearest to a value by ratio, or null if none is within a factor. */
function nearest(numbers, value, factor = Infinity) {
  let best = null;
  let distance = Infinity;
  for (const n of numbers) {
    const d = Math.abs(Math.log(n / value));
    if (d < distance) [best, distance] = [n, d];
  }
  return value > 0 && distance <= Math.log(factor) * (1 + 1e-9) ? best : null;
}

/** What was recorded of one method at these settings: the same as `method_view` in labs/view.py. */
function methodView(book, settings, name) {
  const method = book.method.get(name);
  const init = !method.inits.length || settings.init === method.inits[0] ? null : settings.init;
  let cells = book.cells.get([settings.task, name, init].join("|")) ?? [];
  const steps = cells.some((c) => c.steps === settings.steps) ? settings.steps : book.usual_steps[settings.task];
  cells = cells.filter((c) => c.steps === steps);
  const ranks = cells.map((c) => c.rank);
  const rank = method.ranked ? nearest(ranks, settings.rank, book.near_rank) : ranks[0];
  const cell = cells.find((c) => c.rank === rank);
  const valley = cell?.points ?? [];
  let best = null;
  for (const p of valley) if (p.validation < (best?.validation ?? Infinity)) best = p;
  const rate = settings.own_rates && best ? best.lr : settings.rate;
  const lr = nearest(valley.map((p) => p.lr), rate, book.near_rate);
  const point = valley.find((p) => p.lr === lr) ?? null;
  return { name, method, rate, valley, best, point, label: labelOf(book, settings, method, point) };
}

/** The method's label, with the recorded rank, rate or steps where they stand in for those of the controls. */
function labelOf(book, settings, method, point) {
  if (!point) return method.label;
  const { cell } = point;
  const parts = [cell.init_label == null ? method.label : `${method.label}, N ${cell.init_label}`];
  if (method.ranked && cell.rank !== settings.rank) parts.push(`r ${cell.rank}`);
  if (settings.own_rates) parts.push(formatRate(point.lr));
  if (book.budgets.length > 1 && cell.steps !== settings.steps) parts.push(`${cell.steps} steps`);
  return parts.join(" · ");
}

/** Everything that the lab shows at these settings, from the recorded runs and the runs of the lab itself. */
function labView(book, settings, live) {
  const methods = settings.methods.map((name) => methodView(book, settings, name));
  const [end, limits] = [lastStep(methods, live, settings), lossLimits(methods, live)];
  const metric = book.tasks.find((t) => t.name === settings.task).metric;
  return { settings, methods, live, end, limits, rates: rateLimits(methods, live, settings.rate), metric };
}

/** One row of numbers per method: the same as `FineTuneLab.numbers()`. */
const numbersOf = (view) => view.methods.map(({ name, point, best }) => ({
  method: name, parameters: point?.trainable ?? NaN, rate: point?.lr ?? NaN, final_loss: point?.loss[0] ?? NaN,
  accuracy: point?.accuracy[0] ?? NaN, lowest: point?.accuracy[1] ?? NaN, highest: point?.accuracy[2] ?? NaN,
  seeds: point?.seeds ?? 0, own_rate: best?.lr ?? NaN, accuracy_there: best?.accuracy[0] ?? NaN,
}));

const MEASURES = {
  accuracy: { title: "accuracy", short: "accuracy", factor: 100, digits: 1, unit: " %" },
  test_loss: { title: "NLL of the right answers, nats per token", short: "NLL", factor: 1, digits: 3, unit: "" },
};

const lastStep = (methods, live, settings) => Math.max(
  settings.steps, ...methods.map((m) => m.point?.curve.steps.at(-1) ?? 0), ...live.map((c) => c.x.at(-1) ?? 0));

/** The ends of both loss axes, in quarter decades so that they do not twitch while a run grows. */
function lossLimits(methods, live) {
  let [low, high] = [Infinity, -Infinity];
  const see = (v) => {
    if (!Number.isFinite(v)) return;
    low = Math.min(low, cut(v));
    high = Math.max(high, cut(v));
  };
  for (const m of methods) {
    m.point?.curve.middle.forEach(see);
    m.valley.forEach((p) => see(p.loss[0]));
  }
  for (const c of live) c.mean.forEach(see);
  const [a, b] = low > high ? [Math.log10(0.1), Math.log10(2)] : [Math.log10(low), Math.log10(high)];
  const bottom = Math.floor(4 * a - 0.8) / 4; // below: room for a name
  return [10 ** bottom, 10 ** Math.max(Math.ceil(4 * b + 0.2) / 4, bottom + 1)];
}

function rateLimits(methods, live, rate) {
  const rates = [rate, ...methods.flatMap((m) => m.valley.map((p) => p.lr)), ...live.map((c) => c.lr)].map(Math.log10);
  const [low, high] = [Math.min(...rates), Math.max(...rates)];
  return [10 ** (low - 0.25), 10 ** (Math.max(high, low + 1) + 0.25)];
}

/** A run of the lab, as the kernel sends it, with the running mean of its loss. */
function readLive(run) {
  const view = run.losses;
  const curve = { ...run, x: [], raw: [], mean: [], loss: number(run.final_loss), right: number(run.accuracy) };
  let total = 0;
  for (let i = 0; i < view.byteLength / 4; i += 1) {
    const loss = view.getFloat32(4 * i, true);
    if (!Number.isFinite(loss)) continue;
    const n = curve.raw.push(Math.max(loss, FLOOR));
    curve.x.push(i + 1);
    total += curve.raw[n - 1] - (n > WINDOW ? curve.raw[n - 1 - WINDOW] : 0);
    curve.mean.push(total / Math.min(n, WINDOW));
  }
  return curve;
}

/** Why controls are grey, or make no difference, in complete sentences. */
function reasons(view) {
  const { methods, settings } = view;
  const sentences = [];
  if (methods.length && methods.every((m) => !m.method.ranked))
    sentences.push("“rank r” is grey: full fine-tuning trains every weight and has no rank.");
  if (settings.own_rates) {
    const without = methods.filter((m) => !m.best).map((m) => m.method.label);
    sentences.push(without.length
      ? `The slider's rate applies to ${without.join(", ")}: no best rate was recorded here.`
      : "“learning rate” is grey: each method has its own.");
  }
  return sentences;
}

/** What the figure shows, in words: for those who do not see it. */
function describe(view) {
  if (!view.methods.length) return "No method is ticked.";
  const rows = view.methods.map(({ label, rate, point, best }) => {
    if (!point) return `${label}: nothing was recorded near rate ${formatRate(rate)}.`;
    const here = `final loss ${formatSpread(point.loss)}, accuracy ${formatSpread(point.accuracy, 100, 1, " %")}`;
    return `${label} at rate ${formatRate(point.lr)}: ${here}; best rate ${best ? formatRate(best.lr) : "unknown"}.`;
  });
  const live = view.live.map((c) => `Your run ${c.name}: ${c.note || (c.mean.length ? `loss ${c.mean.at(-1).toFixed(3)} at step ${c.x.at(-1)}` : "no step yet")}.`);
  return [...rows, ...live].join(" ");
}

// --- the figure ---

const HEIGHT = 328;

/** The three panels: loss over steps on the left; on the right final loss, and below it the measure, over the rate. */
function panelsOf(view, width, measure) {
  const narrow = width < 640;
  const split = narrow ? [width - 12, 46] : [Math.round(width * 0.52), Math.round(width * 0.52) + 56];
  const [middle, shift] = narrow ? [HEIGHT * 0.62, HEIGHT] : [HEIGHT * 0.57, 0];
  const loss = { limits: view.limits, log: true, ticks: LOSS_TICKS };
  const rate = { limits: view.rates, log: true, ticks: RATE_TICKS };
  const room = Math.min(190, 0.3 * split[0]); // for the names at the ends of the curves
  const end = view.end * (1 + room / (split[0] - 46 - room));
  const share = measure === "accuracy" ? { limits: [0, 104], ticks: [[0, "0 %"], [50, "50 %"], [100, "100 %"]] } : testLossAxis(view);
  const title = measure === "accuracy" ? view.metric : MEASURES[measure].title;
  return {
    height: HEIGHT + shift,
    steps: { key: "s", box: [46, split[0], 24, HEIGHT - 36], heading: "training loss over steps, nats per token",
      x: { limits: [0, end], ticks: roundTicks(0, view.end), title: "step", titleAt: view.end }, y: loss },
    valleys: { key: "v", box: [split[1], width - 12, 24 + shift, middle + shift - 8], heading: "final loss against the learning rate",
      x: { ...rate, silent: true }, y: loss },
    share: { key: "a", box: [split[1], width - 12, middle + 24 + shift, HEIGHT - 36 + shift], heading: title,
      x: { ...rate, title: "learning rate" }, y: share },
  };
}

function testLossAxis(view) {
  const values = view.methods.flatMap((m) => m.valley.map((p) => p.test_loss[0])).filter((v) => v > 0 && v < Infinity);
  const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0.1, 1];
  return { limits: [low / 1.3, Math.max(high * 1.3, low * 5)], log: true, ticks: LOSS_TICKS };
}

const dot = (x, y, r) => `M${round(x - r)} ${round(y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
const cross = (x, y, r) => `M${round(x - r)} ${round(y - r)}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`;
const diamond = (x, y, r) => `M${round(x - r)} ${round(y)}l${r} ${-r}l${r} ${r}l${-r} ${r}Z`;

function drawLab(pool, view, panels, dark, measure) {
  pool.begin();
  const { steps, valleys, share } = panels;
  for (const panel of [steps, valleys, share]) drawAxes(pool, panel);
  const [ends, bottoms] = [[], []];
  for (const m of view.methods) {
    const look = { stroke: legible(m.method.colour, dark, 3), dash: DASHES[m.method.dash], text: legible(m.method.colour, dark, 4.5) };
    if (m.point) ends.push(drawCurve(pool, steps, m, look));
    const lowest = drawValley(pool, valleys, m, look, (p) => p.loss.map((v) => (v === Infinity ? v : Math.max(v, FLOOR))));
    if (lowest) bottoms.push(lowest);
    const { factor } = MEASURES[measure];
    drawValley(pool, share, m, look, (p) => p[measure].map((v) => factor * v));
  }
  for (const [i, c] of view.live.entries()) {
    const look = { stroke: legible(c.colour, dark, 3), dash: DASHES[c.dash], text: legible(c.colour, dark, 4.5) };
    const end = drawLive(pool, steps, c, i, look);
    if (end) ends.push(end);
    drawMark(pool, valleys, c, i, look, c.note === "diverged" ? CEILING : c.loss);
    drawMark(pool, share, c, i, look, MEASURES[measure].factor * (measure === "accuracy" ? c.right : number(c[measure])));
  }
  for (const panel of [valleys, share]) {
    const x = round(panel.sx(view.settings.rate));
    pool.put("marks", `${panel.key}-cursor`, "path", { d: `M${x} ${panel.box[2]}V${panel.box[3]}`, class: "cursor" });
  }
  drawNames(pool, apart(ends, 14, steps.box[2] + 6, steps.box[3] - 6), "end");
  if (bottoms.length <= 5) drawNames(pool, apart(bottoms, 13, valleys.box[2] + 6, valleys.box[3] - 5), "valley");
  if (!ends.length) {
    const text = view.methods.length ? view.kernel ? "nothing was recorded here: press Run, and the losses appear" : "nothing was recorded here" : "tick a method";
    pool.put("names", "empty", "text", { x: (steps.box[0] + steps.box[1]) / 2, y: (steps.box[2] + steps.box[3]) / 2, class: "middle" }, text);
  }
  pool.end();
}

function drawNames(pool, names, kind) {
  names.forEach((n, i) => pool.put("names", `${kind}${i}`, "text",
    { x: round(n.x), y: round(n.at + 4), class: `named ${n.middle ? "middle" : ""} ${n.bold ? "bold" : ""}`, style: `fill:${n.fill}` }, n.text));
}

function drawCurve(pool, panel, m, look) {
  const { curve } = m.point;
  const { band, line, x, y } = pool.keep(`${m.name}-curve`, [curve, panel.scales], () => curvePaths(panel, curve));
  pool.put("bands", `${m.name}-band`, "path", { d: band, fill: look.stroke, "fill-opacity": 0.14 });
  pool.put("lines", `${m.name}-curve`, "path",
    { d: line, fill: "none", stroke: look.stroke, "stroke-width": 1.7, "stroke-dasharray": look.dash });
  return { text: m.label, x: x + 6, at: y, fill: look.text };
}

/** The paths of a recorded curve and of its range, and where the curve ends. */
function curvePaths(panel, { steps, middle, low, high }) {
  const clip = (v) => panel.sy(Math.min(Math.max(v, panel.y.limits[0]), panel.y.limits[1]));
  const xs = steps.map(panel.sx);
  const [up, down] = [Array.from(high, clip), Array.from(low, clip)];
  const band = `${linePath(xs, up)}${linePath([...xs].reverse(), [...down].reverse()).replace("M", "L")}Z`;
  return { band, line: linePath(xs, Array.from(middle, clip)), x: xs.at(-1), y: clip(middle.at(-1)) };
}

/** One number against the rate: a whisker per point for the range over seeds. A diverged point is a cross at the top. */
function drawValley(pool, panel, m, look, spread) {
  const key = `${panel.key}-${m.name}`;
  const { line, whiskers, marks, crosses, lowest } = pool.keep(key, [m.valley, m.point, panel.heading, panel.scales],
    () => valleyPaths(panel, m, spread));
  pool.put("lines", `${key}-line`, "path", { d: line, fill: "none", stroke: look.stroke, "stroke-width": 1.4, "stroke-dasharray": look.dash });
  pool.put("lines", `${key}-range`, "path", { d: whiskers, fill: "none", stroke: look.stroke, "stroke-opacity": 0.55, "stroke-width": 1.2 });
  pool.put("marks", `${key}-dots`, "path", { d: marks, fill: look.stroke });
  pool.put("marks", `${key}-crosses`, "path", { d: crosses, fill: "none", stroke: look.stroke, "stroke-width": 2 });
  if (!lowest) return null;
  const [left, right] = panel.box;
  const half = 3.2 * m.label.length; // of the name's width: it stays within the panel
  const x = Math.min(Math.max(lowest.x, left + half), right - half);
  return { text: m.label, x, at: lowest.y + 13, fill: look.text, middle: true };
}

/** The paths of a valley, and its lowest point. */
function valleyPaths(panel, m, spread) {
  const [low, high] = panel.y.limits;
  const clip = (v) => panel.sy(Math.min(Math.max(v, low), high));
  const points = m.valley.map((p) => ({ p, x: panel.sx(p.lr), spread: spread(p) })).filter(({ spread: s }) => !Number.isNaN(s[0]));
  const ys = points.map(({ spread: s }) => clip(s[0]));
  let [whiskers, marks, crosses] = ["", "", ""];
  points.forEach(({ p, x, spread: s }, i) => {
    if (s[1] !== s[2]) whiskers += `M${round(x)} ${round(clip(s[1]))}V${round(clip(s[2]))}`;
    const r = p === m.point ? 5 : 2.5;
    if (p.loss[0] === Infinity) crosses += cross(x, ys[i], r);
    else marks += dot(x, ys[i], r);
  });
  const finite = points.map((_, i) => i).filter((i) => points[i].spread[0] < Infinity);
  const i = finite.length ? finite.reduce((a, b) => (points[b].spread[0] < points[a].spread[0] ? b : a)) : null;
  const lowest = i === null ? null : { x: points[i].x, y: ys[i] };
  return { line: linePath(points.map(({ x }) => x), ys), whiskers, marks, crosses, lowest };
}

function drawLive(pool, panel, c, i, look) {
  const clip = (v) => panel.sy(Math.min(Math.max(v, panel.y.limits[0]), panel.y.limits[1]));
  const xs = c.x.map(panel.sx);
  const line = { fill: "none", stroke: look.stroke, "stroke-dasharray": look.dash };
  pool.put("lines", `live${i}-raw`, "path", { ...line, d: linePath(xs, c.raw.map(clip)), "stroke-width": 1, "stroke-opacity": 0.3 });
  pool.put("marks", `live${i}-mean`, "path", { ...line, d: linePath(xs, c.mean.map(clip)), "stroke-width": 3.5 });
  return xs.length ? { text: `${c.name} ${c.note}`.trim(), x: xs.at(-1) + 6, at: clip(c.mean.at(-1)), fill: look.text, bold: true } : null;
}

function drawMark(pool, panel, c, i, look, value) {
  if (Number.isNaN(value)) return;
  const [x, y] = [panel.sx(c.lr), panel.sy(Math.min(Math.max(value, panel.y.limits[0]), panel.y.limits[1]))];
  const diverged = c.note === "diverged";
  pool.put("marks", `${panel.key}-live${i}`, "path", diverged
    ? { d: cross(x, y, 6), fill: "none", stroke: look.stroke, "stroke-width": 3 }
    : { d: diamond(x, y, 7), fill: look.stroke, stroke: "var(--paper)", "stroke-width": 1 });
}

/** The values at a place of the figure, one line per curve, or nothing. */
function valuesAt(view, panels, x, y, measure) {
  const panel = [panels.steps, panels.valleys, panels.share].find(({ box: [l, r, t, b] }) => x >= l && x <= r && y >= t && y <= b);
  if (!panel) return null;
  const inverse = (v) => {
    const [a, b] = panel.x.limits.map((w) => (panel.x.log ? Math.log10(w) : w));
    const at = a + ((v - panel.box[0]) / (panel.box[1] - panel.box[0])) * (b - a);
    return panel.x.log ? 10 ** at : at;
  };
  const at = inverse(x);
  if (panel === panels.steps) {
    const last = (steps) => Math.max(0, steps.findLastIndex((s) => s <= at));
    const rows = view.methods.filter((m) => m.point).map((m) => {
      const i = last(m.point.curve.steps);
      return `${m.label}, recorded: ${formatSpread([m.point.curve.middle[i], m.point.curve.low[i], m.point.curve.high[i]])} at step ${m.point.curve.steps[i]}`;
    });
    const live = view.live.filter((c) => c.x.length).map((c) => `${c.name}: ${c.mean[last(c.x)].toFixed(3)} at step ${c.x[last(c.x)]}`);
    return at > view.end ? null : [...rows, ...live];
  }
  const { factor, digits, unit } = MEASURES[measure];
  return view.methods.flatMap((m) => {
    const lr = nearest(m.valley.map((p) => p.lr), at, 1.6);
    const p = m.valley.find((q) => q.lr === lr);
    if (!p) return [];
    const value = panel === panels.valleys ? formatSpread(p.loss) : formatSpread(p[measure], factor, digits, unit);
    return [`${m.label}, rate ${formatRate(p.lr)}: ${value}, ${p.seeds} seed${p.seeds > 1 ? "s" : ""}${p.diverged ? `, ${p.diverged} diverged` : ""}`];
  });
}
