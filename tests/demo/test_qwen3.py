"""The second demo model, a ternary Qwen3 with group scales, by its name: no command needs to be told what it runs on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tellme.demo.stories import stories
from tellme.golden.config import TINY
from tellme.host.cli import app
from tellme.host.commands.common import preset
from tellme.host.image.model import demo_folder, demo_qwen3, find_model
from tellme.host.machine.measurement import shape
from tests.oracle.heldout import TEXT

pytestmark = pytest.mark.xdist_group("machine")

NAME = "demo-qwen3"
GROUPED = replace(TINY, weight_format="grouped")
PROMPT = "Once upon a time there was a kind girl named Mia."


def told(*arguments: object) -> dict[str, Any]:
    """What a command says with --json."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return facts


def refused(*arguments: object) -> str:
    """The one line with which a command ends."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    return lines[0]


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def test_it_tells_a_story_in_sentences_of_the_stories_words() -> None:
    known = words(" ".join(stories(2000, 1)))
    text = told("run", "--model", NAME, "--backend", "golden", "--prompt", PROMPT, "--max-new-tokens", 200)["text"]
    story = text.removeprefix(PROMPT)
    assert words(story) <= known, words(story) - known
    sentences = re.findall(r"[^.?!]+[.?!]", story)
    assert len(sentences) >= 8 and len(set(sentences)) == len(sentences)
    assert story.rstrip().endswith((".", "!", "?", '"'))


def test_its_tokens_are_those_of_the_simulated_accelerator() -> None:
    """Of the preset `tiny` in the format `grouped`, which nobody has named."""
    facts = told("run", "--model", NAME, "--check", "--prompt", "One day, a small fox", "--max-new-tokens", 4)
    assert facts["bit_exact"] is True and len(facts["new_ids"]) == 4


def test_its_figures_are_what_its_readme_says() -> None:
    got = told("eval", NAME, "--text", TEXT, "--documents")
    readme = (demo_qwen3().parent / "README.md").read_text()
    assert f"{got['nll']:.4f} nats a token on the accelerator's arithmetic" in readme
    assert f"{got['scored_tokens']:,} tokens" in readme and f"{demo_qwen3().stat().st_size:,} bytes" in readme
    assert got["nll"] < 0.4


def test_its_accelerator_is_chosen_unless_one_is_named(tmp_path: Path) -> None:
    path = find_model(NAME)
    assert path == demo_qwen3()
    for backend in ("sim", "golden"):
        assert preset(None, backend, None, path) == GROUPED
        assert preset(None, backend, None, demo_folder()) == TINY
    assert preset(None, "golden", None, path, None, ["lanes=2"]) == replace(GROUPED, lanes=2)
    assert preset(None, "golden", None, path, None, ["weight_format=ternary"]) == TINY
    assert preset("tiny", "golden", None, path) == TINY
    config = tmp_path / "plain.toml"
    config.write_text('board = "tiny"\n')
    assert preset(None, "golden", None, path, config) == TINY
    line = refused("run", "--model", NAME, "--board", "tiny", "--backend", "golden", "--prompt", "One")
    assert "accelerator 'tiny' has one scale a matrix" in line and line.endswith("(--set weight_format=grouped)")
    assert "(--set weight_format=grouped)" in refused("convert", NAME, tmp_path / "x.tlm")


def test_its_image_says_what_it_runs_on(tmp_path: Path) -> None:
    """As any image of that format does."""
    path = tmp_path / "x.tlm"
    told("convert", NAME, path, "--board", "tiny", "--set", "weight_format=grouped")
    assert preset(None, "sim", None, path) == GROUPED
    call = ("--backend", "golden", "--prompt", "One day", "--max-new-tokens", 5)
    assert told("run", "--model", path, *call)["new_ids"] == told("run", "--model", NAME, *call)["new_ids"]


def test_its_shape_has_the_name() -> None:
    spec = shape(NAME)
    assert spec.group_scales and spec.qk_norm and spec.tied
