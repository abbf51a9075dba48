"""A notebook open in a browser tab, with what a person does in it: run cells, move sliders, press buttons, look.

What a person sees and touches goes through the page itself: labels, keys, and what plotly has drawn. JupyterLab's own
objects, which the server exposes as ``jupyterapp``, are used only for what its menus do and to know when a kernel is
ready.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from browser.server import HOST, JupyterServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

ARTEFACTS = Path(__file__).resolve().parents[2] / ".ci-artefacts"
SIZE = {"width": 1300, "height": 900}
T = TypeVar("T")

# Functions for the scripts below: the shown notebook, its kernel, its cells, and running a command.
_TOOLS = """
const panel = () => window.jupyterapp?.shell?.currentWidget;
const kernel = () => panel()?.sessionContext?.session?.kernel;
const cells = () => [...panel().content.widgets];
const numbers = v => ArrayBuffer.isView(v) ? Array.from(v) : Array.isArray(v) ? v.map(numbers) : v;
const run = command => {
  const ran = window.ran = {done: false};
  window.jupyterapp.commands.execute(command).then(() => ran.done = true, () => ran.done = true);
};
"""


class Notebook:
    """A notebook of code cells, open in its own tab.

    ``requests`` are the addresses that the page has requested so far. ``errors`` are the errors that its scripts did
    not catch.
    """

    def __init__(self, context: BrowserContext, server: JupyterServer, name: str, cells: list[str]) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._context = context
        self._server = server
        self._name = name
        server.write(f"{name}.ipynb", cells)
        self.open()

    # --- the tab ---

    def open(self) -> None:
        """Open the notebook in a new tab and wait until its kernel is ready."""
        self.page: Page = self._context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(self._server.address(f"{self._name}.ipynb"))
        self._ready()

    def reload(self) -> None:
        """Reload the page without saving, and wait until it is connected to its kernel again."""
        self.page.reload()
        self._ready()

    def close(self) -> None:
        """Close the tab. The kernel keeps running."""
        self.page.close()

    def save(self) -> None:
        """Save the notebook."""
        self._command("docmanager:save", 30)

    def restart_kernel(self) -> None:
        """Restart the kernel through the menu, and confirm."""
        self._evaluate("before => { run('kernelmenu:restart') }")
        self.page.get_by_role("button", name="Confirm Kernel Restart").or_(
            self.page.locator(".jp-Dialog .jp-mod-warn")
        ).first.click()
        self._wait_for("window.ran.done", 60)
        self._ready()

    def outside(self) -> list[str]:
        """The requests of the page to other hosts."""
        hosts = {url: urlsplit(url).hostname for url in self.requests}
        return [url for url, host in hosts.items() if host not in (None, HOST)]

    def screenshot(self, what: str = "page", width: int = SIZE["width"], height: int = SIZE["height"]) -> Path:
        """Save a picture of the page under the notebook's name."""
        ARTEFACTS.mkdir(exist_ok=True)
        path = ARTEFACTS / f"{self._name}-{what}-{width}.png"
        before = self.page.viewport_size or SIZE
        changed = (width, height) != (before["width"], before["height"])
        if changed:
            self.page.set_viewport_size({"width": width, "height": height})
            self.page.wait_for_timeout(1500)  # plotly adapts to the new size
        self.page.screenshot(path=path)
        if changed:
            self.page.set_viewport_size({"width": before["width"], "height": before["height"]})
        return path

    # --- cells ---

    def run_all(self, seconds: float = 120) -> None:
        """Run all cells, and wait until they are done."""
        self._command("notebook:run-all-cells", seconds)
        count = self._evaluate("() => cells().length")
        for index in range(count):
            self.text(index)

    def run(self, source: str, seconds: float = 60, keep: bool = False) -> str:
        """Run one more cell at the end, wait for it, and return what it printed. ``keep`` leaves the cell there."""
        index = self._evaluate(
            """source => {
                const end = cells().length;
                panel().content.model.sharedModel.insertCell(end, {cell_type: 'code', source});
                panel().content.activeCellIndex = end;
                return end;
            }""",
            source,
        )
        self._command("notebook:run-cell", seconds)
        try:
            return self.text(index)
        finally:
            if not keep:
                self._evaluate("index => panel().content.model.sharedModel.deleteCell(index)", index)

    def text(self, index: int) -> str:
        """Return what a cell printed and its result as text. A cell that raised fails the test."""
        outputs = self._evaluate("index => cells()[index].model.outputs.toJSON()", index)
        for output in outputs:
            assert output["output_type"] != "error", _without_colours("\n".join(output["traceback"]))
        texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
        return "".join(part if isinstance(part, str) else "".join(part) for part in texts).strip()

    # --- widgets: of several with the same label, the last one ---

    def slider(self, label: str) -> Locator:
        """A slider's handle."""
        return self._widget(".widget-slider", label).locator(".noUi-handle").last

    def button(self, label: str) -> Locator:
        """A button."""
        return self.page.locator("button.widget-button", has_text=_exactly(label)).last

    def move(self, label: str, key: str = "ArrowRight", times: int = 1) -> None:
        """Move a slider with the keyboard."""
        handle = self.slider(label)
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def value(self, label: str) -> str:
        """The value that a slider announces, also to a screen reader."""
        return self.slider(label).get_attribute("aria-valuetext") or ""

    def press(self, label: str, key: str = "Enter") -> None:
        """Press a button with the keyboard, as soon as it is enabled."""
        from playwright.sync_api import expect

        button = self.button(label)
        expect(button).to_be_enabled(timeout=30_000)
        button.focus()
        expect(button).to_be_focused()
        self.page.keyboard.press(key)

    # --- labs that draw themselves: of several on the page, the last one ---

    def wait_for_lab(self, seconds: float = 60) -> Locator:
        """Wait until a lab has drawn its figure, and return it."""
        self.page.wait_for_selector(".nlora-lab .figure svg path", state="attached", timeout=1000 * seconds)
        return self.page.locator(".nlora-lab").last

    def drawn(self) -> list[list[str]]:
        """The paths and texts of every lab's figure."""
        return self._evaluate(
            """() => [...document.querySelectorAll('.nlora-lab .figure > svg')].map(svg =>
                [...svg.querySelectorAll('path, text')].map(n => n.getAttribute('d') ?? n.textContent))"""
        )

    # --- figures ---

    def figures(self) -> list[list[dict[str, Any]]]:
        """The data of every plotly figure on the page: the traces, each with its points."""
        return self._evaluate(
            """() => [...document.querySelectorAll('.js-plotly-plot')].filter(gd => gd.data).map(gd =>
                gd.data.map(t => ({
                  uid: t.uid, type: t.type, name: t.name ?? null, xaxis: t.xaxis ?? 'x',
                  x: numbers(t.x) ?? null, y: numbers(t.y) ?? null, z: numbers(t.z) ?? null,
                })))"""
        )

    def shown(self) -> Any:
        """Everything that the figures show: data, and the labels, lines and ranges of their layout."""
        layouts = self._evaluate(
            """() => [...document.querySelectorAll('.js-plotly-plot')].filter(gd => gd.layout).map(gd =>
                [gd.layout.annotations ?? [], gd.layout.shapes ?? [],
                 Object.keys(gd.layout).filter(k => /axis/.test(k)).map(k => gd.layout[k].range ?? null)])"""
        )
        return self.figures(), layouts

    def wait_for_figure(self, seconds: float = 60) -> None:
        """Wait until at least one plotly figure is drawn and has its place on the page."""
        self.page.wait_for_selector(".js-plotly-plot .main-svg", timeout=1000 * seconds)
        self.page.wait_for_timeout(1000)  # half a second after the first drawing a lab fits the figure to the page

    def until(self, condition: Callable[[], T], seconds: float, what: str) -> T:
        """Check a condition until it is true, and return its value."""
        end = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < end, f"{what}: not within {seconds:g} seconds"
            self.page.wait_for_timeout(100)  # the browser's messages are handled meanwhile
        return answer

    # --- behind it ---

    def _ready(self) -> None:
        """Wait for the kernel: what is sent before it is connected and idle is lost silently."""
        self._wait_for("kernel()?.connectionStatus === 'connected' && kernel()?.status === 'idle'", 90)
        self._evaluate(
            "() => { const shell = window.jupyterapp.shell; if (!shell.leftCollapsed) shell.collapseLeft() }"
        )

    def _command(self, command: str, seconds: float) -> None:
        self._evaluate("command => { run(command) }", command)
        self._wait_for("window.ran.done", seconds)

    def _widget(self, kind: str, label: str) -> Locator:
        return self.page.locator(kind, has=self.page.locator(".widget-label", has_text=_exactly(label))).last

    def _evaluate(self, function: str, argument: Any = None) -> Any:
        return self.page.evaluate(f"argument => {{ {_TOOLS} return ({function})(argument) }}", argument)

    def _wait_for(self, condition: str, seconds: float) -> None:
        self.page.wait_for_function(f"() => {{ {_TOOLS} return {condition} }}", timeout=1000 * seconds)


def _exactly(label: str) -> re.Pattern[str]:
    return re.compile(rf"^\s*{re.escape(label)}\s*$")


def _without_colours(traceback: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", traceback)
