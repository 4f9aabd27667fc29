"""`tellme eval`: every token is scored once, as an independent computation says; texts and models that are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.golden.model import GoldenModel
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.cli import app
from tellme.host.commands import evaluate as command
from tellme.host.commands.evaluate import evaluate
from tellme.host.talk import scoring
from tellme.host.talk.scoring import (
    log_softmax,
    windows,
)
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.host.machine.reference_machine import ReferenceMachine
from tests.host.support import DEMO, on_reference_machines, write_checkpoint
from tests.models import small_spec

STORY = "Once upon a time there was a kind girl named Mia. She had a small fox, and the fox was [bold]lost[/bold]."


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path


def tellme(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def refused(message: str, *arguments: object, code: int = 2) -> None:
    r = tellme(*arguments)
    assert (r.exit_code, r.stdout) == (code, ""), r.output
    assert message in r.stderr
    assert r.stderr.startswith("tellme: ") and r.stderr.count("\n") == 1


def result(*arguments: object) -> dict[str, Any]:
    r = tellme(*arguments, "--json")
    assert r.exit_code == 0 and r.stdout.count("\n") == 1, r.output
    return dict(json.loads(r.stdout))


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def independent(ids: Sequence[int], folder: Path, context: int, stride: int) -> tuple[list[float], list[int]]:
    """NLL and likeliest token of each token, each from a fresh run of one position a pass, in plain numbers."""
    weights = read_checkpoint(folder).weights
    nll, best = [], []
    for t in range(1, len(ids)):
        start = 0
        while t > start + context:
            start += stride
        model = GoldenModel(weights, TINY)
        for token in ids[start:t]:
            logits = model.decode(token).logits[0]
        x = [float(v) for v in logits]
        top = max(x)
        nll.append(top + float(np.log(sum(np.exp(v - top) for v in x))) - x[ids[t]])
        best.append(x.index(top))
    return nll, best


@pytest.mark.parametrize(("context", "stride"), [(5, 2), (5, 5), (16, 8)])
def test_likelihoods_equal_an_independent_computation(tmp_path: Path, text: Path, context: int, stride: int) -> None:
    folder = write_checkpoint(tmp_path / "m", small_spec(vocab=1024, max_context=16))
    tokens = 14
    got = result(folder, "--text", text, "--context", context, "--stride", stride, "--max-tokens", tokens)
    tokenizer = Tokenizer(Files.read(folder), 1024)
    ids = tokenizer.encode(STORY)[:tokens]
    nll, _ = independent(ids, folder, context, stride)
    assert got["nll"] == pytest.approx(np.mean(nll), rel=1e-12)
    assert got["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-12)
    size = len(tokenizer.decode(ids).encode())
    assert got["bits_per_byte"] == pytest.approx(sum(nll) / np.log(2) / size, rel=1e-12)
    assert (got["tokens"], got["scored_tokens"], got["scored_bytes"]) == (tokens, tokens - 1, size)
    assert (got["context"], got["stride"], got["windows"]) == (context, stride, len(windows(tokens, context, stride)))
    assert got["reference"] is None and got["peak_memory_bytes"] > 1 << 24


def test_a_comparison_equals_an_independent_computation(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = write_checkpoint(tmp_path / "a", small_spec(vocab=1024, max_context=16), seed=1)
    b = write_checkpoint(tmp_path / "b", small_spec(vocab=1024, max_context=12), seed=2)
    got = result(a, "--text", text, "--reference", b, "--max-tokens", 20)
    assert (got["context"], got["stride"]) == (12, 6)  # the smaller context of the two
    ids = Tokenizer(Files.read(a), 1024).encode(STORY)[:20]
    kl, same, behind = [], [], []
    for t in range(1, 20):
        start = 0 if t <= 12 else 6 if t <= 18 else 12
        behind.append(t - start)
        logits = []
        for folder in (a, b):
            model = GoldenModel(read_checkpoint(folder).weights, TINY)
            for token in ids[start:t]:
                last = model.decode(token).logits[0].astype(np.float64)
            logits.append(last)
        p, q = (np.exp(x) / np.exp(x).sum() for x in logits)
        kl.append(float((q * np.log(q / p)).sum()))
        same.append(p.argmax() == q.argmax())
    r = got["reference"]
    assert r["kl_mean"] == pytest.approx(np.mean(kl), rel=1e-9) and r["kl_max"] == pytest.approx(max(kl), rel=1e-9)
    assert max(behind) == 12 and len(r["kl_by_position"]) == 1
    monkeypatch.setattr(scoring, "BANDS", (1, 3, 8, 100))
    bands = result(a, "--text", text, "--reference", b, "--max-tokens", 20)["reference"]["kl_by_position"]
    assert [(x["from"], x["to"]) for x in bands] == [(1, 2), (3, 7), (8, 12)]
    for x in bands:
        own = [k for k, n in zip(kl, behind, strict=True) if x["from"] <= n <= x["to"]]
        assert x["positions"] == len(own) > 0
        assert (x["mean"], x["max"]) == pytest.approx((np.mean(own), max(own)), rel=1e-9)
    assert r["agreement"] == np.mean(same) and r["differing"] == same.count(False) > 5
    assert r["nll"] == pytest.approx(np.mean(independent(ids, b, 12, 6)[0]), rel=1e-12)
    assert r["nll_change"] == pytest.approx(got["nll"] / r["nll"] - 1)
    first = [p for p in r["places"] if p["why"] == "first"]
    assert [p["token"] for p in first] == [i + 1 for i, s in enumerate(same) if not s][:3]
    tokenizer, best = Tokenizer(Files.read(a), 1024), independent(ids, a, 12, 6)[1]
    for p in r["places"]:
        t = p["token"]
        assert p["target"] == {"id": ids[t], "text": tokenizer.decode([ids[t]])}
        assert p["kl"] == pytest.approx(kl[t - 1], rel=1e-9)
        assert p["context"] == tokenizer.decode(ids[max(0, t - 12) : t])
        assert p["model"]["id"] == best[t - 1]
    worst = [p["kl"] for p in r["places"] if p["why"] == "worst"]
    assert worst == sorted(worst, reverse=True) and max(p["kl"] for p in r["places"]) == r["kl_max"]


def test_a_model_is_its_own_reference(text: Path) -> None:
    got = result("demo", "--text", text, "--reference", "demo")
    assert got["scored_bytes"] == len(STORY.encode())  # behind a document start every byte is scored
    r = got["reference"]
    assert (r["agreement"], r["differing"], r["kl_mean"], r["kl_max"], r["nll_change"]) == (1.0, 0, 0.0, 0.0, 0.0)
    assert r["places"] == [] and r["nll"] == got["nll"]


# ---- back ends and models --------------------------------------------------------------------------------------------


def test_images_and_machines_score_as_the_checkpoint(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ReferenceMachine] = []

    monkeypatch.setattr(scoring, "SimulatedAccelerator", on_reference_machines(made))
    image = tmp_path / "demo.tlm"
    assert CliRunner().invoke(app, ["convert", "demo", str(image), "--board", "tiny"]).exit_code == 0
    options = ("--text", text, "--context", 9, "--stride", 4, "--max-tokens", 25)
    want = result("demo", *options)
    for model, backend in ((image, "golden"), (image, "sim"), ("demo", "sim")):
        got = result(model, *options, "--backend", backend, "--reference", "demo")
        assert got["nll"] == want["nll"] and got["backend"] == backend and got["reference"]["kl_max"] == 0.0
    assert len(made) == 2 and all(m.closed for m in made)
    refused("was made for ports 1, but board 'kv260' has 4", image, "--text", text, "--board", "kv260")


def test_each_line_is_a_document_when_asked(tmp_path: Path) -> None:
    lines = ["Once upon a time there was a kind girl named Mia.", "", "One day, a small fox", "The end."]
    text = tmp_path / "t.txt"
    text.write_text("\n".join(lines))
    weights = read_checkpoint(DEMO).weights
    tokenizer = Tokenizer(Files.read(DEMO), weights.spec.vocab)
    nll: list[float] = []
    for line in filter(None, lines):
        ids = [0, *tokenizer.encode_document(line)[1:-1], 1]
        assert tokenizer.encode_document(line) == ids
        logits = GoldenModel(weights, TINY, 1).prefill(ids[:-1], 0, all_logits=True).logits
        p = log_softmax(logits)
        nll += [-p[i, t] for i, t in enumerate(ids[1:])]
    got = result("demo", "--text", text, "--documents", "--reference", "demo")
    assert got["documents"] == 3 and got["scored_tokens"] == len(nll) and got["windows"] == 3
    assert got["nll"] == pytest.approx(np.mean(nll), rel=1e-9) and got["reference"]["kl_max"] == 0.0
    assert got["scored_bytes"] == sum(map(len, lines))
    cut = result("demo", "--text", text, "--documents", "--max-tokens", 5)
    assert (cut["documents"], cut["tokens"], cut["scored_tokens"]) == (1, 5, 4)
    assert result("demo", "--text", text)["documents"] is None


def test_the_demos_figures_are_what_its_readme_says() -> None:
    got = result("demo", "--text", DEMO.parent / "heldout.txt", "--documents")
    readme = (DEMO / "README.md").read_text()
    assert f"{got['nll']:.4f} nats a token on the accelerator's arithmetic" in readme
    assert f"{got['scored_tokens']:,} tokens" in readme


def test_tables_show_texts_as_they_are(tmp_path: Path, text: Path) -> None:
    r = tellme("demo", "--text", text)
    assert r.exit_code == 0 and "perplexity" in r.stdout and "reference" not in r.stdout
    a = write_checkpoint(tmp_path / "a", small_spec(vocab=1024), seed=1)
    got = evaluate(str(a), text, TINY, reference_name="demo", show=False)
    got["reference"]["places"][0]["context"] = "[bold]x[/bold]"
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        for table in command.tables(got):
            console.print(table)
    shown = capture.get()
    assert "'[bold]x[/bold]'" in shown and "where they part" in shown
    assert "same likeliest token" in shown and f"{got['reference']['agreement']:.2%}" in shown


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_texts_that_cannot_be_scored(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    refused(f"{path}: cannot be read (No such file or directory)", "demo", "--text", path)
    refused(f"{tmp_path}: cannot be read (Is a directory)", "demo", "--text", tmp_path)
    path.write_bytes(b"")
    refused("t.txt: is empty; give a text of at least two tokens", "demo", "--text", path)
    path.write_bytes(b"Once \xff upon")
    refused("t.txt: is not UTF-8 text (invalid start byte at byte 5)", "demo", "--text", path)
    folder = write_checkpoint(tmp_path / "m", small_spec(vocab=1024))
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(saved | {"post_processor": None}))
    path.write_text("a")
    refused("t.txt: is 1 token; two are needed, as the first is not scored", folder, "--text", path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "fpga"), "backend 'fpga' is unknown; there are golden, sim"),
        (("--reference", "demo", "--reference-backend", "x"), "reference-backend 'x' is unknown; there are golden, torch"),
        (("--reference-backend", "torch"), "--reference-backend needs --reference"),
        (("--board", "x"), "board 'x' is unknown"),
        (("--context", "257"), "context must be from 1 to 256, not 257"),
        (("--context", "0"), "context must be from 1 to 256, not 0"),
        (("--context", "8", "--stride", "9"), "stride must be from 1 to 8, not 9"),
        (("--stride", "0"), "stride must be from 1 to 256, not 0"),
        (("--max-tokens", "1"), "max-tokens must be at least 2 (the first token is not scored), not 1"),
        (("--reference", "no/where"), "model 'no/where' not found"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used(options: tuple[str, ...], message: str, text: Path) -> None:
    refused(message, "demo", "--text", text, *options)


def test_a_reference_of_another_vocabulary_or_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    other = write_checkpoint(tmp_path / "small", small_spec(vocab=1056))
    refused(
        "the reference small has a vocabulary of 1056 tokens, model of 1024; a reference needs the model's tokenizer",
        "demo", "--text", text, "--reference", other,
    )  # fmt: skip
    swapped = write_checkpoint(tmp_path / "swapped", small_spec(vocab=1024))
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    ids = Tokenizer(Files.read(DEMO), 1024).encode(STORY)
    a, b = (next(k for k, v in vocab.items() if v == i) for i in (ids[3], 1023))
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(
        "the tokenizers of model and its reference swapped part at token 3 of the text",
        "demo", "--text", text, "--reference", swapped,
    )  # fmt: skip


def test_without_pytorch_the_message_says_how_to_get_it(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    options = ("--reference", "demo", "--reference-backend", "torch")
    refused("pip install 'tellme-fpga[oracle]', or take golden", "demo", "--text", text, *options)
