"""`tellme eval`: how well a model predicts a text, and where it parts from a reference.

A text is one sequence of tokens, or, with `documents`, each line is one, between the document's start and end. How it is
scored: host/talk/scoring.py.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.host.commands.common import (
    MODEL_HELP,
    AnyBoard,
    Candidates,
    ConfigFile,
    Hadamard,
    HeadMode,
    Kv,
    Latent,
    OwnEmbedding,
    Settings,
    cache_format,
    check_embedding,
    preset,
)
from tellme.host.errors import UserError
from tellme.host.image.model import find_model
from tellme.host.machine.screening import check_mode
from tellme.host.machine.simulation import check_simulator
from tellme.host.progress import progress
from tellme.host.provenance import json_line
from tellme.host.tables import grid, show
from tellme.host.talk.scoring import (
    BackendScorer,
    Comparison,
    Scorer,
    Scores,
    by_position,
    open_scorer,
    places,
    score,
    windows,
)
from tellme.host.talk.screening import rows as screened_rows
from tellme.host.text.streams import decoded
from tellme.host.text.tokenizer import Tokenizer

BACKENDS = ("golden", "sim")
REFERENCE_BACKENDS = ("golden", "torch")

CONTEXT_TOKENS = 12
"""Tokens shown before such a place."""


# ---- the text --------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file.

    Raises
    ------
    UserError : it cannot be read, is not UTF-8, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    text = decoded(data, path)
    if not text:
        raise UserError(f"{path}: is empty; give a text of at least two tokens")
    return text


# ---- the command -----------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def _sequences(tokenizer: Tokenizer, text: str, documents: bool) -> list[list[int]]:
    """Token ids of the text, or of each of its lines."""
    return [tokenizer.encode_document(line) for line in _lines(text)] if documents else [tokenizer.encode(text)]


def _cut(sequences: Sequence[list[int]], most: int | None) -> list[list[int]]:
    """The first `most` tokens; sequences with nothing to score are left out."""
    out, left = [], sum(map(len, sequences)) if most is None else most
    for ids in sequences:
        out.append(ids[:left])
        left -= len(out[-1])
    return [ids for ids in out if len(ids) > 1]


def _check_tokenizers(
    model: Scorer, reference: Scorer, texts: Sequence[list[int]], theirs: Sequence[list[int]]
) -> None:
    if reference.vocab != model.vocab:
        raise UserError(
            f"the reference {reference.name} has a vocabulary of {reference.vocab} tokens, {model.name} of "
            f"{model.vocab}; a reference needs the model's tokenizer"
        )
    place = 0
    for ids, other in zip(texts, theirs, strict=False):
        if other[: len(ids)] != ids:
            i = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
            raise UserError(
                f"the tokenizers of {model.name} and its reference {reference.name} part at token {place + i} of the "
                "text; a reference needs the model's tokenizer"
            )
        place += len(ids)


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None


def _number(name: str, value: int | None, low: int, high: int, default: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise UserError(f"{name} must be from {low} to {high}, not {value}")
    return value


def _joined(scored: Sequence[tuple[Scores, Comparison | None]]) -> tuple[Scores, Comparison | None]:
    """The scores of all sequences, one behind the other."""

    def together(parts: Sequence[Scores]) -> Scores:
        return Scores(*(np.concatenate([getattr(s, f) for s in parts]) for f in ("nll", "best")))

    mine = together([a for a, _ in scored])
    compared = [b for _, b in scored if b is not None]
    if not compared:
        return mine, None
    kl, behind = (np.concatenate([getattr(b, f) for b in compared]) for f in ("kl", "behind"))
    return mine, Comparison(together([b.scores for b in compared]), kl, behind)


def _compared(
    mine: Scores,
    other: Comparison,
    where: Sequence[tuple[list[int], int]],
    tokenizer: Tokenizer,
    name: str,
    backend: str,
) -> dict[str, Any]:
    """What the report says of a reference; `where`: sequence and place in it of each scored token's predecessor."""
    decode = tokenizer.decode

    def token(i: int) -> dict[str, Any]:
        return {"id": int(i), "text": decode([int(i)])}

    nll, reference_nll = float(mine.nll.mean()), float(other.scores.nll.mean())
    return {
        "model": name,
        "backend": backend,
        "nll": reference_nll,
        "perplexity": _finite(float(np.exp(reference_nll))),
        "nll_change": nll / reference_nll - 1 if reference_nll else None,
        "agreement": float((mine.best == other.scores.best).mean()),
        "differing": int((mine.best != other.scores.best).sum()),
        "kl_mean": float(other.kl.mean()),
        "kl_max": float(other.kl.max()),
        "kl_by_position": by_position(other),
        "places": [
            {
                "why": why,
                "token": i + 1,
                "context": decode(ids[max(0, k + 1 - CONTEXT_TOKENS) : k + 1]),
                "target": token(ids[k + 1]),
                "model": token(mine.best[i]),
                "reference": token(other.scores.best[i]),
                "kl": float(other.kl[i]),
            }
            for why, i in places(mine, other)
            for ids, k in (where[i],)
        ],
    }


