"""A missing browser must not count as a working page."""

from __future__ import annotations

import sys

import pytest

from browser.conftest import give_up
from browser.page import Notebook
from tools.browser import why_no_browser


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "chromium" in why_no_browser()
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    assert "playwright" in why_no_browser()


def test_without_a_browser_tests_are_skipped_here_and_fail_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        give_up("no browser")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        give_up("no browser")


def test_requests_to_other_hosts_are_seen():
    notebook = Notebook.__new__(Notebook)
    notebook.requests = ["http://127.0.0.1:8888/lab", "ws://127.0.0.1:8888/api", "data:text/plain,a", "blob:http://a/b"]
    assert notebook.outside() == []
    notebook.requests += ["https://cdn.plot.ly/plotly.js", "wss://127.0.0.1.example.org/"]
    assert notebook.outside() == notebook.requests[-2:]
