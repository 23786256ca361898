"""A headless Chromium, spoken to over a pipe (Chrome DevTools Protocol): looks at pages as a reader would."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
    """The browser of this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _pipe():
    """A pipe whose descriptors are not the ones that the browser wants."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved


class Chromium:
    """One page in a browser. Use it as a context."""

    def __init__(self, profile):
        # The browser reads commands from file descriptor 3 and answers on 4.
        (here_read, there_write), (there_read, here_write) = _pipe(), _pipe()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
            "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        shell = f'exec 3<&{there_read} 4>&{there_write}; exec "$@"'
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", shell, "chromium", str(find()), *flags],
            pass_fds=(there_read, there_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(there_read)
        os.close(there_write)
        self.read, self.write = os.fdopen(here_read, "rb"), os.fdopen(here_write, "wb")
        self.count, self.session, self.events = 0, None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.session = None
        with contextlib.suppress(OSError, EOFError):
            self("Browser.close")
        self.process.wait(10)
        self.read.close()
        with contextlib.suppress(OSError):
            self.write.close()

    def message(self):
        raw = bytearray()
        while not raw.endswith(b"\0"):
            byte = self.read.read(1)
            if not byte:
                raise EOFError("the browser has gone")
            raw += byte
        return json.loads(raw[:-1])

    def __call__(self, method, **params):
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        self.write.write(json.dumps(request).encode() + b"\0")
        self.write.flush()
        while True:
            answer = self.message()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, path, width=1280, height=900, dark=False, script=True):
        """Load a file, as wide as asked for."""
        self.events.clear()
        self("Emulation.setScriptExecutionDisabled", value=not script)
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", media="", features=features)
        self("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def value(self, expression):
        """What a JavaScript expression is worth."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def requests(self):
        """Addresses that the page asked for, the page itself left out."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def complaints(self):
        """What stands in the console: errors, warnings, exceptions."""
        self.value("0")  # events that are under way
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Log.entryAdded":
                found.append(params["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(str(params["args"]))
        return found

    def screenshot(self, path, whole=True):
        """A picture of the page."""
        picture = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(picture["data"]))
