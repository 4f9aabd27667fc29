"""`tellme eval`: how well a model predicts a text, and where it parts from a reference.

A text is one sequence of tokens, or, with `documents`, each line is one, between the document's start and end. It is scored in windows of `context` tokens that start `stride` tokens apart; every
token but the first is scored once, by the first window that predicts it, so that behind the first window each has at
least context - stride + 1 tokens before it. Probabilities are float64 log-softmax of the logits.
"""

from __future__ import annotations

import os
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tellme.golden.config import AcceleratorConfig
from tellme.golden.model import PREFILL_LANES
from tellme.golden.project import advice
from tellme.host.checkpoints.checkpoint import is_checkpoint, open_checkpoint, tell
from tellme.host.errors import CheckError, UserError
from tellme.host.files import read_json
from tellme.host.image.file import Image
from tellme.host.image.model import Model, find_model
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Backend
from tellme.host.machine.simulation import SimulatedAccelerator, memory_timing
from tellme.host.progress import progress
from tellme.host.tables import grid
from tellme.host.text.streams import decoded
from tellme.host.text.tokenizer import Files, Tokenizer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BACKENDS = ("golden", "sim")
REFERENCE_BACKENDS = ("golden", "torch")

FIRST, WORST = 3, 5
"""Places that are shown: the first ones whose likeliest tokens differ, and those of the largest divergence."""

CONTEXT_TOKENS = 12
"""Tokens shown before such a place."""


# ---- text and windows ------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + inputs) go in; positions below `skip` predict tokens that another window has scored."""

    start: int
    inputs: int
    skip: int


def windows(tokens: int, context: int, stride: int) -> list[Window]:
    """The windows of a text of `tokens` tokens; 1 <= stride <= context."""
    out = []
    start, scored = 0, 1  # the first token has nothing before it
    while scored < tokens:
        end = min(start + context, tokens - 1)
        out.append(Window(start, end - start, scored - 1 - start))
        scored = end + 1
        start += stride
    return out


# ---- what gives logits -----------------------------------------------------------------------------------------------


class Scorer(ABC):
    """A model that gives logits of a sequence.

    Attributes
    ----------
    name : of the model.
    tokenizer : of the model.
    vocab : tokens of the vocabulary.
    context : most tokens of a sequence.
    width : positions that it likes to take at a time.
    """

    name: str
    tokenizer: Tokenizer
    vocab: int
    context: int
    width: int = PREFILL_LANES

    @abstractmethod
    def feed(self, ids: Sequence[int], start: int, wanted: bool) -> F32 | None:
        """Takes tokens at positions start, ... of the sequence (0 begins a new one); logits [tokens, vocab] if wanted."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Gives back what it holds."""


class BackendScorer(Scorer):
    """A back end of the accelerator."""

    def __init__(self, name: str, tokenizer: Tokenizer, machine: Backend):
        self.name, self.tokenizer, self.machine = name, tokenizer, machine
        self.vocab, self.context = machine.vocab, machine.context
        self.width = PREFILL_LANES if isinstance(machine, GoldenBackend) else machine.config.lanes

    def feed(self, ids: Sequence[int], start: int, wanted: bool) -> F32 | None:
        results = self.machine.prefill(ids, start=start, all_logits=wanted)
        return np.concatenate([r.logits for r in results if r.logits is not None]) if wanted else None

    def close(self) -> None:
        self.machine.close()


