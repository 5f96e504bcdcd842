"""Chromium in place of a user: `python browser_sign_in.py CHROMIUM URL USER SCREENSHOT` signs in, prints where it ends.

It speaks the DevTools protocol over a pipe, so that nothing else is needed.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLBACK = "http://127.0.0.1:1/callback"
DEADLINE_SECONDS = 60.0


class RejectedError(Exception):
    """Chromium rejects a command."""


class Chromium:
    """A page of a headless Chromium without scripts."""

    def __init__(self, program: str, profile: str) -> None:
        incoming, self._write = os.pipe()
        self._read, outgoing = os.pipe()
        options = f"--headless --no-sandbox --remote-debugging-pipe --user-data-dir={profile} --window-size=720,900"
        moved = f"exec {program} {options} about:blank 3<&{incoming} 4>&{outgoing}"
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", moved],
            pass_fds=(incoming, outgoing),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(incoming)
        os.close(outgoing)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.requested: list[str] = []
        target = next(found for found in self._targets() if found["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setScriptExecutionDisabled", value=True)

    def _targets(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = self.send("Target.getTargets")["targetInfos"]
            if any(target["type"] == "page" for target in found):
                return found
        raise TimeoutError("Chromium has no page")

    def send(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RejectedError(answer["error"]["message"])
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 65536)
            assert data, "Chromium has ended"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        return message

    def on(self, selector: str, act: Callable[[int], None]) -> None:
        """Do something with an element as soon as it is there; a page that changes meanwhile has other nodes."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        problem: Exception | None = None
        while time.monotonic() < deadline:
            try:
                root = self.send("DOM.getDocument")["root"]["nodeId"]
                if node := self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]:
                    act(node)
                    return
            except RejectedError as error:
                problem = error
        raise TimeoutError(f"there is no {selector}: {problem}")

    def click(self, selector: str) -> None:
        def act(node: int) -> None:
            self.send("DOM.scrollIntoViewIfNeeded", nodeId=node)
            box = self.send("DOM.getBoxModel", nodeId=node)["model"]["content"]
            x, y = (box[0] + box[4]) / 2, (box[1] + box[5]) / 2
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

        self.on(selector, act)

    def write(self, selector: str, text: str) -> None:
        def act(node: int) -> None:
            self.send("DOM.focus", nodeId=node)
            self.send("Input.insertText", text=text)

        self.on(selector, act)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main(program: str, url: str, user: str, screenshot: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(program, profile)
        try:
            browser.send("Page.navigate", url=url)
            browser.on("button[value=allow]", lambda node: None)
            picture = browser.send("Page.captureScreenshot", format="png")["data"]
            Path(screenshot).write_bytes(base64.b64decode(picture))
            browser.click("button[value=allow]")
            browser.write("input[name=login]", user)
            browser.write("input[name=password]", "any")
            browser.click("input[value=login] ~ button[type=submit]")
            browser.click("input[value=consent] ~ button[type=submit]")
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not (there := [asked for asked in browser.requested if asked.startswith(CALLBACK)]):
                assert time.monotonic() < deadline, browser.requested
                browser.send("DOM.getDocument")
            print(json.dumps(there[0]))
        finally:
            browser.close()


main(*sys.argv[1:])
