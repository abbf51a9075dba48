// The controls of the fine-tuning lab, and the module's `render`. It follows figure.js and fine_tuning.js.
// The state is the model's: every view of one lab shows the same, and Python can set and read everything.

const SETTINGS = ["methods", "rank", "init", "lr", "own_rates", "steps", "task", "seed", "measure"];
const EVENTS = [...SETTINGS, "live", "running", "progress", "status"].map((name) => `change:${name}`).join(" ");

const options = (names) => names.map((name) => h("option", { value: name }, name));

class Controls {
  constructor(model, book) {
    this.model = model;
    this.book = book;
    this.kernel = model.get("kernel");
    const set = (name, read) => (event) => {
      model.set(name, read(event.target));
      model.save_changes();
    };
    const whole = (low, high) => (input) => Math.min(Math.max(Math.round(Number(input.value)) || 0, low), high);
    this.lr = h("input", { type: "range", min: -5, max: 0, step: 0.1, oninput: set("lr", (input) => 10 ** Number(input.value)) });
    this.rank = h("input", { type: "range", min: 1, max: 128, step: 1, oninput: set("rank", (input) => Number(input.value)) });
    this.task = h("select", { onchange: set("task", (input) => input.value) }, ...options(book.tasks.map((t) => t.name)));
    this.own = h("input", { type: "checkbox", onchange: set("own_rates", (input) => input.checked) });
    this.init = h("select", { onchange: set("init", (input) => input.value) }, ...options(book.inits));
    this.steps = h("input", { type: "number", min: 1, max: 1000, onchange: set("steps", whole(1, 1000)) });
    this.seed = h("input", { type: "number", min: 0, max: 1e6, onchange: set("seed", whole(0, 1e6)) });
    this.run = h("button", { type: "button", class: "main", title: "train with these settings on this machine", onclick: () => model.send({ press: "run" }) }, "▶ Run");
    this.stop = h("button", { type: "button", title: "stop training and keep what was trained", onclick: () => model.send({ press: "stop" }) }, "■ Stop");
    this.bar = h("progress", { "aria-label": "training steps done" });
    this.status = h("span", { class: "status", role: "status" });
    this.note = h("div", { class: "note row" });
    this.rows = [this.methodChips(), this.mainRow(), this.runRow(), this.note].filter(Boolean);
  }

  methodChips() {
    this.boxes = new Map();
    const families = groupBy(this.book.methods, (m) => m.family);
    const sets = [...families].map(([family, methods]) => {
      const name = h("span", { class: "name", id: newId("family") }, `${family}:`);
      const chips = methods.map((m) => this.chip(m));
      return h("div", { class: "family", role: "group", "aria-labelledby": name.id }, name, ...chips);
    });
    return h("div", { class: "row chips" }, ...sets);
  }

  chip(method) {
    const box = h("input", { type: "checkbox", onchange: () => {
      this.model.set("methods", this.book.methods.map((m) => m.name).filter((name) => this.boxes.get(name).checked));
      this.model.save_changes();
    } });
    this.boxes.set(method.name, box);
    return h("label", { class: "chip", title: method.title }, box, h("span", { class: "swatch" }), method.label);
  }

  mainRow() {
    const own = h("label", { class: "field", title: "each method at its recorded rate with the lowest validation loss, not at the slider's rate" }, this.own, "each at its own best rate");
    return h("div", { class: "row" }, field("learning rate", this.lr, { wide: true }), own, field("rank r", this.rank, { short: true }), field("task", this.task));
  }

  /** Run, Stop and what is folded away. Without a kernel nothing trains, and there is only a choice of N. */
  runRow() {
    const init = field("N in SLoRA", this.init, { title: "only SLoRA has a choice of N" });
    this.menus = new Map();
    const steps = this.menu("steps", "recorded steps", this.book.budgets);
    const measure = this.menu("measure", "measure", this.book.measures, (name) => MEASURES[name].short);
    if (!this.kernel) return h("div", { class: "row" }, init, steps, measure);
    const more = h("div", { class: "row", id: newId("more"), hidden: true }, init, field("steps", this.steps), field("seed", this.seed));
    const toggle = h("button", { type: "button", "aria-expanded": "false", "aria-controls": more.id, onclick: () => {
      more.hidden = !more.hidden;
      toggle.setAttribute("aria-expanded", String(!more.hidden));
    } }, "more settings");
    return h("div", {}, h("div", { class: "row" }, this.run, this.stop, this.bar, this.status, steps, measure, toggle), more);
  }

