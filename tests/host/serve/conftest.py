"""A real server: `tellme serve` on the golden model, as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tellme.host.image.model import demo_folder

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (
    "{% if tools %}tools: {% for t in tools %}{{ t.function.name }} {% endfor %}\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass
class Running:
    """A server's address and process."""

    url: str
    process: subprocess.Popen[str]

    def stop(self) -> int:
        """Tells it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


def templated(folder: Path) -> Path:
    """The demo model with a chat template that has a place for tools."""
    shutil.copytree(demo_folder(), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    return folder


def serve(*options: str, **environment: str) -> Running:
    """Starts one on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tellme", "serve", "--backend", "golden", "--port", "0", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.search(r"http://\S+:\d+", line):
            return Running(found[0], process)
    process.wait(60)
    raise AssertionError(seen)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = templated(tmp_path_factory.mktemp("serve") / "story")
    running = serve("--model", str(folder), "--slots", "4", "--queue", "8", "--max-body", "20000")
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0
