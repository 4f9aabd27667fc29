"""How well a model predicts a text, and where it parts from a reference: windows, scorers, scores.

A text is scored in windows of `context` tokens that start `stride` tokens apart; every token but the first is scored once,
by the first window that predicts it, so that behind the first window each has at least context - stride + 1 tokens before
it. Probabilities are float64 log-softmax of the logits.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import elementwise
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.model import PREFILL_LANES, ModelWeights
from tellme.golden.project import advice
from tellme.host.checkpoints.checkpoint import Checkpoint, is_checkpoint, open_checkpoint, tell, with_int8_inputs
from tellme.host.errors import CheckError, UserError
from tellme.host.files import read_json
from tellme.host.image.file import Image
from tellme.host.image.model import Model, check_rows, find_model
from tellme.host.image.screening import with_head
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Backend, Pass, PassResult
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import choose
from tellme.host.machine.simulation import SimulatedAccelerator, memory_timing
from tellme.host.talk.screening import ScreenFigures
from tellme.host.text.tokenizer import Files, Tokenizer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FIRST, WORST = 3, 5
"""Places that are shown: the first ones whose likeliest tokens differ, and those of the largest divergence."""


# ---- windows ---------------------------------------------------------------------------------------------------------


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
    """A back end of the accelerator.

    Attributes
    ----------
    figures : what a screened head would have done, if it is asked for.
    embedding : type of the rows that tokens begin with: int8, or of `golden.elementwise.ROW_TYPES`.
    """

    figures: ScreenFigures | None = None
    embedding: str = "float32"

    def __init__(self, name: str, tokenizer: Tokenizer, machine: Backend):
        self.name, self.tokenizer, self.machine = name, tokenizer, machine
        self.vocab, self.context = machine.vocab, machine.context
        self.width = PREFILL_LANES if isinstance(machine, GoldenBackend) else machine.config.lanes

    def feed(self, ids: Sequence[int], start: int, wanted: bool) -> F32 | None:
        results = self.machine.prefill(ids, start=start, all_logits=wanted)
        if wanted and self.figures is not None:
            if isinstance(self.machine, GoldenBackend):
                golden = self.machine
                assert golden.head_inputs is not None and golden.head_scale is not None
                assert results[0].logits is not None
                self.figures.add(golden.head_inputs, golden.head_scale, results[0].logits)
            else:
                self._screened(ids, start, results, self.figures)
        return np.concatenate([r.logits for r in results if r.logits is not None]) if wanted else None

    def _screened(self, ids: Sequence[int], start: int, results: Sequence[PassResult], figures: ScreenFigures) -> None:
        """Runs the passes of a prompt again with the screened head, and counts its candidates in.

        Raises
        ------
        CheckError : a candidate's logit is not that of the full head.
        """
        machine, candidates = self.machine, figures.choice.candidates
        most = machine.config.screen_entries // candidates
        at = 0
        for full in results:
            n = full.head_count
            assert full.logits is not None
            for first in range(0, n, most):
                count = min(most, n - first)
                got = machine.run_pass(
                    Pass.of(
                        ids[at : at + n],
                        range(start + at, start + at + n),
                        head=(first, count),
                        write_logits=True,
                        candidates=candidates,
                    )
                )
                logits = full.logits[first : first + count]
                assert got.candidates is not None and got.bound is not None and got.logits is not None
                if not np.array_equal(np.take_along_axis(logits, got.candidates, axis=-1), got.logits):
                    raise CheckError(
                        f"{self.name}: at positions {start + at + first} to {start + at + first + count - 1} the screened head's "
                        "logits are not those of the full head"
                    )
                figures.add_chosen(got.candidates, np.array(got.bound, np.float32), logits)
            at += n

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


def open_scorer(
    name: str,
    backend: str,
    config: AcceleratorConfig,
    *,
    latent: bool = False,
    head: str | None = None,
    candidates: int | None = None,
    embedding: str | None = None,
    kv: CacheFormat = EIGHT,
) -> Scorer:
    """A model by name ('demo', 'demo-qwen3', a checkpoint, a `.tlm` image) on a back end: 'golden', 'sim' or 'torch'.

    `latent`: as in `host.checkpoints.checkpoint.read_checkpoint`. `head`, `candidates`: the screened head whose figures are wanted. `embedding`: exact, as the checkpoint has it, or int8; None:
    exact, or what an image has. `kv`: elements of the cache.

    Raises
    ------
    UserError : the model, or the back end, cannot be used.
    """
    path = find_model(name)
    if backend == "torch":
        return TorchScorer(path)
    if backend == "golden" and is_checkpoint(path):
        checkpoint = open_checkpoint(path, latent=latent)
        if embedding == "int8":
            checkpoint = with_int8_inputs(checkpoint)
        checkpoint = with_head(checkpoint, config, head)
        weights = checkpoint.weights
        tokenizer = Tokenizer(checkpoint.tokenizer, weights.spec.vocab)
        scorer = BackendScorer(checkpoint.name, tokenizer, GoldenBackend(weights, config, kv=kv))
        scorer.figures = _figures(checkpoint.name, weights, head, candidates)
        scorer.embedding = elementwise.row_type(weights.inputs)
        tell(checkpoint.notes)
        return scorer
    if backend == "golden":
        model = Model(Image(path), config)
        check_rows(model, embedding)
        weights = model.weights()
        scorer = BackendScorer(model.name, model.tokenizer, GoldenBackend(weights, config, kv=kv))
        scorer.figures = _figures(model.name, weights, head, candidates)
        scorer.embedding = model.embedding_type
        return scorer

    def prepare(checkpoint: Checkpoint) -> Checkpoint:
        if embedding == "int8":
            checkpoint = with_int8_inputs(checkpoint)
        return with_head(checkpoint, config, head)

    with Model.open(
        path, config, latent=latent, prepare=prepare
    ) as opened:  # its mapping stays while the driver needs it
        check_rows(opened, embedding)
        choice = choose(opened.name, opened.screen_facts, head, candidates, opened.spec.vocab)
        machine = SimulatedAccelerator(opened, compile_program(opened, config, kv=kv), timing=memory_timing(None, None))
        scorer = BackendScorer(opened.name, opened.tokenizer, machine)
        scorer.embedding = opened.embedding_type
        if choice.mode != "full":
            if choice.candidates > config.screen_entries:
                raise UserError(
                    f"{choice.candidates} candidates are more than the {config.screen_entries} that {config.name} holds; take fewer"
                )
            scorer.figures = ScreenFigures(choice, opened.planes, exact=opened.spec.ternary_head)
        return scorer


def _figures(name: str, weights: ModelWeights, head: str | None, candidates: int | None) -> ScreenFigures | None:
    choice = choose(name, weights.screen, head, candidates, weights.spec.vocab)
    if choice.mode == "full" or weights.screen is None:
        return None
    return ScreenFigures(choice, weights.screen.count, weights.screen, weights.screen.exact)


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
    """A reference's scores, the divergence KL(reference || model) of each place, nats, and how many tokens it was told from."""

    scores: Scores
    kl: F64
    behind: I64


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
    behind: list[I64] = []
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
                behind.append(np.arange(end - len(logs[0]), end) + 1)
            advance(end - done)
            done = end
    scores = [Scores(np.concatenate(nll[n]), np.concatenate(best[n])) for n in range(len(scorers))]
    if reference is None:
        return scores[0], None
    return scores[0], Comparison(scores[1], np.concatenate(kl), np.concatenate(behind))


BANDS = (1, 16, 64, 256, 1024, 4096, 16384, 65536)
"""Where bands of positions begin, by how many tokens of its window a place was told from."""


def by_position(other: Comparison) -> list[dict[str, Any]]:
    """The divergence by position: of each band with places in it {from, to, positions, mean, max}, nats."""
    out = []
    for low, high in zip(BANDS, (*BANDS[1:], 1 << 62), strict=True):
        kl = other.kl[(other.behind >= low) & (other.behind < high)]
        if len(kl):
            last = int(other.behind[other.behind < high].max())
            out.append(
                {"from": low, "to": last, "positions": len(kl), "mean": float(kl.mean()), "max": float(kl.max())}
            )
    return out


def places(mine: Scores, other: Comparison) -> list[tuple[str, int]]:
    """('first', index) of the first places whose likeliest tokens differ, ('worst', index) of the largest divergence."""
    first = [int(i) for i in np.flatnonzero(mine.best != other.scores.best)[:FIRST]]
    worst = [int(i) for i in np.argsort(-other.kl, kind="stable")[:WORST] if other.kl[i] > 0]
    return [("first", i) for i in first] + [("worst", i) for i in worst if i not in first]