  /** A menu that is shown only where there is more than one choice. */
  menu(trait, text, names, label = String) {
    if (names.length < 2) return null;
    const select = h("select", { onchange: () => {
      this.model.set(trait, names[select.selectedIndex]);
      this.model.save_changes();
    } }, ...names.map((name) => h("option", { value: name }, label(name))));
    this.menus.set(trait, select);
    return field(text, select);
  }

  settings() {
    const state = Object.fromEntries(SETTINGS.map((name) => [name, this.model.get(name)]));
    const methods = this.book.methods.map((m) => m.name).filter((name) => state.methods.includes(name));
    return { ...state, methods, rate: Number(twoDigits(state.lr)) };
  }

  /** Show the state of the model, and which controls make no difference. */
  draw(view, dark) {
    const { settings, methods } = view;
    for (const [name, box] of this.boxes) {
      box.checked = settings.methods.includes(name);
      this.paintChip(box, this.book.method.get(name), dark);
    }
    this.slide(this.lr, Math.log10(this.model.get("lr")).toFixed(4), twoDigits(settings.rate));
    this.slide(this.rank, settings.rank, String(settings.rank));
    for (const name of ["task", "init", "steps", "seed"]) if (this[name] !== document.activeElement || this[name].tagName === "SELECT") setValue(this[name], settings[name]);
    this.own.checked = settings.own_rates;
    this.disable(this.lr, settings.own_rates && methods.every((m) => m.best));
    this.disable(this.rank, methods.length > 0 && methods.every((m) => !m.method.ranked));
    this.disable(this.init, !methods.some((m) => m.method.inits.length));
    for (const [trait, select] of this.menus) setValue(select, settings[trait]); // other steps than recorded ones: blank
    setText(this.note, reasons(view).join(" "));
    if (this.kernel) this.drawRun();
  }

  slide(input, value, text) {
    setValue(input, value);
    input.setAttribute("aria-valuetext", text);
    setText(input.nextSibling, text);
  }

  disable(control, off) {
    control.disabled = off;
    control.parentElement.classList.toggle("off", off);
  }

  paintChip(box, method, dark) {
    if (box.dark === dark) return;
    box.dark = dark;
    box.nextSibling.replaceChildren(swatch(legible(method.colour, dark, 3), method.dash));
  }

  drawRun() {
    const running = this.model.get("running");
    const [done, total] = this.model.get("progress");
    this.run.disabled = running;
    this.stop.disabled = !running;
    this.bar.max = total;
    this.bar.value = done;
    this.bar.hidden = !running;
    const parts = this.model.get("status");
    const key = JSON.stringify(parts);
    if (this.said === key) return;
    this.said = key;
    this.status.replaceChildren(...parts.map(([kind, text]) => h("span", { class: kind, style: kind === "strong" ? "font-weight:600" : null }, `${text} `)));
  }
}

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

const COLUMNS = ["recorded", "parameters", "rate", "final loss", "accuracy", "seeds", "best rate", "accuracy at best rate"];

/** The table below the figure: one row per ticked method. While the ticks stay, only texts change. */
function drawTable(table, view, book, dark) {
  const head = book.measures.includes("test_loss") ? [...COLUMNS, "NLL on test answers"] : COLUMNS;
  const ticked = [dark, ...view.settings.methods].join();
  if (table.ticked !== ticked) {
    table.ticked = ticked;
    const columns = h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text))));
    const rows = view.methods.map(({ method }) => h("tr", {},
      h("th", { scope: "row" }, swatch(legible(method.colour, dark, 3), method.dash), h("span")), ...head.slice(1).map(() => h("td"))));
    table.replaceChildren(columns, h("tbody", {}, ...rows));
  }
  view.methods.forEach(({ label, point, best }, i) => {
    const results = point
      ? [point.trainable.toLocaleString("en-US"), formatRate(point.lr), formatSpread(point.loss), formatSpread(point.accuracy, 100, 1, " %"), String(point.seeds)]
      : ["–", view.kernel ? "not recorded: press Run" : "not recorded", "–", "–", "–"];
    const bests = best ? [formatRate(best.lr), formatSpread(best.accuracy, 100, 1, " %")] : ["–", "–"];
    const texts = [...results, ...bests, ...(head.length > COLUMNS.length ? [point ? formatSpread(point.test_loss) : "–"] : [])];
    const [name, ...cells] = table.tBodies[0].rows[i].cells;
    setText(name.lastChild, label);
    cells.forEach((cell, j) => setText(cell, texts[j]));
  });
}

