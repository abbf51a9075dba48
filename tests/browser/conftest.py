from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest

from browser.page import SIZE, Notebook
from browser.server import JupyterServer
from tools.browser import open_browser, why_no_browser

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

OPENED = pytest.StashKey[list[Notebook]]()


@pytest.fixture(scope="package")
def context() -> Iterator[BrowserContext]:
    """One browser for all tests. Thanks to its cache only the first page downloads the scripts."""
    if missing := why_no_browser():
        give_up(missing)
    with open_browser() as browser:
        yield browser.new_context(viewport=SIZE)


def give_up(missing: str) -> NoReturn:
    """Skip without a browser, but never where the tests decide what is published."""
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="package")
def server(context: BrowserContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    with JupyterServer(tmp_path_factory.mktemp("jupyter")) as started:
        yield started


@pytest.fixture
def open_notebook(
    context: BrowserContext, server: JupyterServer, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Notebook]]:
    """Opens a notebook of these cells. At the end its page must not have sent a request to another host."""
    opened: list[Notebook] = []
    request.node.stash[OPENED] = opened

    def opens(*cells: str) -> Notebook:
        name = "".join(c if c.isalnum() else "_" for c in request.node.name)
        opened.append(Notebook(context, server, name if not opened else f"{name}_{len(opened) + 1}", list(cells)))
        return opened[-1]

    yield opens
    for notebook in opened:
        notebook.close()
    server.end_kernels()
    assert [url for notebook in opened for url in notebook.outside()] == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A picture of what a failing test saw last."""
    report = yield
    if call.when == "call" and report.failed:
        for notebook in item.stash.get(OPENED, []):
            if not notebook.page.is_closed():
                lines = [f"picture: {notebook.screenshot('failed')}", *notebook.errors]
                report.sections.append(("the page", "\n".join(lines)))
    return report
