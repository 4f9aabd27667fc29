"""The ternary copy of a head in an image: what convert makes, keeps, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden import screen
from tellme.golden.config import KV260, TINY
from tellme.host.checkpoints.checkpoint import open_checkpoint
from tellme.host.cli import app
from tellme.host.errors import UserError
from tellme.host.image import screening
from tellme.host.image.model import DEMO, Model, convert, demo_folder
from tellme.host.image.screening import calibrate, with_screen
from tests.host.support import write_checkpoint
from tests.models import small_spec


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_an_image_gives_back_the_ternary_head(tmp_path: Path, config, planes: int, tied: bool) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", small_spec(vocab=700, tied=tied)))
    made, found = with_screen(checkpoint, config, planes=planes)
    assert found is None and made.weights.screen is not None
    convert(made, tmp_path / "model.tlm", config)
    with Model.open(tmp_path / "model.tlm", config) as model:
        back, want = model.weights(), made.weights.screen
        assert back.screen is not None and model.planes == planes
        assert (back.screen.planes == want.planes).all() and (back.screen.scales == want.scales).all()
        assert (back.screen.unit, back.screen.margin) == (want.unit, want.margin)
        assert (back.head_rows[0] == checkpoint.weights.head_rows[0]).all()


def test_without_the_option_an_image_is_as_it_was(tmp_path: Path) -> None:
    """The first sections are the same beats, whether others follow or not."""
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", small_spec(vocab=300)))
    convert(checkpoint, tmp_path / "full.tlm", TINY)
    convert(with_screen(checkpoint, TINY, planes=1)[0], tmp_path / "screened.tlm", TINY)
    with Model.open(tmp_path / "full.tlm", TINY) as full, Model.open(tmp_path / "screened.tlm", TINY) as screened:
        assert [*screened.image.sections][len(full.image.sections) :] == ["screen", "rows"]
        for name, section in full.image.sections.items():
            other = screened.image.sections[name]
            assert (other.address, other.crc32) == (section.address, section.crc32)


def test_the_demo_is_calibrated_and_its_true_arg_max_is_never_far(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(demo_folder())
    made, found = with_screen(checkpoint, TINY)
    ternary = made.weights.screen
    assert found is not None and ternary is not None
    assert found.positions == 256 and found.worst_rank < screening.LEAST and found.doubtful <= screening.DOUBTFUL
    assert ternary.margin == np.float32(screening.SAFETY * found.needed) > 0


def test_a_head_that_one_plane_does_not_serve_gets_two() -> None:
    """Rows of very uneven length: long ones win whatever their direction is, and hide the others' order."""
    rng = np.random.default_rng(1)
    rows, scales = rng.integers(-127, 128, (3000, 64)).astype(np.int8), np.ones(3000, np.float32)
    q = rng.integers(-127, 128, (64, 64)).astype(np.int8)
    act = np.full(64, 1e-3, np.float32)
    logits = (q.astype(np.float32) @ rows.T.astype(np.float32)) * np.float32(1e-3)
    one, two = (calibrate(q, act, logits, screen.quantise(rows, scales, n)) for n in (1, 2))
    assert two.worst_rank <= one.worst_rank and two.needed < 0.7 * one.needed and two.doubtful <= one.doubtful


def test_calibration_says_what_is_needed_for_every_best_to_be_found() -> None:
    """Against a plain reading of what it means, position by position."""
    rng = np.random.default_rng(2)
    rows, scales = rng.integers(-127, 128, (400, 32)).astype(np.int8), rng.uniform(0.5, 2, 400).astype(np.float32)
    ternary = screen.quantise(rows, scales)
    q, act = rng.integers(-127, 128, (100, 32)).astype(np.int8), np.full(100, 1e-2, np.float32)
    logits = (q.astype(np.float32) @ rows.T.astype(np.float32)) * scales * np.float32(1e-2)
    found = calibrate(q, act, logits, ternary)
    worst, needed = 0, 0.0
    for i in range(100):
        scored = screen.scores(q[i : i + 1], ternary)[0]
        order = sorted(range(400), key=lambda r: (-scored[r], r))  # noqa: B023 - used at once
        worst = max(worst, order.index(int(logits[i].argmax())))
        needed = max(needed, *(float(logits[i, r]) - scored[r] * float(ternary.unit) * 1e-2 for r in order[64:]))
    assert found.worst_rank == worst and found.needed == pytest.approx(needed, rel=1e-5)


