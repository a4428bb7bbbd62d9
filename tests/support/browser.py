"""Headless Chromium, controlled through the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAMS = "chromium|chromium-browser|google-chrome"
LIMIT = 60.0
"""Time limit in seconds of every wait."""

_KEY_CODES = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
"""Codes by which the browser finds what such a key does by itself."""


class Browser:
    """A browser with one page and its own profile.

    Attributes:
        messages: errors and warnings of the page.
        requested_urls: URLs that the page requested.
    """

    def __init__(self, profile: Path) -> None:
        program = next(path for name in PROGRAMS.split("|") if (path := shutil.which(name)))
        self._errors = profile.with_name(f"{profile.name}.log")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    program,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-quic",
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    "--hide-scrollbars",
                    "--remote-debugging-port=0",
                    f"--user-data-dir={profile}",
                    "about:blank",
                ],
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self._port_file = profile / "DevToolsActivePort"
        self._session: Any = None
        self._socket: Any = None
        self.messages: list[str] = []
        self.requested_urls: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._run(self._connect())
        except BaseException:
            self._end()
            raise
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        return self._run(self._call(method, parameters))

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + LIMIT
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, (
                f"{condition} did not become true: {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.05)

    def choose_file(self, selector: str, file: Path) -> None:
        """Choose a file in a file input, as a person does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, *keys: str) -> None:
        """Press keys one after another, as a person does: characters, or names such as "Enter"."""
        for key in keys:
            code = _KEY_CODES.get(key, 0)
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            about = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Click the middle of the first element with this selector."""
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def set_screen(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Emulate a screen of that size, with touch on a phone, and in a dark or light colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        """Return a PNG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    async def _connect(self) -> None:
        import aiohttp

        deadline = time.monotonic() + LIMIT
        while not (self._port_file.exists() and self._port_file.read_text().count("\n")):
            assert self._process.poll() is None, self._errors.read_text(errors="replace")
            assert time.monotonic() < deadline, self._errors.read_text(errors="replace")
            await asyncio.sleep(0.05)
        port = self._port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [target for target in await answer.json() if target["type"] == "page"]
        self._socket = await self._session.ws_connect(
            pages[0]["webSocketDebuggerUrl"], max_msg_size=0, heartbeat=None
        )

    async def _call(self, method: str, parameters: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(LIMIT):
            while True:
                message = await self._socket.receive_json()
                if message.get("id") == number:
                    assert "error" not in message, (method, message["error"])
                    return message["result"]
                if message.get("method") == "Page.javascriptDialogOpening":  # such as "Leave this page?"
                    accept = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                    await self._socket.send_json({"id": next(self._numbers), **accept})
                self._handle_event(message)

    def _handle_event(self, event: Any) -> None:
        """Record the errors of the page and the URLs it requests."""
        parameters = event.get("params", {})
        if event.get("method") == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.messages.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Network.requestWillBeSent":
            self.requested_urls.append(parameters["request"]["url"])

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    async def _disconnect(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()

    def _end(self) -> None:
        self._run(self._disconnect())
        self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
