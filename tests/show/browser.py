"""A headless Chromium that tests drive through its DevTools protocol, over two pipes: nothing has to be installed for
it but the browser."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds that a test waits for an answer; a hang is an error
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
SHIFT = 8  # among the protocol's modifiers


def installed() -> str | None:
    """The path of a browser, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A page in a browser: `answer` evaluates JavaScript, and a mouse, keys and files are as a person has them."""

    def __init__(self, to: int, back: int, folder: Path) -> None:
        self.to, self.back, self.folder = to, back, folder
        self.waiting = select.poll()  # select.select refuses the 1,025th open file, which long sessions of tests reach
        self.waiting.register(back, select.POLLIN)
        self.unread = b""
        self.count = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (told := self._next()).get("id") != self.count:
            self.events.append(told)
        assert "error" not in told, (method, told["error"])
        return told["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.unread:
            if not self.waiting.poll(1000 * max(0, end - time.monotonic())):
                raise TimeoutError("the browser does not answer")
            part = os.read(self.back, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self.unread += part
        told, _, self.unread = self.unread.partition(b"\0")
        return json.loads(told)

    def open(self, path: Path, *, width: int = 1280, height: int = 800, dark: bool = False, scale: float = 1) -> float:
        """Show a file; the seconds until it is ready, as it says itself, and has been drawn."""
        if self.session is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.folder))
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        start = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait('document.body?.dataset.ready === "yes"')
        self.drawn()
        return time.monotonic() - start

    def answer(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true. Raises TimeoutError after PATIENCE."""
        end = time.monotonic() + PATIENCE
        while not self.answer(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.01)

    def drawn(self) -> None:
        """Wait for the next two frames."""
        self.answer("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind: str, x: float, y: float, *, down: bool = False, shift: bool = False, **more: Any) -> None:
        """Press, release, move or wheel."""
        button = "left" if down or kind in ("mousePressed", "mouseReleased") else "none"
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(down), clickCount=1,
            modifiers=SHIFT * shift, **more,
        )  # fmt: skip

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, down=True)
        self.mouse("mouseReleased", x, y)
        self.drawn()

    def drag(self, places: list[tuple[float, float]], *, shift: bool = False) -> None:
        self.mouse("mouseMoved", *places[0], shift=shift)
        self.mouse("mousePressed", *places[0], down=True, shift=shift)
        for place in places[1:]:
            self.mouse("mouseMoved", *place, down=True, shift=shift)
        self.mouse("mouseReleased", *places[-1], shift=shift)
        self.drawn()

    def press(self, key: str) -> None:
        """Type a key."""
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        codes = {"Enter": 13, "Escape": 27}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes.get(key, 0), **text)
        self.drawn()

    def write(self, text: str) -> None:
        """Type a text where the cursor is."""
        self.call("Input.insertText", text=text)
        self.drawn()

    def picture(self, path: Path) -> None:
        """Save what is shown to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the page did wrong since it was opened: exceptions, refusals of its policy, requests to anywhere."""
        self.call("Runtime.evaluate", expression="1")
        found: list[str] = []
        for event in self.events:
            method, told = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown" or (
                method == "Log.entryAdded" and told["entry"]["level"] == "error"
            ):
                found.append(json.dumps(told))
            if method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(
                ("file:", "data:", "blob:")
            ):
                found.append(told["request"]["url"])
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a new browser, which keeps its files and downloads in a folder."""
    path = installed()
    assert path is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (to_browser[0], from_browser[1])]
    quiet = os.open(os.devnull, os.O_RDWR)
    moves = [(os.POSIX_SPAWN_DUP2, file, at) for file, at in ((quiet, 1), (quiet, 2), (high[0], 3), (high[1], 4))]
    words = [path, *OPTIONS, f"--user-data-dir={folder / 'profile'}"]
    process = os.posix_spawn(path, words, os.environ, file_actions=moves, setpgroup=0)
    for file in (*high, quiet, to_browser[0], from_browser[1]):
        os.close(file)
    try:
        yield Page(to_browser[1], from_browser[0], folder)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(to_browser[1])
        os.close(from_browser[0])