class TorchScorer(Scorer):
    """A Hugging Face checkpoint run by transformers in float32, its keys and values cached as floats.

    Raises
    ------
    UserError : PyTorch or transformers is not installed, or they refuse the checkpoint.
    """

    def __init__(self, folder: Path):
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # unpacking weights would be compiled, for minutes
        try:
            import torch
            import transformers
        except ImportError as e:
            raise UserError(
                f"--reference-backend torch needs PyTorch and transformers ({e}); install them: "
                f"{advice('oracle')}, or take golden"
            ) from e
        if not folder.is_dir():
            raise UserError(f"{folder}: --reference-backend torch runs Hugging Face checkpoint folders; take golden")
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            ).eval()
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
            raise UserError(f"{folder}: transformers cannot load it: {' '.join(str(e).split())[:300]}") from e
        self._torch = torch
        self._cache: Any = None
        config = read_json(folder / "config.json")
        self.name = folder.resolve().name
        self.vocab = int(self._model.config.vocab_size)
        self.context = int(config.get("max_position_embeddings") or 2048)
        self.tokenizer = Tokenizer(Files.read(folder), self.vocab)

    def feed(self, ids: Sequence[int], start: int, wanted: bool) -> F32 | None:
        if start == 0:
            self._cache = None
        with self._torch.no_grad():
            out = self._model(self._torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return out.logits[0].float().numpy() if wanted else None


def open_scorer(name: str, backend: str, config: AcceleratorConfig, *, latent: bool = False) -> Scorer:
    """A model by name ('demo', a checkpoint, a `.tlm` image) on a back end: 'golden', 'sim' or 'torch'.

    `latent`: as in `host.checkpoints.checkpoint.read_checkpoint`.

    Raises
    ------
    UserError : the model, or the back end, cannot be used.
    """
    path = find_model(name)
    if backend == "torch":
        return TorchScorer(path)
    if backend == "golden" and is_checkpoint(path):
        checkpoint = open_checkpoint(path, latent=latent)
        tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.weights.spec.vocab)
        scorer = BackendScorer(checkpoint.name, tokenizer, GoldenBackend(checkpoint.weights, config))
        tell(checkpoint.notes)
        return scorer
    if backend == "golden":
        model = Model(Image(path), config)
        return BackendScorer(model.name, model.tokenizer, GoldenBackend(model.weights(), config))
    with Model.open(path, config, latent=latent) as opened:  # its mapping stays while the driver needs it
        machine = SimulatedAccelerator(opened, config, timing=memory_timing(None, None))
        return BackendScorer(opened.name, opened.tokenizer, machine)


# ---- scores ----------------------------------------------------------------------------------------------------------


def log_softmax(logits: NDArray[np.floating]) -> F64:
    """Logarithms of the probabilities, float64, of logits [..., vocab]."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True)
class Scores:
    """Of each scored token, in order: [tokens - 1].

    Attributes
    ----------
    nll : negative log-likelihood, nats.
    best : the likeliest token in its place.
    """

    nll: F64
    best: I64


@dataclass(frozen=True)
class Comparison:
    """A reference's scores, and the divergence KL(reference || model) of each place, nats."""

    scores: Scores
    kl: F64


def _pieces(scorer: Scorer, ids: Sequence[int], window: Window, width: int) -> Iterator[tuple[int, F32 | None]]:
    """Feeds a window in pieces: (position behind the piece, its logits if they are scored)."""
    inputs = ids[window.start : window.start + window.inputs]
    for low, high, wanted in ((0, window.skip, False), (window.skip, window.inputs, True)):
        for i in range(low, high, width):
            part = inputs[i : min(i + width, high)]
            logits = scorer.feed(part, i, wanted)
            if logits is not None and not np.isfinite(logits).all():
                raise CheckError(
                    f"{scorer.name}: a logit at token {window.start + i} or behind is not finite; "
                    "the model or its conversion is broken"
                )
            yield i + len(part), logits


