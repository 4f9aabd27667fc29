"""What a cache below 8 bits costs: the demo and the families' models, for each choice of `--kv`, and what could mend 4-bit keys.

`python -m bench.kv` prints the tables of docs/measurements/kv.md. The first table is golden, pass by pass as the accelerator
computes it; the second one is the float64 model of tests/reference.py with other ways to keep K, which no hardware has.
Both are held against the same float64 model with everything as the accelerator has it but K and V as floats: what differs is
the cache (and codes of activations that fall to the other side of a tie).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tellme.demo.stories import stories
from tellme.golden.config import KV260
from tellme.golden.elementwise import widen
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import demo_folder
from tellme.host.talk.scoring import log_softmax
from tellme.host.text.tokenizer import Tokenizer
from tests.oracle.families import FAMILIES, checkpoint, vectors
from tests.reference import Kept, Options, forward, nll, rounded

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SEED = 987
BARS = (0.003, 0.98, 0.5)
"""Change of the NLL, agreement and largest KL with which a choice needs no warning."""
OPTIONS = Options(query=True, head=True)
"""Tokens begin with the embedding's own rows, as golden's do."""


@dataclass(frozen=True)
class Reference:
    """A model's sequences, and what it says with K and V as floats. rows : that tokens begin with."""

    name: str
    weights: ModelWeights
    rows: NDArray[np.float32]
    sequences: Sequence[I64]
    logs: F64
    nll: float

    @classmethod
    def of(cls, name: str, weights: ModelWeights, sequences: Sequence[I64]) -> Reference:
        weights = replace(weights, layers=list(weights.layers))
        assert weights.inputs is not None
        rows = widen(weights.inputs)
        logits = [forward(weights, ids, OPTIONS, rows)[:-1] for ids in sequences]
        losses = [nll(x, ids[1:]) for x, ids in zip(logits, sequences, strict=True)]
        logs = np.concatenate([log_softmax(x) for x in logits])
        return cls(name, weights, rows, sequences, logs, float(np.concatenate(losses).mean()))

    def row(self, how: str, logits: Callable[[I64], NDArray[np.floating]]) -> str:
        """A line of a table: positions, NLL, agreement, mean and largest KL, positions above the bar."""
        found = [logits(ids)[:-1] for ids in self.sequences]
        losses = [nll(x, ids[1:]) for x, ids in zip(found, self.sequences, strict=True)]
        logs = np.concatenate([log_softmax(x) for x in found])
        kl = (np.exp(self.logs) * (self.logs - logs)).sum(-1)
        change = float(np.concatenate(losses).mean()) / self.nll - 1
        agreement = float((logs.argmax(-1) == self.logs.argmax(-1)).mean())
        met = abs(change) <= BARS[0] and agreement >= BARS[1] and kl.max() <= BARS[2]
        return (
            f"| {self.name} | {how} | {len(kl):,} | {change:+.3%} | {agreement:.2%} | {kl.mean():.1e} | {kl.max():.3f} | "
            f"{int((kl > BARS[2]).sum())} | {'yes' if met else 'no'} |"
        )


