// The map of a model's layers in a page: the error of an approximation in every weight matrix. It follows figure.js.

const MAP_EVENTS = ["rank", "approximation", "chosen"].map((name) => `change:${name}`).join(" ");
const SPAN = 1.5; // colours end at errors of 10^±1.5; 1, as bad as approximating by zero, is white
const [LEAST, MOST] = [1e-3, 1e3];
const NAMES = 110; // pixels for the names of the lines
const MAP_TICKS = [-3, -2, -1, 0, 1, 2, 3].map((e) => [10 ** e, String(Number((10 ** e).toPrecision(1)))]);

/** The colour of an error: blue is better than zero, red is worse. The text on it is dark or light. */
function cellColour(error) {
  const share = Math.min(Math.max(Math.log10(error) / SPAN, -1), 1);
  const end = share > 0 ? [178, 24, 43] : [33, 102, 172];
  const rgb = [247, 247, 247].map((c, i) => Math.round(c + Math.abs(share) * (end[i] - c)));
  return { background: `rgb(${rgb.join(",")})`, color: luminance(rgb) > 0.3 ? "#111" : "#fff" };
}

/** The errors of one matrix at every rank, one line per approximation. */
function drawErrors(pool, approximations, curves, rank, width, dark) {
  const [height, ranks] = [230, curves[0].length];
  const cut = (e) => Math.min(Math.max(e, LEAST), MOST);
  const all = curves.flat().map((e) => Math.log10(cut(e)));
  const panel = { key: "e", box: [46, width - 8, 22, height - 34], heading: "error at every rank",
    x: { limits: [0, (ranks * (width - 54)) / (width - 54 - NAMES)], ticks: roundTicks(0, ranks), title: "rank", titleAt: ranks },
    y: { limits: [10 ** (Math.min(-0.35, ...all) - 0.1), 10 ** (Math.max(0.35, ...all) + 0.1)], log: true, ticks: MAP_TICKS } };
  pool.begin();
  drawAxes(pool, panel);
  const x = round(panel.sx(rank));
  pool.put("marks", "cursor", "path", { d: `M${x} ${panel.box[2]}V${panel.box[3]}`, class: "cursor" });
  const names = approximations.map(({ short, colour, dash }, i) => {
    const ys = curves[i].map((e) => panel.sy(cut(e)));
    pool.put("lines", `line-${short}`, "path", { d: linePath(ys.map((_, k) => panel.sx(k + 1)), ys), fill: "none", stroke: legible(colour, dark, 3), "stroke-width": 1.8, "stroke-dasharray": DASHES[dash] });
    return { text: short, at: ys.at(-1), fill: legible(colour, dark, 4.5) };
  });
  for (const n of apart(names, 14, 28, height - 40))
    pool.put("names", `name-${n.text}`, "text", { x: round(panel.sx(ranks)) + 6, y: round(n.at + 4), class: "named", style: `fill:${n.fill}` }, n.text);
  pool.end();
  return height;
}

function render({ model, el }) {
  const { layers, modules, approximations, errors } = model.get("map");
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const ranks = errors[0][0][0].length;
  const rank = h("input", { type: "range", min: 1, max: ranks, step: 1, oninput: () => set("rank", Number(rank.value)) });
  const menu = h("select", { onchange: () => set("approximation", Number(menu.value)) }, ...approximations.map((a, i) => h("option", { value: i }, a.label)));
  const line = h("div", { class: "note row", role: "status" });
  const cells = modules.map((module, i) => layers.map((layer, j) =>
    h("button", { type: "button", class: "cell", onclick: () => set("chosen", [i, j]), "aria-label": "" })));
  const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layer"), ...layers.map((layer) => h("th", { scope: "col" }, String(layer)))));
  const body = h("tbody", {}, ...modules.map((module, i) => h("tr", {}, h("th", { scope: "row" }, module), ...cells[i].map((cell) => h("td", {}, cell)))));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  const pool = new Pool(svg, ["grid", "lines", "marks", "names"]);
  const figure = h("div", { class: "figure" }, svg);
  const root = h("div", { class: "nlora-lab", onkeydown: keepKey }, h("div", { class: "row" }, field("rank r", rank, { wide: true }), field("approximation", menu)), line,
    h("div", { class: "maps beside" }, h("figure", { class: "wide-table" }, h("table", { class: "map" }, head, body)), h("figure", {}, figure)));
  el.append(root);
  let waiting = 0;
  const draw = () => {
    waiting = 0;
    const [r, kind, [row, column]] = [model.get("rank"), model.get("approximation"), model.get("chosen")];
    const dark = isDark(root);
    root.toggleAttribute("data-dark", dark);
    rank.value = r;
    rank.setAttribute("aria-valuetext", String(r));
    setText(rank.nextSibling, String(r));
    menu.value = kind;
    let better = 0;
    cells.forEach((cellsOfRow, i) => cellsOfRow.forEach((cell, j) => {
      const error = errors[i][j][kind][r - 1];
      better += error < 1;
      Object.assign(cell.style, cellColour(error));
      setText(cell, error.toFixed(2));
      cell.setAttribute("aria-label", `layer ${layers[j]} ${modules[i]}: relative error ${formatError(error)}`);
      cell.setAttribute("aria-pressed", String(i === row && j === column));
    }));
    const name = `layer ${layers[column]} ${modules[row]}`;
    setText(line, `${approximations[kind].label}, rank ${r}: ${better} of ${layers.length * modules.length} matrices are better off than with zero; ${name}: ${formatError(errors[row][column][kind][r - 1])}`);
    const width = Math.floor(figure.clientWidth);
    if (!width) return;
    svg.setAttribute("aria-label", `errors of all approximations of ${name} at every rank`);
    const height = drawErrors(pool, approximations, errors[row][column], r, width, dark);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
  };
  const schedule = () => (waiting = waiting || requestAnimationFrame(draw));
  model.on(MAP_EVENTS, schedule);
  watchTheme(schedule);
  new ResizeObserver(schedule).observe(figure);
}

export default { render };
