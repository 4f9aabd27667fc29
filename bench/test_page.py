"""The page of `tellme serve` in a real browser, Chromium without a window, driven through its debugging pipe. `BROWSER` names another program.

Run it with `python -m pytest bench/test_page.py`; pictures of a phone and of a desk go to `build/page/`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.serve.conftest import Running, serve, templated

PICTURES = Path("build/page")
SIZES = {"phone": (390, 844), "desk": (1280, 800)}


class Browser:
    """A page in Chromium: JSON messages, each ended by a zero, through descriptors 3 and 4."""

    def __init__(self, profile: Path):
        program = os.environ.get("BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
        assert program, "no Chromium; apt install chromium, or set BROWSER"
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe --no-first-run"
        )
        # Descriptors must be 3 and 4 in the child.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *options.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(p["targetId"] for p in pages if p["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._in, 1 << 16)
            assert data, "the browser has gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 240) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"))
            time.sleep(0.2)
        return value

    def open(self, url: str, size: str) -> None:
        width, height = SIZES[size]
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == "phone",
        )
        self.call("Page.navigate", url=url)
        self.until(
            "document.readyState === 'complete' && document.getElementById('live').innerText.includes('tokens/s')"
        )

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        (PICTURES / f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = serve("--model", str(templated(tmp_path_factory.mktemp("page") / "story")))
    yield running
    running.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    b = Browser(tmp_path / "profile")
    yield b
    b.close()


SAY = "document.getElementById('text').value = {0}; document.getElementById('form').requestSubmit(); true"
LAST = "[...document.querySelectorAll('.said.assistant')].at(-1)"


def say(browser: Browser, text: str) -> None:
    browser.run(SAY.format(json.dumps(text)))


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation_is_held_stopped_kept_and_told_apart(server: Running, browser: Browser, size: str) -> None:
    browser.open(server.url, size)
    assert browser.run("document.getElementById('title').textContent") == "story"
    browser.run("settings.max_tokens = 12; true")
    say(browser, "<b>One day</b>, a small fox")
    browser.until(f"{LAST}.querySelector('small')?.textContent.includes('12 tokens')")
    assert browser.run("document.querySelector('.said.user').textContent") == "<b>One day</b>, a small fox"
    assert browser.run("document.querySelectorAll('.said b').length") == 0, "what is said is text, not a page"
    # Stop in the middle of a long one.
    browser.run("settings.max_tokens = 200; settings.temperature = 1.2; true")
    say(browser, "and then")
    browser.until(f"{LAST}.textContent.length > 4 && document.getElementById('send').textContent === 'Stop'")
    browser.picture(size)
    browser.run("document.getElementById('form').requestSubmit(); true")
    browser.until(f"{LAST}.querySelector('small')?.textContent === 'stopped'")
    browser.until("fetch('slots').then(r => r.json()).then(s => s.every(x => x.state === 'idle'))")
    # Another conversation, and back; a reload keeps both.
    browser.run("document.getElementById('new').click(); true")
    assert browser.run("document.querySelectorAll('.said').length") == 0
    browser.open(server.url, size)
    assert browser.run("document.querySelectorAll('.talk').length") == 2
    browser.run("document.querySelectorAll('.talk')[1].firstChild.click(); true")
    assert browser.run("document.querySelectorAll('.said').length") == 4
    # Nothing sticks out of the screen, nothing comes from elsewhere, and nothing was complained about.
    assert browser.run(
        "document.documentElement.scrollWidth <= innerWidth && document.getElementById('send').getBoundingClientRect().right <= innerWidth"
    )
    assert browser.run("document.getElementById('form').getBoundingClientRect().bottom <= innerHeight")
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked and all(u.startswith((server.url, "data:", "about:")) for u in asked), asked
    wrong = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not wrong, wrong


def test_the_settings_and_an_error_are_shown(server: Running, browser: Browser) -> None:
    browser.open(server.url, "phone")
    browser.run(
        "document.getElementById('set').click(); document.querySelector('[name=top_p]').value = 7; document.getElementById('settings').close(); true"
    )
    browser.until("settings.top_p === '7'")
    say(browser, "hello")
    browser.until(f"{LAST}?.classList.contains('bad') && {LAST}.textContent.includes('top_p must be a number')")
    browser.picture("error")
