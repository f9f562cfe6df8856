"""A real browser, Chromium, driven over its own protocol: what a page looks like and what it asks for.

Headless, with a profile of its own and without network: every request is written down, and none but the page's
own file is let through.
"""

import base64
import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

_PATIENCE = 60.0
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0",
            "--proxy-server=127.0.0.1:9", "--disable-features=Translate,OptimizationHints")  # fmt: skip
"""The proxy is nobody: what would go to a network fails."""


@dataclass
class Page:
    """One tab. ``requests`` are addresses it asked for, ``complaints`` what stands in its console."""

    socket: ClientConnection
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _number: int = 0
    _events: list[str] = field(default_factory=list)

    def open(self, path: Path, *, width: int, scheme: str = "light", media: str = "") -> None:
        """Load a file in a window of so many pixels, in ``light`` or ``dark``; ``media`` may be print."""
        self.show(width=width, scheme=scheme, media=media)
        self.requests.clear()
        self.complaints.clear()
        self._events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self._until("Page.loadEventFired")

    def show(self, *, width: int, scheme: str = "light", media: str = "") -> None:
        """The same page in another window."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=812 if phone else 900,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def ask(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> Path:
        """The whole page as it is shown."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        number = self._number
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def _until(self, event: str) -> None:
        while event not in self._events:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv(timeout=_PATIENCE))
        method, params = message.get("method"), message.get("params", {})
        if method is not None:
            self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))
        return message


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A browser with one tab; gone afterwards with all its processes."""
    program = shutil.which("chromium")
    assert program, "no chromium: make peers"
    profile = Path(tempfile.mkdtemp(prefix="kyb-chromium-"))
    with open(profile / "log", "wb") as log:
        popen = subprocess.Popen(
            [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=log, stderr=log, start_new_session=True, env={"HOME": str(profile), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    try:
        with connect(_address_of_tab(profile, popen), max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
                page.call(f"{domain}.enable")
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            popen.send_signal(signal.SIGTERM)
        try:
            popen.wait(20)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait(20)
        shutil.rmtree(profile, ignore_errors=True)


def _address_of_tab(profile: Path, popen: "subprocess.Popen[bytes]") -> str:
    """Where its only tab listens: Chromium writes the port that it chose into its profile."""
    give_up = time.monotonic() + _PATIENCE
    port = profile / "DevToolsActivePort"
    while not (port.exists() and port.read_text().count("\n")):
        assert popen.poll() is None, (profile / "log").read_text()
        assert time.monotonic() < give_up, (profile / "log").read_text()
        time.sleep(0.05)
    with urlopen(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list") as answer:
        tabs = json.load(answer)
    address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    return str(address)