HEADER = (
    "| model | K and V | positions | NLL | same next token | mean KL | largest KL | KL above 0.5 | within the bars |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def models(count: int, seed: int) -> Iterator[Reference]:
    """The demo on `count` stories that it was not trained on, and the families' models on the tokens of the oracle."""
    demo = read_checkpoint(demo_folder())
    tokenizer = Tokenizer(demo.tokenizer, demo.weights.spec.vocab)
    texts = [np.array(tokenizer.encode_document(s)) for s in stories(count, seed)]
    yield Reference.of("demo", demo.weights, texts)
    for family in FAMILIES:
        ids = np.load(vectors(family))["ids"].astype(np.int64)
        yield Reference.of(family, read_checkpoint(checkpoint(family)).weights, list(ids))


# ---- other ways to keep K --------------------------------------------------------------------------------------------


def hadamard(n: int) -> F64:
    """Orthogonal, symmetric, [n, n], n a power of two."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def turned(keep: Callable[[F64], F64]) -> Callable[[F64], F64]:
    """`keep` of every 32 dimensions turned by a Hadamard matrix; queries are turned alike, so that scores are the same."""

    def kept(x: F64) -> F64:
        parts, h = (*x.shape[:-1], -1, 32), hadamard(32)
        return (keep((x.reshape(parts) @ h).reshape(x.shape)).reshape(parts) @ h).reshape(x.shape)

    return kept


def narrow(x: F64) -> F64:
    """4 bits."""
    return rounded(x, 7)


def clipped(x: F64) -> F64:
    """4 bits whose scale is the one of eleven with the least square error."""
    size = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
    tried = []
    for part in np.linspace(0.5, 1, 11):
        scale = size * part / 7
        tried.append(np.clip(np.rint(x / scale), -7, 7) * scale)
    errors = np.stack([((y - x) ** 2).sum(-1) for y in tried])
    return np.take_along_axis(np.stack(tried), errors.argmin(0)[None, ..., None], 0)[0]


def asymmetric(x: F64) -> F64:
    """Sixteen steps from the smallest to the largest."""
    low = x.min(-1, keepdims=True)
    scale = np.maximum(x.max(-1, keepdims=True) - low, 1e-5) / 15
    return np.rint((x - low) / scale) * scale + low


def by_16(x: F64) -> F64:
    """4 bits with a scale for every 16 dimensions."""
    return narrow(x.reshape(*x.shape[:-1], -1, 16)).reshape(x.shape)


def first_wide(x: F64) -> F64:
    """8 bits for the first eight positions."""
    return np.concatenate([rounded(x[:8]), narrow(x[8:])])


WAYS: dict[str, Kept] = {
    "K 4 bits": Kept(key=narrow),
    "asymmetric": Kept(key=asymmetric),
    "scale of least square error": Kept(key=clipped),
    "first 8 positions in 8 bits": Kept(key=first_wide),
    "a scale for 16 dimensions": Kept(key=by_16),
    "Hadamard": Kept(query=turned(rounded), key=turned(narrow)),
    "Hadamard, least square error": Kept(query=turned(rounded), key=turned(clipped)),
    "5 bits": Kept(key=lambda x: rounded(x, 15)),
    "6 bits": Kept(key=lambda x: rounded(x, 31)),
}
"""K so, V in 4 bits."""


HEADS: dict[str, Callable[[np.random.Generator, tuple[int, int]], F64]] = {
    "Gaussian": lambda rng, shape: rng.normal(0, 1, shape),
    "a channel thirty times as large": lambda rng, shape: (
        rng.normal(0, 1, shape) * np.where(np.arange(shape[1]) == 7, 30, 1)
    ),
    "heavy tails (Student's t of 2)": lambda rng, shape: rng.standard_t(2, shape),
    "one feature fifty times as large": lambda rng, shape: (
        rng.normal(0, 1, shape) * np.where(np.arange(shape[1]) == rng.integers(shape[1], size=(shape[0], 1)), 50, 1)
    ),
}
BITS = range(9, 15)


def bits_rows() -> Iterator[str]:
    """What rounding features to so many bits before the transform adds to the error of 8 bits behind it."""
    h = hadamard(32)

    def turn(x: F64) -> F64:
        return (x.reshape(-1, 4, 32) @ h).reshape(x.shape)

    def error(x: F64, exact: F64) -> float:
        return float(np.sqrt(((rounded(turn(x)) - turn(exact)) ** 2).mean()))

    for name, made in HEADS.items():
        u = made(np.random.default_rng(1), (4000, 128))
        more = [f"{error(rounded(u, (1 << b - 1) - 1), u) / error(u, u) - 1:+.2%}" for b in BITS]
        yield f"| {name} | {' | '.join(more)} |"


def golden(weights: ModelWeights, kv: CacheFormat, ids: I64) -> NDArray[np.floating]:
    """Golden's logits [positions, vocab] of a sequence."""
    logits = GoldenModel(weights, replace(KV260, hadamard=True), cache=kv).prefill(ids, all_logits=True).logits
    assert logits is not None
    return logits


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=40, help="stories of the demo model")
    parser.add_argument("--seed", type=int, default=SEED, help="of the stories")
    parser.add_argument("--demo", action="store_true", help="the demo alone")
    parser.add_argument("--ways", action="store_true", help="the second table, too")
    parser.add_argument(
        "--bits", action="store_true", help="how many bits features need before the transform, and nothing else"
    )
    options = parser.parse_args()
    if options.bits:
        print(f"| heads of 128 | {' | '.join(map(str, BITS))} |\n|---|{'---|' * len(BITS)}")
        for row in bits_rows():
            print(row)
        return
    found = list(islice(models(options.stories, options.seed), 1 if options.demo else None))
    print(HEADER, flush=True)
    for m in found:
        for kv in CACHE_FORMATS.values():
            print(m.row(kv.name, partial(golden, m.weights, kv)), flush=True)
            turned = replace(kv, hadamard=True)
            print(m.row(f"{kv.name}, Hadamard", partial(golden, m.weights, turned)), flush=True)
    if options.ways:
        print("\n" + HEADER, flush=True)
        m = found[0]
        for name, kept in WAYS.items():
            ours = replace(OPTIONS, query=kept.query is Kept().query)
            both = replace(kept, value=narrow)
            print(m.row(name, partial(forward, m.weights, options=ours, embedding=m.rows, kept=both)), flush=True)


if __name__ == "__main__":
    main()
