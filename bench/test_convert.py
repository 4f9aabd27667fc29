"""Conversion of checkpoints of published shapes: the commands of bench/convert.py, below pytest's temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.convert import SHAPES, measure, record


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_shape_is_converted_and_verified(name: str, tmp_path: Path) -> None:
    row = measure(name, tmp_path)  # the peak of 2B-4T is bounded there
    print(row)
    record(row)
    assert not any(tmp_path.iterdir())