def score(
    ids: Sequence[int],
    model: Scorer,
    reference: Scorer | None,
    parts: Sequence[Window],
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[Scores, Comparison | None]:
    """Scores a text in windows; `advance` is told how many positions were done.

    Raises
    ------
    CheckError : a logit is not finite.
    """
    scorers = [model] if reference is None else [model, reference]
    width = min(s.width for s in scorers)
    nll: list[list[F64]] = [[], []]
    best: list[list[I64]] = [[], []]
    kl: list[F64] = []
    for window in parts:
        done = 0
        for pieces in zip(*(_pieces(s, ids, window, width) for s in scorers), strict=True):
            end = pieces[0][0]
            logs = []
            for n, (_, logits) in enumerate(pieces):
                if logits is None:
                    continue
                p = log_softmax(logits)
                first = window.start + end - len(p) + 1
                targets = np.asarray(ids[first : first + len(p)], np.int64)
                nll[n].append(-p[np.arange(len(p)), targets])
                best[n].append(logits.argmax(axis=-1))
                logs.append(p)
            if len(logs) == 2:
                kl.append((np.exp(logs[1]) * (logs[1] - logs[0])).sum(axis=-1))
            advance(end - done)
            done = end
    scores = [Scores(np.concatenate(nll[n]), np.concatenate(best[n])) for n in range(len(scorers))]
    return scores[0], Comparison(scores[1], np.concatenate(kl)) if reference is not None else None


def places(mine: Scores, other: Comparison) -> list[tuple[str, int]]:
    """('first', index) of the first places whose likeliest tokens differ, ('worst', index) of the largest divergence."""
    first = [int(i) for i in np.flatnonzero(mine.best != other.scores.best)[:FIRST]]
    worst = [int(i) for i in np.argsort(-other.kl, kind="stable")[:WORST] if other.kl[i] > 0]
    return [("first", i) for i in first] + [("worst", i) for i in worst if i not in first]


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
    show: bool = True,
) -> dict[str, Any]:
    """Scores a text and returns what `tellme eval --json` prints (`show`: a progress bar on a terminal).

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
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"max-tokens must be at least 2 (the first token is not scored), not {max_tokens}")
    text = read_text(text_path)
    with ExitStack() as stack:
        model = open_scorer(model_name, backend, config, latent=latent)
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
        mine = Scores(*(np.concatenate([getattr(a, f) for a, _ in scored]) for f in ("nll", "best")))
        other = None
        compared = [b for _, b in scored if b is not None]
        if compared:
            theirs_scores = Scores(*(np.concatenate([getattr(b.scores, f) for b in compared]) for f in ("nll", "best")))
            other = Comparison(theirs_scores, np.concatenate([b.kl for b in compared]))
        seconds = time.monotonic() - begun
    decode = model.tokenizer.decode
    if texts == every:
        whole = sum(len(t.encode()) for t in (_lines(text) if documents else [text]))
    else:
        whole = sum(len(decode(ids).encode()) for ids in texts)
    scored_bytes = whole - sum(len(decode(ids[:1]).encode()) for ids in texts)
    # Sequence and place in it of each scored token's predecessor.
    where = [(ids, i) for ids in texts for i in range(len(ids) - 1)]
    nll = float(mine.nll.mean())
    result: dict[str, Any] = {
        "model": model.name,
        "backend": backend,
        "board": config.name,
        "text": str(text_path),
        "tokens": tokens,
        "scored_tokens": len(mine.nll),
        "scored_bytes": scored_bytes,
        "documents": len(texts) if documents else None,
        "context": size,
        "stride": step,
        "windows": sum(map(len, parts)),
        "nll": nll,
        "perplexity": _finite(float(np.exp(nll))),
        "bits_per_byte": float(mine.nll.sum() / np.log(2)) / scored_bytes if scored_bytes else None,
        "positions": positions,
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "reference": None,
    }
    if other is not None and reference is not None:

        def token(i: int) -> dict[str, Any]:
            return {"id": int(i), "text": decode([int(i)])}

        reference_nll = float(other.scores.nll.mean())
        result["reference"] = {
            "model": reference.name,
            "backend": reference_backend,
            "nll": reference_nll,
            "perplexity": _finite(float(np.exp(reference_nll))),
            "nll_change": nll / reference_nll - 1 if reference_nll else None,
            "agreement": float((mine.best == other.scores.best).mean()),
            "differing": int((mine.best != other.scores.best).sum()),
            "kl_mean": float(other.kl.mean()),
            "kl_max": float(other.kl.max()),
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
    row("negative log-likelihood, nats/token", number(result["nll"]), number(r["nll"]) if r else "")
    row("perplexity", number(result["perplexity"]), number(r["perplexity"]) if r else "")
    bits = result["bits_per_byte"]
    row("bits/byte", "-" if bits is None else number(bits))
    rate = result["positions"] / max(result["seconds"], 1e-9)
    row("time", f"{result['seconds']:,.1f} s, {rate:,.1f} positions/s")
    row("peak memory", f"{result['peak_memory_bytes'] / 2**30:,.2f} GiB")
    if r:
        change = "-" if r["nll_change"] is None else f"{r['nll_change']:+.3%}"
        row("change of the negative log-likelihood", change)
        row("same likeliest token", f"{r['agreement']:.2%} ({r['differing']:,} differ)")
        row("KL(reference || model), nats, mean", f"{r['kl_mean']:.3e}")
        row("KL(reference || model), nats, largest", f"{r['kl_max']:.3e}")
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
