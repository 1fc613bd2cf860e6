"""A headless Chromium for tests, spoken to by the DevTools protocol through a pipe (no port, no driver)."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Chromium reads its commands from descriptor 3 and writes to 4.
PUT_PIPES = """import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, pipe in zip((3, 4), pipes):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The browser's path; CHROMIUM names another one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser. Every event that the page sends is kept in `events`: console, errors,
    requests."""

    def __init__(self, program: str, profile: Path):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [sys.executable, "-c", PUT_PIPES, str(to_read), str(to_write), program, "--headless=new",
                   "--no-sandbox",
                   "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--disable-gpu",
                   "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
                   "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session, self.events = 0, b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """One command and its result; RuntimeError where the browser refuses it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda answer: answer.get("id") == self._number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False,
             media: str = "") -> None:
        """Load a page in a window of that size (a phone's below 500), and forget the events before it."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", media=media,
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events = []
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self._until(lambda answer: answer.get("method") == "Page.loadEventFired")

    def ask(self, expression: str):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def named(self, *methods: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def problems(self) -> list[dict]:
        """What the console shows as warning or error, and exceptions."""
        logged = [entry["entry"] for entry in self.named("Log.entryAdded")
                  if entry["entry"]["level"] in ("warning", "error")]
        said = [call for call in self.named("Runtime.consoleAPICalled")
                if call["type"] in ("warning", "error", "assert")]
        return logged + said + self.named("Runtime.exceptionThrown")

    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self.named("Network.requestWillBeSent")]

    def picture(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(data["data"]))

    def print_to(self, path: Path) -> None:
        path.write_bytes(
            base64.b64decode(
                self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
            )
        )

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _until(self, wanted, seconds: float = 60) -> dict:
        deadline = time.monotonic() + seconds
        while True:
            while b"\0" in self._buffer:
                text, self._buffer = self._buffer.split(b"\0", 1)
                answer = json.loads(text)
                if "method" in answer:
                    self.events.append(answer)
                if wanted(answer):
                    return answer
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser did not answer within {seconds:.0f} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser has ended, exit code {self._process.poll()}")
            self._buffer += part
