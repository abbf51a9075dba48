"""A hub on loopback, which serves local folders to huggingface_hub, transformers and datasets.

The hub's client reads ``HF_ENDPOINT`` when it is imported. So a separate process has to talk to this server. Start it
with the variables of ``environment``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TESTS = Path(__file__).resolve().parent
LARGE = (".safetensors", ".parquet", ".bin")  # the hub stores these in LFS, named by their SHA-256
REQUESTS = "/_requests"
"""``GET`` this path for a JSON object {"METHOD /path": count}. A GET of only a part counts as RANGE."""


@dataclass
class Repo:
    """A repository: the folder of its main branch, and other folders by the name of their branch or tag."""

    folder: Path
    gated: bool = False
    revisions: dict[str, Path] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, Path] | None:
        """The commit hash and the folder of a branch, tag or commit."""
        named = {"main": self.folder, **self.revisions}
        return next(((commit_of(f), f) for name, f in named.items() if revision in (name, commit_of(f))), None)


def commit_of(folder: Path) -> str:
    """The commit hash that the server gives to a folder. It stays the same when a file in the folder changes."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


class HubServer:
    """Serves the repositories that ``add`` was called with, until the ``with`` block ends."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repo_id: str, folder: Path, *, kind: str = "model", gated: bool = False, **revisions: Path) -> str:
        """Serve ``folder`` as ``owner/name``, other folders as its branches or tags. Returns the commit of main."""
        self.repos[kind, repo_id] = Repo(folder, gated, revisions)
        return commit_of(folder)

    def count(self, path: str, method: str = "GET") -> int:
        """How often a path (without its query) was requested by "HEAD", "GET", "RANGE" (a GET of a part) or "POST"."""
        return self.requests[f"{method} {path}"]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    """The environment of a process that uses ``hub``, and stores everything below ``home``."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "NLORA_LAB"))}
    return clean | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NLORA_LAB_CACHE": str(home / "rows"),
        "NLORA_LAB_DEVICE": "cpu",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
        "OMP_NUM_THREADS": "1",
    }


class Handler(BaseHTTPRequestHandler):
    """One request. The routes are those of the hub's client (huggingface_hub 1 and 2)."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        raw = urlsplit(self.path).path
        if raw == REQUESTS:
            return self._json(dict(self.hub.requests))
        method = "RANGE" if self.command == "GET" and "Range" in self.headers else self.command
        self.hub.requests[f"{method} {unquote(raw)}"] += 1
        kind, parts = "model", [unquote(part) for part in raw.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[api:]
        if parts[:1] in (["datasets"], ["models"]):
            kind, parts = parts[0].removesuffix("s"), parts[1:]
        if len(parts) < 2:
            return self._refuse(404, "") if raw != "/" else self._json({})
        repo_id = "/".join(parts[:2])
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None:
            return self._refuse(404, "RepoNotFound")
        action, revision, rest = (parts[2:3] or ["revision"])[0], (parts[3:4] or ["main"])[0], parts[4:]
        snapshot = repo.at(revision)
        if snapshot is None:
            return self._refuse(404, "RevisionNotFound")
        commit, folder = snapshot
        if action == "resolve":
            return self._refuse(403, "GatedRepo") if repo.gated else self._file(folder, "/".join(rest), commit)
        if action == "revision":
            return self._json(_info(repo_id, folder, commit, repo.gated))
        if action == "tree":
            deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
            listed = _tree(folder, "/".join(rest), deep)
            return self._refuse(404, "EntryNotFound") if listed is None else self._json(listed)
        if action == "paths-info":
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            return self._json([e for path in form.get("paths", []) if (e := _entry(folder, folder / path)) is not None])
        return self._refuse(404, "EntryNotFound")

    do_HEAD = do_POST = do_GET

    def _file(self, folder: Path, name: str, commit: str) -> None:
        file = folder / name
        if not file.is_file() or ".." in name:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"}
        if file.suffix in LARGE:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": headers["ETag"]}
        byte_range = self.headers.get("Range")
        if byte_range is None:
            return self._send(200, data, headers)
        first, _, last = byte_range.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206, data[start : end + 1], headers)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        error = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, json.dumps({"error": code or "Not found"}).encode(), {**error, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def _etag(file: Path) -> str:
    data = file.read_bytes()
    if file.suffix in LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's own


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _info(repo_id: str, folder: Path, commit: str, gated: bool) -> dict[str, Any]:
    siblings = []
    for file in _files(folder):
        size, etag = file.stat().st_size, _etag(file)
        entry = {"rfilename": file.relative_to(folder).as_posix(), "size": size, "blobId": etag[:40]}
        if file.suffix in LARGE:
            entry["lfs"] = {"size": size, "sha256": etag, "pointerSize": 134}
        siblings.append(entry)
    gate = "manual" if gated else False
    return {
        "id": repo_id, "modelId": repo_id, "sha": commit, "private": False, "gated": gate, "disabled": False,
        "tags": [], "downloads": 0, "likes": 0, "siblings": siblings, "lastModified": "2025-01-01T00:00:00.000Z",
    }  # fmt: skip


def _entry(folder: Path, path: Path) -> dict[str, Any] | None:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    if not path.is_file():
        return None
    size, etag = path.stat().st_size, _etag(path)
    large = {"lfs": {"oid": etag, "size": size, "pointerSize": 134}} if path.suffix in LARGE else {}
    return {"type": "file", "path": name, "oid": etag[:40], "size": size, **large}


def _tree(folder: Path, below: str, deep: bool) -> list[dict[str, Any]] | None:
    top = folder / below
    if not top.is_dir():
        return None
    return [e for path in sorted(top.rglob("*") if deep else top.iterdir()) if (e := _entry(folder, path)) is not None]
