"""Ctrl-C while `tellme run` streams from the simulation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "One day, a small fox"


def descendants(pid: int) -> list[int]:
    """Processes below one, as the kernel lists them."""
    own = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return own + [d for c in own for d in descendants(c)]


def test_an_interrupt_ends_the_simulation_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [
        sys.executable,
        "-c",
        "from tellme.host.cli import main; main()",
        "run",
        "--backend",
        "sim",
        "--model",
        "demo",
    ]
    command += ["--prompt", PROMPT, "--max-new-tokens", "200"]
    host = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    assert host.stdout is not None and host.stderr is not None
    seen = b""
    while len(seen) < len(PROMPT) + 8:  # some text of the model, too
        piece = os.read(host.stdout.fileno(), 100)
        assert piece, host.stderr.read()
        seen += piece
    assert seen.startswith(PROMPT.encode())
    children = descendants(host.pid)
    assert any("tb_top" in Path(f"/proc/{c}/cmdline").read_text() for c in children)
    os.killpg(host.pid, signal.SIGINT)  # what a terminal sends
    _, errors = host.communicate(timeout=60)
    assert (host.returncode, errors) == (130, b"tellme: interrupted\n")
    for _ in range(100):
        if not any(Path(f"/proc/{c}").exists() for c in children):
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"children of the interrupted command live: {children}")
    assert list(temporary.iterdir()) == []
