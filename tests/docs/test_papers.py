"""The page of the papers' design points: its configurations are what they say, and its figures are those of now."""

from __future__ import annotations

import re

import pytest

from bench import papers
from tellme.golden.config import KV260
from tellme.golden.shapes import SHAPES
from tellme.host.configuration import changes


@pytest.mark.parametrize("point", papers.PUBLISHED, ids=lambda p: p.name)
def test_every_parameter_says_whether_it_is_published(point: papers.Published) -> None:
    lines = [x for x in (papers.FOLDER / point.file).read_text().splitlines() if "=" in x and not x.startswith("#")]
    given = {x.split("=")[0].strip(): x for x in lines}
    assert all(re.search(r"# (published|assumed|follows)", x) for n, x in given.items() if n != "board")
    assert changes(point.config, KV260).keys() <= given.keys()
    spec = SHAPES[papers.MODEL]
    assert (point.config.max_hidden, point.config.max_heads) == (spec.hidden, spec.heads)


def test_the_page_is_of_now() -> None:
    """Of the first point; `python -m bench.papers --check` makes all of it anew."""
    text = papers.PAGE.read_text()
    for lines in papers.rows(papers.PUBLISHED[0]):
        assert "\n".join(lines) in text, "run python -m bench.papers"
    assert all(p.name in text and f"({p.paper})" in text for p in papers.PUBLISHED)
