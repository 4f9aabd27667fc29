"""A slot in a file: read back it saves the prefill and changes nothing; what is no such file is refused in a line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.golden.kv import EIGHT
from tellme.host.cli import app
from tellme.host.errors import UserError
from tellme.host.image.model import Model
from tellme.host.machine.backends import GoldenBackend
from tellme.host.talk import prompt_cache
from tellme.host.talk.engine import Engine
from tests.host.support import start, write_checkpoint
from tests.models import small_spec

FOLDER: list[Path] = []
PROMPT = [i * 5 % 60 for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    FOLDER[:] = [write_checkpoint(tmp_path_factory.mktemp("m") / "m", small_spec(layers=1, vocab=64))]
    with Model.open(FOLDER[0], TINY) as opened:
        yield opened


def engine(model: Model, context: int | None = None) -> Engine:
    return Engine(GoldenBackend(model.weights(), TINY, context=context))


def say(engine: Engine, prompt: list[int]) -> tuple[list[int], int]:
    ticket = engine.submit(prompt, max_new_tokens=4)
    while engine.busy:
        engine.step()
    return [c.token for c in ticket.new], ticket.conversation.cached


def test_what_is_read_back_need_not_be_computed(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    first = engine(model)
    assert prompt_cache.save(file, model, first) == 0 and not file.exists()
    said, _ = say(first, PROMPT)
    assert prompt_cache.save(file, model, first) == 33
    other = engine(model)
    assert prompt_cache.load(file, model, other) == 33
    assert say(other, PROMPT) == (said, 29)
    # A machine takes what golden wrote.
    accelerator, _, same = start(FOLDER[0])
    machine = Engine(accelerator)
    assert prompt_cache.load(file, same, machine) == 33
    assert say(machine, PROMPT) == (said, 29)


def test_turned_keys_are_read_as_such_alone(model: Model, tmp_path: Path) -> None:
    """Their numbers would fit: only the file can tell."""
    file, turned = tmp_path / "cache", replace(EIGHT, hadamard=True)

    def turning() -> Engine:
        return Engine(GoldenBackend(model.weights(), replace(TINY, hadamard=True), kv=turned))

    first = turning()
    said, _ = say(first, PROMPT)
    prompt_cache.save(file, model, first)
    with pytest.raises(UserError, match="was made with --kv 8 --hadamard, not 8; take that"):
        prompt_cache.load(file, model, engine(model))
    other = turning()
    assert prompt_cache.load(file, model, other) == 33 and say(other, PROMPT) == (said, 29)
    plain = engine(model)
    say(plain, PROMPT)
    prompt_cache.save(file, model, plain)
    with pytest.raises(UserError, match="was made with --kv 8, not 8 --hadamard; take that"):
        prompt_cache.load(file, model, turning())


def rewritten(source: Path, target: Path, **changes: Any) -> Path:
    with np.load(source) as found:
        parts = {name: found[name] for name in found.files}
    parts |= changes
    with target.open("wb") as f:
        np.savez(f, **{k: v for k, v in parts.items() if v is not None})
    return target


def test_what_is_no_cache_is_refused(model: Model, tmp_path: Path) -> None:
    good = tmp_path / "good"
    first = engine(model)
    say(first, PROMPT)
    prompt_cache.save(good, model, first)

    def head(**changes: Any) -> Any:
        fields = {
            "kind": prompt_cache.KIND,
            "version": 2,
            "model": prompt_cache.fingerprint(model),
            "kv": "8",
        } | changes
        return np.frombuffer(json.dumps(fields).encode(), np.uint8)

    bad = tmp_path / "bad"
    for changes, message in (
        ({"head": head(kind="x")}, "is no prompt cache"),
        ({"head": head(version=1)}, "has version 1, this tellme reads 2; delete it"),
        ({"head": head(kv="4")}, "was made with --kv 4, not 8; take that, or give another file"),
        ({"head": head(kv="8 --hadamard")}, "was made with --kv 8 --hadamard, not 8; take that, or give another file"),
        ({"head": head(model="0")}, "was made with another model or for another board"),
        ({"head": None}, "is no prompt cache"),
        ({"tokens": np.zeros(33, np.int32)}, "wrong types"),
        ({"tokens": np.zeros(32, np.int64)}, "do not belong together"),
        ({"tokens": np.full(33, 64)}, "do not belong together"),
        ({"k": np.zeros((1, 2, 33, 16), np.int8)}, "a cache of shape"),
        ({"k": np.zeros((1, 33), np.int8)}, "do not belong together"),
        ({"k": np.array([object()])}, "is no prompt cache"),
    ):
        target = engine(model)
        with pytest.raises(UserError, match=message):
            prompt_cache.load(rewritten(good, bad, **changes), model, target)
        assert target.scheduler.slots[0].tokens == []
    data = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        place = archive.getinfo("k.npy").header_offset + 300
    data[place] ^= 1
    bad.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged \(checksum of k.npy\)"):
        prompt_cache.load(bad, model, engine(model))
    bad.write_bytes(good.read_bytes()[:500])
    with pytest.raises(UserError, match="is no prompt cache"):
        prompt_cache.load(bad, model, engine(model))
    with pytest.raises(UserError, match="cannot be read"):
        prompt_cache.load(tmp_path / "none", model, engine(model))
    with pytest.raises(UserError, match="holds 33 tokens, the context holds 20; take a larger --context"):
        prompt_cache.load(good, model, engine(model, context=20))


def test_the_slot_that_was_used_last_is_kept_and_the_longest_of_equals(model: Model, tmp_path: Path) -> None:
    several = Engine(GoldenBackend(model.weights(), TINY, slots=3))
    say(several, PROMPT)
    say(several, [50, 51, 52])
    file = tmp_path / "cache"
    assert prompt_cache.save(file, model, several) == 6  # the last token of an answer has no keys yet
    with np.load(file) as found:
        assert found["tokens"][:3].tolist() == [50, 51, 52]
    for slot in several.scheduler.slots:
        slot.used = 1
    assert prompt_cache.save(file, model, several) == 33


def test_a_cache_may_fill_the_context_and_have_any_token(model: Model, tmp_path: Path) -> None:
    file, other = tmp_path / "cache", tmp_path / "other"
    first = engine(model)
    say(first, PROMPT)
    prompt_cache.save(file, model, first)
    assert prompt_cache.load(file, model, engine(model, context=33)) == 33
    ends = np.array([0, 63] * 16 + [0])  # of the vocabulary
    assert prompt_cache.load(rewritten(file, other, tokens=ends), model, engine(model)) == 33
    with pytest.raises(UserError, match="do not belong together"):
        prompt_cache.load(rewritten(file, other, tokens=ends - 1), model, engine(model))
    with pytest.raises(UserError, match="holds 0 tokens"):
        prompt_cache.load(rewritten(file, other, tokens=ends[:0]), model, engine(model))
    with np.load(file) as found:
        short = {n: found[n][:, :, :20] for n in ("v_scales", "k_scales", "v")}
    for name, part in short.items():
        target = engine(model)
        with pytest.raises(UserError, match="do not belong together"):
            prompt_cache.load(rewritten(file, other, **{name: part}), model, target)
        assert target.scheduler.slots[0].tokens == []


def test_run_keeps_its_cache_in_a_file(tmp_path: Path) -> None:
    call = ["run", "--backend", "golden", "--prompt", "One day, a small fox", "--max-new-tokens", "3", "--json"]
    call += ["--prompt-cache", str(tmp_path / "cache"), "--logprobs"]
    first, second = (json.loads(CliRunner().invoke(app, call).stdout) for _ in range(2))
    assert first["new_ids"] == second["new_ids"] and first["cached_tokens"] == 0
    assert second["cached_tokens"] == len(second["prompt_ids"]) - 1
    assert len(first["logprobs"]) == 3 and all(v < 0 for v in first["logprobs"])
    refused = CliRunner().invoke(app, [*call[:-1], "--logprobs", "--prompt-cache", str(tmp_path / "no" / "cache")])
    assert refused.exit_code == 2