/** The figure of one view: it draws, shows values where the pointer is, and moves the rate where it is dragged. */
class LabFigure {
  constructor(model) {
    this.model = model;
    this.svg = document.createElementNS(SVG, "svg");
    this.words = h("p", { class: "unseen", id: newId("words") });
    this.tip = h("div", { class: "tip", hidden: true });
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", "loss over steps, final loss and accuracy against the learning rate");
    this.svg.setAttribute("aria-describedby", this.words.id);
    this.node = h("div", { class: "figure" }, this.svg, this.words, this.tip);
    this.pool = new Pool(this.svg, ["grid", "bands", "lines", "marks", "names"]);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.drag(event));
    this.svg.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  draw(view, width, dark, measure) {
    Object.assign(this, { view, width, measure, panels: panelsOf(view, width, measure) });
    const { height } = this.panels;
    const box = `0 0 ${width} ${height}`;
    if (this.box !== box) {
      this.svg.setAttribute("viewBox", box);
      this.svg.setAttribute("height", height);
      this.box = box;
    }
    drawLab(this.pool, view, this.panels, dark, measure);
    setText(this.words, describe(view));
  }

  place(event) {
    const frame = this.svg.getBoundingClientRect();
    return [((event.clientX - frame.left) * this.width) / frame.width, event.clientY - frame.top];
  }

  point(event) {
    const [x, y] = this.place(event);
    if (event.buttons === 1 && this.dragging) this.setRate(x);
    const lines = valuesAt(this.view, this.panels, x, y, this.measure);
    this.tip.hidden = !lines?.length;
    if (this.tip.hidden) return;
    setText(this.tip, lines.join("\n"));
    const left = x + 14 + this.tip.offsetWidth > this.width ? Math.max(0, x - 14 - this.tip.offsetWidth) : x + 14;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${Math.max(0, y - this.tip.offsetHeight - 8)}px`;
  }

  drag(event) {
    const [x, y] = this.place(event);
    const { box } = this.panels.valleys;
    this.dragging = x >= box[0] && x <= box[1] && y >= box[2] && y <= this.panels.share.box[3];
    if (this.dragging) this.setRate(x);
  }

  setRate(x) {
    const [left, right] = this.panels.valleys.box;
    const [low, high] = this.panels.valleys.x.limits.map(Math.log10);
    const exponent = low + ((x - left) / (right - left)) * (high - low);
    this.model.set("lr", 10 ** Math.min(Math.max(Math.round(10 * exponent) / 10, -5), 0));
    this.model.save_changes();
  }
}

function render({ model, el }) {
  const book = readRecorded(model.get("recorded"), model.get("curves"));
  const controls = new Controls(model, book);
  const figure = new LabFigure(model);
  const table = h("table");
  const scroll = h("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "recorded numbers at these settings" }, table);
  const root = h("div", { class: "nlora-lab", "data-lm-suppress-shortcuts": "true", onkeydown: keepKey }, ...controls.rows, figure.node, scroll);
  el.append(root);
  let waiting = 0;
  const draw = () => {
    waiting = 0;
    const width = Math.floor(figure.node.clientWidth);
    if (!width) return; // not shown yet: the size observer calls again
    const dark = isDark(root);
    root.toggleAttribute("data-dark", dark);
    const settings = controls.settings();
    const view = { ...labView(book, settings, model.get("live").map(readLive)), kernel: controls.kernel };
    controls.draw(view, dark);
    figure.draw(view, width, dark, settings.measure);
    drawTable(table, view, book, dark);
  };
  const schedule = () => (waiting = waiting || requestAnimationFrame(draw));
  model.on(EVENTS, schedule);
  const endTheme = watchTheme(schedule);
  const size = new ResizeObserver(schedule);
  size.observe(figure.node);
  return () => {
    cancelAnimationFrame(waiting);
    model.off(EVENTS, schedule);
    endTheme();
    size.disconnect();
  };
}

export default { render };