def evaluate(
    model_name: str,
    text_path: Path,
    config: AcceleratorConfig,
    *,
    backend: str = "golden",
    reference_name: str | None = None,
    reference_backend: str = "golden",
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    documents: bool = False,
    latent: bool = False,
    head: str | None = None,
    candidates: int | None = None,
    embedding: str | None = None,
    kv: CacheFormat = EIGHT,
    show: bool = True,
) -> dict[str, Any]:
    """Scores a text and returns what `tellme eval --json` prints (`show`: a progress bar on a terminal).

    kv : elements of the model's cache; a golden reference keeps its own in 8 bits.
    documents : every line that is not empty is a text of its own, framed by the model's document-start and end tokens, as
    trainers frame them; the end is scored, the start is not.

    Raises
    ------
    UserError : the text, a model or an option cannot be used.
    CheckError : logits that are not finite.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown; there are {', '.join(BACKENDS)}")
    if reference_backend not in REFERENCE_BACKENDS:
        raise UserError(
            f"reference-backend {reference_backend!r} is unknown; there are {', '.join(REFERENCE_BACKENDS)}"
        )
    if reference_name is None and reference_backend != "golden":
        raise UserError("--reference-backend needs --reference")
    check_mode(head)
    check_embedding(embedding)
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"max-tokens must be at least 2 (the first token is not scored), not {max_tokens}")
    text = read_text(text_path)
    with ExitStack() as stack:
        model = open_scorer(
            model_name, backend, config, latent=latent, head=head, candidates=candidates, embedding=embedding, kv=kv
        )
        stack.callback(model.close)
        every = _sequences(model.tokenizer, text, documents)
        texts = _cut(every, max_tokens)
        if not texts:
            n = sum(map(len, every))
            raise UserError(f"{text_path}: is {n} token{'s' * (n != 1)}; two are needed, as the first is not scored")
        reference = None
        if reference_name is not None:
            reference = open_scorer(reference_name, reference_backend, config, latent=latent)
            stack.callback(reference.close)
            theirs = _sequences(reference.tokenizer, text, documents) if reference.vocab == model.vocab else []
            _check_tokenizers(model, reference, texts, theirs)
        limit = min(s.context for s in (model, reference) if s is not None)
        size = _number("context", context, 1, limit, limit)
        step = _number("stride", stride, 1, size, max(1, size // 2))
        parts = [windows(len(ids), size, step) for ids in texts]
        begun = time.monotonic()
        positions = sum(w.inputs for ws in parts for w in ws)
        tokens = sum(map(len, texts))
        with progress(f"scoring {tokens - len(texts):,} tokens", positions, show=show) as advance:
            scored = [score(ids, model, reference, ws, advance) for ids, ws in zip(texts, parts, strict=True)]
        mine, other = _joined(scored)
        seconds = time.monotonic() - begun
    decode = model.tokenizer.decode
    if texts == every:
        whole = sum(len(t.encode()) for t in (_lines(text) if documents else [text]))
    else:
        whole = sum(len(decode(ids).encode()) for ids in texts)
    scored_bytes = whole - sum(len(decode(ids[:1]).encode()) for ids in texts)
    nll = float(mine.nll.mean())
    result: dict[str, Any] = {
        "model": model.name,
        "backend": backend,
        "board": config.name,
        "embedding": model.embedding if isinstance(model, BackendScorer) else None,
        "text": str(text_path),
        "tokens": tokens,
        "scored_tokens": len(mine.nll),
        "scored_bytes": scored_bytes,
        "documents": len(texts) if documents else None,
        "context": size,
        "stride": step,
        "kv": kv.name,
        "hadamard": kv.hadamard,
        "windows": sum(map(len, parts)),
        "nll": nll,
        "perplexity": _finite(float(np.exp(nll))),
        "bits_per_byte": float(mine.nll.sum() / np.log(2)) / scored_bytes if scored_bytes else None,
        "positions": positions,
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "screened": model.figures.report() if isinstance(model, BackendScorer) and model.figures else None,
        "reference": None,
    }
    if other is not None and reference is not None:
        # Sequence and place in it of each scored token's predecessor.
        where = [(ids, i) for ids in texts for i in range(len(ids) - 1)]
        result["reference"] = _compared(mine, other, where, model.tokenizer, reference.name, reference_backend)
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The result of `evaluate` for people."""

    def number(x: float | None, digits: int = 4) -> str:
        return "beyond float64" if x is None else f"{x:,.{digits}f}"

    r = result["reference"]
    rows: list[tuple[str, ...]] = []

    def row(name: str, mine: str, other: str = "") -> None:
        rows.append((name, mine, *([other] if r else [])))

    row("tokens scored", f"{result['scored_tokens']:,}")
    if result["documents"] is not None:
        row("documents, a line each", f"{result['documents']:,}")
    row("windows", f"{result['windows']:,} of {result['context']}, stride {result['stride']}")
    if result["kv"] != "8":
        row("keys and values of the cache, bits", result["kv"])
    if result["hadamard"]:
        row("queries and keys", "turned (Hadamard)")
    row("negative log-likelihood, nats/token", number(result["nll"]), number(r["nll"]) if r else "")
    row("perplexity", number(result["perplexity"]), number(r["perplexity"]) if r else "")
    bits = result["bits_per_byte"]
    row("bits/byte", "-" if bits is None else number(bits))
    rate = result["positions"] / max(result["seconds"], 1e-9)
    row("time", f"{result['seconds']:,.1f} s, {rate:,.1f} positions/s")
    for name, value in screened_rows(result["screened"]) if result["screened"] else ():
        row(name, value)
    row("peak memory", f"{result['peak_memory_bytes'] / 2**30:,.2f} GiB")
    if r:
        change = "-" if r["nll_change"] is None else f"{r['nll_change']:+.3%}"
        row("change of the negative log-likelihood", change)
        row("same likeliest token", f"{r['agreement']:.2%} ({r['differing']:,} differ)")
        row("KL(reference || model), nats, mean", f"{r['kl_mean']:.3e}")
        row("KL(reference || model), nats, largest", f"{r['kl_max']:.3e}")
        if len(r["kl_by_position"]) > 1:
            for b in r["kl_by_position"]:
                row(f"  behind {b['from']:,} to {b['to']:,} tokens, mean, largest", f"{b['mean']:.3e}, {b['max']:.3e}")
    names = [f"model ({result['backend']})"] + ([f"reference {r['model']} ({r['backend']})"] if r else [])
    out = [grid(f"{result['model']} on {result['text']}", ("", *names), rows)]
    if r and r["places"]:
        header = ("", "token", "behind", "the text has", "model", "reference", "KL")
        parting = []
        for p in r["places"]:
            texts = (repr(p[k]["text"]) for k in ("target", "model", "reference"))
            parting.append((p["why"], str(p["token"]), repr(p["context"]), *texts, f"{p['kl']:.2e}"))
        out.append(grid("where they part", header, parting, left=header[2:6]))
    return out


