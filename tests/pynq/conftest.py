"""Boards without a board: the demo model, the files of a build, a simulated board behind PYNQ."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tellme.golden.config import TINY
from tellme.host.image.model import Model
from tellme.host.machine.backends import GoldenBackend
from tellme.host.talk.generate import Generation
from tests.machine.conftest import demo  # noqa: F401
from tests.pynq.board import Board, plugged
from tests.pynq.files import write_build


@pytest.fixture(scope="session")
def bitstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a build of the tiny preset."""
    return write_build(tmp_path_factory.mktemp("build"), TINY)


@pytest.fixture
def board() -> Iterator[Callable[..., Board]]:
    """Plugs in boards. At the end every buffer must be free and nothing forbidden done."""
    boards: list[Board] = []
    with ExitStack() as stack:

        def make(**settings: Any) -> Board:
            made = Board(**settings)
            stack.callback(made.close)
            stack.enter_context(plugged(made))
            boards.append(made)
            return made

        yield make
        gc.collect()
        for made in boards:
            assert not made.buffers, f"{len(made.buffers)} buffers were not freed"
            assert not made.violations, made.violations


@pytest.fixture(scope="session")
def story(demo: Model) -> Callable[[int], str]:  # noqa: F811
    """What the golden model says after "One day", in so many tokens."""

    @cache
    def tell(tokens: int) -> str:
        generation = Generation(
            GoldenBackend(demo.weights(), TINY),
            demo.tokenizer,
            demo.tokenizer.encode("One day"),
            max_new_tokens=tokens,
        )
        return "One day" + "".join(generation)

    return tell
