// A lab in a page of its own, without a kernel. It follows a lab's module, and calls that module's `render`.

/** What `render` needs of a widget's model: values, and who wants to know when they change. */
class PageModel {
  constructor(state) {
    this.state = state;
    this.listeners = new Map();
    this.changed = new Set();
  }

  get(name) {
    return this.state[name];
  }

  set(name, value) {
    this.state[name] = value;
    this.changed.add(name);
  }

  /** Tell those who listen. A widget sends the changes to its kernel here. */
  save_changes() {
    for (const name of this.changed) for (const listener of this.listeners.get(`change:${name}`) ?? []) listener();
    this.changed.clear();
  }

  on(events, listener) {
    for (const event of events.split(" ")) this.listeners.set(event, [...(this.listeners.get(event) ?? []), listener]);
  }

  off(events, listener) {
    for (const event of events.split(" ")) this.listeners.set(event, this.listeners.get(event).filter((l) => l !== listener));
  }

  send() {}
}

/** Read what `pages/page.py` has written. Bytes are in base64. */
function readState(text) {
  const bytes = (base64) => new DataView(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
  return JSON.parse(text, (_, value) => (value && value.base64 !== undefined ? bytes(value.base64) : value));
}

function openLab(id) {
  const el = document.getElementById(id);
  render({ model: new PageModel(readState(document.getElementById(`${id}-state`).textContent)), el });
}