def command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text to score.")],
    backend: Annotated[str, typer.Option("--backend", help="golden: NumPy; sim: the RTL under Verilator.")] = "golden",
    reference: Annotated[str | None, typer.Option("--reference", help="Another model, to compare with.")] = None,
    reference_backend: Annotated[
        str, typer.Option("--reference-backend", help="golden, or torch: the checkpoint in float32.")
    ] = "golden",
    board_name: AnyBoard = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    documents: Annotated[
        bool, typer.Option("--documents", help="Each line is a text of its own, between document start and end.")
    ] = False,
    context: Annotated[int | None, typer.Option("--context", help="Tokens of a window; default: all.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="From window to window; default: half.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Take so many tokens of the text.")] = None,
    head: HeadMode = None,
    candidates: Candidates = None,
    embedding: OwnEmbedding = None,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    latent: Latent = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Score a text: negative log-likelihood, perplexity, and where a model parts from a reference."""
    cache = cache_format(kv, hadamard)
    config = preset(board_name, backend, None, find_model(model), config_file, settings)
    if backend == "sim":
        check_simulator(config)
    result = evaluate(
        model,
        text,
        config,
        backend=backend,
        reference_name=reference,
        reference_backend=reference_backend,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        documents=documents,
        latent=latent,
        head=head,
        candidates=candidates,
        embedding=embedding,
        kv=cache,
        show=not as_json,
    )
    if as_json:
        print(json_line(result))
        return
    console = Console()
    for table in tables(result):
        show(table, console)
