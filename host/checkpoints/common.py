"""What readers of every kind of checkpoint share: what they make, and how they refuse what is damaged or not supported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import ternary
from tellme.golden.arith import ceil_div
from tellme.golden.config import ConfigError
from tellme.golden.layout import LayoutError
from tellme.golden.model import LayerWeights, ModelWeights, PassError
from tellme.golden.spec import ModelError, ModelSpec
from tellme.host.errors import UserError
from tellme.host.text.tokenizer import Files

GGUF_MAGIC = b"GGUF"


def tell(notes: Iterable[str]) -> None:
    """Says on stderr what was assumed of a checkpoint. Called when its weights have been read, so that a refusal stays one line."""
    for note in notes:
        print(f"tellme: note: {UserError(note)}", file=sys.stderr)


def undamaged(where: str, damage: str | None) -> None:
    """Refuses, with UserError, what the golden model's looks for damage have found."""
    if damage is not None:
        raise UserError(f"{where} {damage}; the checkpoint is broken (damaged): download it, or convert it, again")


def sound(where: str, weights: NDArray[Any]) -> NDArray[Any]:
    """Ternary weights [rows, inputs], unless they are damaged (see `golden.ternary.damage`): UserError then."""
    undamaged(where, ternary.damage(weights))
    return weights


def sound_floats(where: str, values: NDArray[Any]) -> NDArray[Any]:
    """As `sound`, of gains, or of the rows of an embedding or head."""
    undamaged(where, ternary.damage_of_floats(values))
    return values


def activation(found: dict[str, Any], known: dict[str, str], path: object) -> str | None:
    """The gate that a checkpoint names; None if it names none.

    Parameters
    ----------
    found : values by the names under which they were found; None counts as not there.
    known : gates by the names they may have.

    Raises
    ------
    UserError : an unknown one, or two that differ.
    """
    gates: dict[str, str] = {}
    for name, value in found.items():
        if value is None:
            continue
        if not isinstance(value, str) or value not in known:
            raise UserError(f"{path}: {name} is {value!r}; supported are {', '.join(known)}")
        gates[name] = known[value]
    if len(set(gates.values())) > 1:
        said = " and ".join(f"{name} is {found[name]!r}" for name in gates)
        raise UserError(f"{path}: {said}; correct the wrong one")
    return next(iter(gates.values()), None)


@contextmanager
def golden_errors(where: object) -> Iterator[None]:
    """Golden's refusals as UserError, with the place in front."""
    try:
        yield
    except (ModelError, LayoutError, PassError, ConfigError, ternary.WeightError) as e:
        raise UserError(f"{where}: {e}") from e


class LazyLayers(Sequence[LayerWeights]):
    """Layers of a specification, made and checked when they are asked for; the last one is kept."""

    def __init__(self, spec: ModelSpec, make: Callable[[int], LayerWeights]):
        self._count = spec.layers

        def checked(i: int) -> LayerWeights:
            layer = make(i)
            layer.check(spec, i)
            return layer

        self._make = lru_cache(maxsize=1)(checked)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read.

    Attributes
    ----------
    name : of the folder.
    weights : shapes and weights; layers are read when they are asked for.
    tokenizer : files of the tokenizer.
    eos_ids : tokens that end a text.
    notes : what the files do not say and had to be assumed, a line each.
    moved : what `host.checkpoints.balance` multiplied the last norm's gain by; None: nothing.
    head : rows of the head as the checkpoint has them [vocab, hidden], of a type of `golden.elementwise.ROW_TYPES`; None: nobody knows.
    """

    name: str
    weights: ModelWeights
    tokenizer: Files
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()
    moved: NDArray[np.float32] | None = None
    head: NDArray[Any] | None = None


_UNSUPPORTED = {
    "qwen2": "whose linear layers have a bias",
    "qwen2moe": "a mixture of experts",
    "qwen3moe": "a mixture of experts",
    "qwen3next": "with linear attention (gated DeltaNet) in most layers",
    "qwen35": "with linear attention (gated DeltaNet) in most layers, and in Bonsai's second generation with activations multiplied by a Hadamard matrix",
    "qwen35moe": "a mixture of experts with linear attention (gated DeltaNet)",
    "minicpm": "with muP scales of embedding, residual and head",
    "granite": "with muP scales of embedding, residual, attention and head",
    "mixtral": "a mixture of experts",
}


def unsupported(kind: object) -> str | None:
    """What a kind of model, as GGUF's architecture or Hugging Face's model_type names it, has that no accelerator does; None of any other."""
    return _UNSUPPORTED.get(str(kind).replace("_", ""))


def group_scales(where: str, values: NDArray[np.float32], first: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Signs int8[rows, inputs] and scales [rows, groups] of floating-point weights of which each `ternary.GROUP` inputs hold -s, 0 and s.

    Parameters
    ----------
    first : row of the matrix at which `values` begin.

    Raises
    ------
    UserError : naming the first weight that is none of the three.
    """
    n, k = values.shape
    magnitude = np.zeros((n, ceil_div(k, ternary.GROUP) * ternary.GROUP), np.float32)
    np.abs(values, out=magnitude[:, :k])
    groups = magnitude.reshape(n, -1, ternary.GROUP)
    scales = groups.max(axis=2)
    bad = (groups != 0) & (groups != scales[:, :, None])
    if bad.any():
        row, column = (int(v) for v in np.argwhere(bad.reshape(n, -1))[0])
        raise UserError(
            f"{where}: is not ternary in groups of {ternary.GROUP} inputs: magnitudes {magnitude[row, column]:g} and "
            f"{scales[row, column // ternary.GROUP]:g} (row {row + first}, column {column}); groups of {ternary.GROUP}, or of a multiple, can be run"
        )
    return np.sign(values).astype(np.int8), scales


def head_scales(rows: NDArray[np.float32], size: int) -> NDArray[np.float32] | None:
    """Scales [rows, groups] of rows of a ternary head, of which each `size` features hold -s, 0 and s; None if any hold something else."""
    n, k = rows.shape
    groups = ceil_div(k, size)
    magnitude = np.zeros((n, groups * size), np.float32)
    np.abs(rows, out=magnitude[:, :k])
    magnitude = magnitude.reshape(n, groups, size)
    scales: NDArray[np.float32] = magnitude.max(axis=2)
    if ((magnitude != 0) & (magnitude != scales[:, :, None])).any() or not np.isfinite(scales).all():
        return None
    return scales


def several_scales(
    where: str, group: int, magnitude: NDArray[np.float32], first: int, before: float | np.floating[Any]
) -> UserError:
    """What is said of a matrix whose weights are ternary, each group of inputs by a scale of its own.

    Parameters
    ----------
    group : inputs that share a scale.
    magnitude : of a piece of the matrix in which the scale changes, or has changed since the piece before.
    first : row at which the piece begins. before : scale of the pieces before it.
    """
    one = np.float32(before) if first else magnitude[magnitude != 0][0]
    row, column = (int(v) for v in np.argwhere((magnitude != 0) & (magnitude != one))[0])
    return UserError(
        f"{where}: is ternary with several scales, one for every {group:,} inputs of a row ({one:g}, and {magnitude[row, column]:g} "
        f"at row {row + first}, column {column}), but the matrices of the first layer have one each"
    )
