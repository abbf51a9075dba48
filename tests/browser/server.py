"""A separate JupyterLab or Notebook 7: on loopback, behind a token, in an empty folder, without the user's settings."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat

HOST = "127.0.0.1"
ELSEWHERE = ("VSCODE_PID", "VSCODE_CWD", "NLORA_LAB_FIGURES")  # these change what a lab shows
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


class JupyterServer:
    """A running server, as a context manager; ``root`` is the folder its notebooks lie in."""

    def __init__(self, folder: Path, application: str = "jupyterlab") -> None:
        self.application = application  # the module that is started: jupyterlab or notebook
        self.root = folder / "root"
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> JupyterServer:
        self.root.mkdir()
        self._quiet()
        command = [
            sys.executable, "-m", self.application, f"--ServerApp.ip={HOST}", f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0", "--ServerApp.open_browser=False", "--ServerApp.allow_root=True",
            f"--ServerApp.root_dir={self.root}", "--expose-app-in-browser", "--LabApp.extension_manager=readonly",
            "--KernelManager.shutdown_wait_time=1",
            # if the tests are killed, the server ends by itself
            "--MappingKernelManager.cull_idle_timeout=600", "--ServerApp.shutdown_no_activity_timeout=900",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            # in its own session, so that Ctrl-C reaches the tests first and they end the server in order
            self._process = subprocess.Popen(
                command, cwd=self.root, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait(60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()  # this ends the kernels too
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def address(self, name: str) -> str:
        """The address of a notebook's page, laid out as if it were opened for the first time."""
        if self.application == "notebook":
            return f"http://{HOST}:{self.port}/notebooks/{name}?token={self.token}"
        return f"http://{HOST}:{self.port}/lab/workspaces/{Path(name).stem}/tree/{name}?reset&token={self.token}"

    def write(self, name: str, cells: list[str]) -> None:
        """Write a notebook of code cells into the folder."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": KERNELSPEC},  # without it the page asks which kernel to start
        )
        nbformat.write(notebook, self.root / name)

    def end_kernels(self) -> None:
        """End every kernel, so that no test slows down the next one."""
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")

    def api(self, method: str, path: str) -> Any:
        """Call the server's REST interface."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.request(method, f"/api/{path}", headers={"Authorization": f"token {self.token}"})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {body[:200]!r}")
        return json.loads(body) if body else None

    def _environment(self) -> dict[str, str]:
        inherited = {
            k: v for k, v in os.environ.items() if k not in ELSEWHERE and not k.startswith(("JUPYTER", "IPYTHON"))
        }
        folders = {
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
        }  # fmt: skip
        return {
            **inherited,
            **{name: str(self._folder / folder) for name, folder in folders.items()},
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel and the widgets' scripts of this environment, not others
            "JUPYTER_TOKEN": self.token,
            "NLORA_LAB_DEVICE": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _quiet(self) -> None:
        """Switch off the question about news from jupyter.org, which would cover the page."""
        settings = self._folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        values = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(values))

    def _wait(self, seconds: float) -> None:
        assert self._process is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                self.api("GET", "status")
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"{self.application} did not start:\n{self._log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
