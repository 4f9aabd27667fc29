"""Programs that workers begin end with them, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.workers import ROOT

PART = """import os, pathlib, time

def test_it() -> None:
    pathlib.Path(__file__).with_name("begun").write_text(str(os.getpid()))
    time.sleep(120)
"""


def wait_for(what: str, path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's prctl")
def test_a_part_ends_with_its_worker(tmp_path: Path) -> None:
    (tmp_path / "test_part.py").write_text(PART)
    begin = f"from bench.parts import part; part({str(tmp_path / 'test_part.py')!r})"
    worker = subprocess.Popen([sys.executable, "-c", begin], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        wait_for("the part did not begin", tmp_path / "begun")
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    time.sleep(0.2)
    pid = int((tmp_path / "begun").read_text())
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1][:3]:
        assert time.monotonic() < end, "the part goes on without its worker"
        time.sleep(0.1)