def test_damage_and_broken_headers_are_found(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", small_spec(vocab=300)))
    path = tmp_path / "model.tlm"
    convert(with_screen(checkpoint, TINY, planes=1)[0], path, TINY)
    data = path.read_bytes()
    for old, new, words in (
        (b'"planes": 1', b'"planes": 3', "planes of section 'screen' must be from 1 to 2, not 3"),
        (b'"planes": 1', b'"planes": 2', "where 'screen' of"),
        (b'"margin": 0', b'"margin":-1', "positive unit and a margin"),
    ):
        assert old in data
        (tmp_path / "broken.tlm").write_bytes(_with_header(data, old, new))
        with pytest.raises(UserError, match=words):
            Model.open(tmp_path / "broken.tlm", TINY)


def _with_header(data: bytes, old: bytes, new: bytes) -> bytes:
    """An image with something else in its header, whose checksum is right again."""
    import struct
    import zlib

    magic, version, length, _, rest = struct.unpack_from("<8sIIII", data)
    header = data[24 : 24 + length].replace(old, new, 1)
    return struct.pack("<8sIIII", magic, version, length, zlib.crc32(header), rest) + header + data[24 + length :]


def _tellme(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(w) for w in words])
    return result.exit_code, result.output


def test_convert_info_and_run_know_of_it(tmp_path: Path) -> None:
    path = tmp_path / "demo.tlm"
    code, out = _tellme("convert", DEMO, path, "--board", "tiny", "--head", "screened", "--json")
    assert code == 0, out
    head = json.loads(out)["head"]
    assert head["margin"] > 0 and head["calibration"]["positions"] == 256
    code, out = _tellme("info", path, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["head"] == {"planes": head["planes"], "margin": pytest.approx(head["margin"])}
    parts = {p["part"]: p["bytes"] for p in facts["parts"]}
    assert parts["ternary copy of the head"] == 16 * (head["planes"] * (1024 * 2 + 128))
    assert parts["rows of the head, each by itself"] == 1024 * 16 * 9
    texts = set()
    for options in ((), ("--head", "full"), ("--head", "screened", "--candidates", 64)):
        call = ("run", "--backend", "golden", "--model", path, "--prompt", "Once upon a time", "--max-new-tokens", 12)
        code, out = _tellme(*call, "--json", *options)
        assert code == 0, out
        result = json.loads(out)
        texts.add(result["text"])
        mode = options[1] if options else "auto"
        assert (result["head"], result["candidates"]) == (mode, {"auto": 256, "full": None, "screened": 64}[mode])
        assert result["screened_passes"] == (0 if mode == "full" else 12)
    assert len(texts) == 1
    # A checkpoint is given one on the way.
    code, out = _tellme(
        "run", "--backend", "golden", "--model", DEMO, "--head", "screened", "--prompt", "Once", "--json"
    )
    assert code == 0 and json.loads(out)["head"] == "screened"


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time.")
    for options, words in (
        (("--head", "auto"), "--head of an image must be full or screened, not 'auto'"),
        (("--planes", 1), "--planes and --calibration need --head screened"),
        (("--calibration", text), "--planes and --calibration need --head screened"),
        (("--head", "screened", "--planes", 1, "--calibration", text), "give --planes or --calibration, not both"),
        (("--head", "screened", "--planes", 3), "--planes must be 1 or 2, not 3"),
        (("--head", "screened", "--calibration", tmp_path / "none"), "cannot be read"),
    ):
        path = tmp_path / "out.tlm"
        code, out = _tellme("convert", DEMO, path, "--board", "tiny", *options)
        assert code == 2 and words in out and len(out.strip().splitlines()) == 1, out
        assert not path.exists()
    run = ("run", "--backend", "golden", "--model", DEMO, "--prompt", "Once")
    for options, words in (
        (("--head", "none"), "--head must be full, screened or auto, not 'none'"),
        (("--candidates", 64), "--candidates needs --head screened or auto"),
        (("--head", "screened", "--candidates", 65), "multiple of 16"),
        (("--head", "screened", "--candidates", 528), "at most 512 candidates"),
        (("--head", "screened", "--candidates", 32, "--top-k", 40, "--temperature", 1), "top-k is 40"),
    ):
        code, out = _tellme(*run, *options)
        assert code == 2 and words in out, out


def test_a_small_vocabulary_needs_none(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", small_spec(vocab=24)))
    with pytest.raises(UserError, match="vocabulary of 24 is too small for a screened head"):
        with_screen(checkpoint, TINY)
