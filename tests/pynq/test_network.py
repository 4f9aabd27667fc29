"""PYNQ.remote as a user has it: the command with PYNQ_REMOTE_DEVICES set, a board that answers on localhost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pynq
import pytest
from pynq.pl_server.remote_device import PYNQ_PORT

from tellme.golden.boards import build_name
from tellme.golden.config import TINY
from tests.pynq.board import Board
from tests.pynq.files import bit, hand_off, write_build
from tests.pynq.remote import serving


@pytest.fixture
def package() -> Iterator[None]:
    """PYNQ keeps what it parsed in its own folder: not beyond the test."""
    folder = Path(pynq.__file__).parent / "pl_server"
    before = set(folder.iterdir())
    yield
    for path in set(folder.iterdir()) - before:
        if path.is_file():
            path.unlink()


def tellme(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from tellme.host.cli import main; main()", *arguments],
        env=os.environ | {"PYNQ_REMOTE_DEVICES": "127.0.0.1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_board_over_the_network_tells_the_story_and_changed_files_are_noticed(
    tmp_path: Path, board: Callable[..., Board], package: None, story: Callable[[int], str]
) -> None:
    made = board(mhz=50)
    path = write_build(tmp_path, TINY)
    call = ["run", "--backend", "board", "--bitstream", str(path), "--prompt", "One day", "--max-new-tokens", "3"]
    with serving(made, PYNQ_PORT):
        first = tellme(*call)
        assert first.returncode == 0, first.stderr
        assert first.stdout.strip() == story(3)
        assert not made.buffers and round(made.clock_mhz) == 100
        (name,) = (n for n in made.files if n.startswith("/lib/firmware/"))
        assert name.startswith(f"/lib/firmware/{build_name(TINY)}-")
        # The same file name, another bitstream: the board has a file of that name, and must get the new one.
        path.write_bytes(bit({"preset": "tiny", "registers": {"build": 1}}))
        other = tellme(*call)
        assert other.returncode == 1 and "the accelerator's build register is 0x00000001" in other.stderr
        assert made.loads == 2 and not made.buffers
        # The same bitstream, another hand-off: PYNQ would take the one it has parsed before.
        path.with_suffix(".hwh").write_text(hand_off(TINY, vlnv="xilinx.com:hls:resize:1.0"))
        changed = tellme(*call)
        assert changed.returncode == 1 and "the design has 0 accelerators" in changed.stderr
        assert made.loads == 2
