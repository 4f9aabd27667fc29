"""The tensors of a GGUF file as weights. They are mapped piece by piece, so what the process holds does not grow with the file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from tellme.golden import head, ternary
from tellme.golden.arith import ceil_div
from tellme.host.checkpoints.common import golden_errors, group_scales, head_scales, several_scales, sound, sound_floats
from tellme.host.checkpoints.gguf.elements import I2_S, INTEGERS, OWN, UNPACK, block_of, type_name, unpack_i2_s
from tellme.host.checkpoints.gguf.header import Entry, Header
from tellme.host.errors import UserError

PIECE = 1 << 20
"""Elements of a tensor that are decoded at a time."""
_AS_STORED = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.BF16: "<u2",
}
"""Types that embedding rows may keep, as `golden.elementwise.ROW_TYPES`."""
_HALF_STEP = 1 + 2.0**-10
"""Scales of one matrix may differ by one step of float16."""


class Gguf(Header):
    """A GGUF file: its header, and its tensors as floats or as ternary matrices."""

    def _map(self, start: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        try:
            return np.memmap(self.path, np.uint8, "r", start, shape)
        except (OSError, ValueError) as e:  # the file was cut since its header was read
            raise UserError(f"{self.path}: cannot be read ({e})") from e

    def _pieces(self, e: Entry) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(first row, bytes uint8[rows, row_bytes]), about PIECE elements at a time."""
        rows = math.prod(e.shape[:-1])
        step = max(1, PIECE // e.shape[-1])
        for i in range(0, rows, step):
            yield i, self._map(e.start + i * e.row_bytes, (min(step, rows - i), e.row_bytes))

    def float_pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, float32[rows, elements]) of a tensor of any type that decodes to floats, all finite.

        Raises
        ------
        UserError : missing, another shape, a type that is no float, infinities or NaN.
        """
        e = self.require(name, shape)
        kind = UserError(f"{self.where(name)}: is {type_name(e.type)}, a floating-point tensor is needed")
        if e.type in (I2_S, *INTEGERS):
            raise kind
        for i, raw in self._pieces(e):
            with np.errstate(all="ignore"):
                try:
                    if e.type in OWN:
                        codes, scales = UNPACK[e.type](np.ascontiguousarray(raw).reshape(-1, block_of(e.type)[1]))
                        out = ((codes.astype(np.float32) - 1) * scales[:, None]).reshape(len(raw), -1)
                    elif e.type == GGMLQuantizationType.F64:
                        out = raw.view("<f8").astype(np.float32)
                    else:
                        out = np.asarray(
                            dequantize(np.ascontiguousarray(raw), GGMLQuantizationType(e.type)), np.float32
                        )
                except NotImplementedError as error:  # a type that the gguf package cannot decode
                    raise kind from error
            if not np.isfinite(out).all():
                row, column = (int(v) for v in np.argwhere(~np.isfinite(out))[0])
                raise UserError(
                    f"{self.where(name)}: holds NaN or infinity at [{row + i}, {column}]; the file is damaged"
                )
            yield i, out

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A whole small tensor. Raises UserError as `float_pieces`."""
        return np.concatenate([piece for _, piece in self.float_pieces(name, shape)]).reshape(shape)

    def floats_as_stored(self, name: str, shape: tuple[int, int]) -> NDArray[Any]:
        """A tensor of `golden.elementwise.ROW_TYPES`, mapped: as stored, or, of another type, as float32 in a file without a
        name, so that it takes no memory for good; ternary ones with scales of float16 as float16, which has them exactly.
        Raises UserError as `float_pieces`.
        """
        e = self.require(name, shape)
        for kind, dtype in _AS_STORED.items():
            if e.type == kind:
                return self._map(e.start, (shape[0], e.row_bytes)).view(dtype)
        try:
            with tempfile.TemporaryFile(prefix="tellme-") as f:
                out: NDArray[Any] = np.memmap(f, "<f2" if e.type in UNPACK else "<f4", "w+", 0, shape)
        except OSError as error:
            raise UserError(f"{self.where(name)}: cannot be decoded into {tempfile.gettempdir()} ({error})") from error
        for i, piece in self.float_pieces(name, shape):
            with np.errstate(over="ignore"):  # code 3 of Q2_0 is twice the scale
                out[i : i + len(piece)] = piece
            if not np.isfinite(out[i : i + len(piece)]).all():
                raise UserError(
                    f"{self.where(name)}: holds {np.abs(piece).max():g}, more than float16; the file is damaged"
                )
        return out

    def gain(self, name: str, features: int) -> NDArray[np.float32]:
        """The gain of a norm. Raises UserError as `float_pieces`, and if it is damaged."""
        return sound_floats(self.where(name), self.floats(name, (features,)))

    def rows(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """int8 rows and their scales of an embedding or a head. Raises UserError as `float_pieces`."""
        self.require(name, shape)  # before memory of that shape is taken
        codes, scales = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
        for i, piece in self.float_pieces(name, shape):
            part = slice(i, i + len(piece))
            codes[part], scales[part] = head.quantise_rows(piece)
        sound_floats(self.where(name), codes)
        return codes, scales

    def several_scales(self, name: str, shape: tuple[int, int]) -> bool:
        """Whether a matrix is ternary with scales that differ, for groups of its inputs."""
        e = self.require(name, shape)
        if e.type == I2_S:
            return False
        if e.type not in UNPACK:
            return any(
                not (p[p != 0] == p.max(initial=0)).all() and ternary.scale_group(x) is not None
                for x in (x for _, x in self.float_pieces(name, shape))
                for p in (np.abs(x),)
            )
        low, high = math.inf, 0.0
        for i, raw in self._pieces(e):
            scales = self._blocks(name, e, i, raw)[1]
            if scales.any():
                low, high = min(low, float(scales[scales > 0].min())), max(high, float(scales.max()))
        return high > low * _HALF_STEP

    def has_scales(self, name: str, shape: tuple[int, int], size: int) -> bool:
        """Whether every `size` elements of a row hold -s, 0 and s. Ternary types whose blocks are as long have it in their name, and are not read.
        Raises UserError as `float_pieces`."""
        e = self.require(name, shape)
        if e.type in UNPACK and block_of(e.type)[0] % size == 0:
            return True
        return all(head_scales(piece, size) is not None for _, piece in self.float_pieces(name, shape))

    def matrix(
        self, name: str, shape: tuple[int, int], *, latent: bool = False, groups: bool = False
    ) -> tuple[NDArray[np.integer], float]:
        """A ternary matrix int8[rows, inputs] and the scale that multiplies its outputs; with `groups` int16, each group of inputs with a
        scale of its own (`golden.ternary.group_integers`).

        Raises
        ------
        UserError : missing, another shape, weights that are not ternary or are damaged, scales that differ or are broken.
        """
        e = self.require(name, shape)
        out = np.empty(shape, np.int8)
        scales: NDArray[np.float32] | None = None
        scale = 1.0
        if groups:
            scales = self._grouped(name, e, shape, out)
        elif e.type == I2_S:
            scale = self._i2_s(name, e, out)
        elif e.type in UNPACK:
            scale = self._one_scale(name, e, out)
        elif latent:
            total = sum(float(np.abs(x).sum(dtype=np.float64)) for _, x in self.float_pieces(name, shape))
            s = ternary.latent_scale(total, out.size)
            for i, x in self.float_pieces(name, shape):
                out[i : i + len(x)] = ternary.quantise(x, s)[0]
            scale = float(s)
        else:
            scale = self._exact(name, shape, out)
        weights: NDArray[np.integer] = out
        if scales is not None:
            sound(self.where(name), out)
            with golden_errors(self.where(name)):
                weights, unit = ternary.group_integers(out, scales, ternary.GROUP)
            scale = float(unit)
        extra = name.removesuffix(".weight") + ".scale"
        if extra in self:
            scale *= float(self.floats(extra, (1,))[0])
        if scales is None:
            sound(self.where(name), out)
        with np.errstate(over="ignore"):
            scale = float(np.float32(scale))
        if not 0 < scale < math.inf:
            raise UserError(f"{self.where(name)}: its scale is {scale}; a scale must be positive and finite")
        return weights, scale

    def _codes(self, name: str, codes: NDArray[np.uint8], row: int, out: NDArray[np.int8]) -> None:
        """Writes the weights of codes uint8[rows * blocks, weights of a block] to `out` from a row on."""
        codes = codes.reshape(-1, out.shape[1])
        if (codes == 3).any():
            i, column = (int(v) for v in np.argwhere(codes == 3)[0])
            raise UserError(
                f"{self.where(name)}: code 3 at row {i + row}, column {column} is no ternary weight; the file is damaged, or its model is not "
                "ternary (in Q2_0 it is +2)"
            )
        np.subtract(codes.view(np.int8), 1, out=out[row : row + len(codes)])

    def _i2_s(self, name: str, e: Entry, out: NDArray[np.int8]) -> float:
        for i, raw in self._pieces(e):
            self._codes(name, unpack_i2_s(np.ascontiguousarray(raw).reshape(-1, block_of(I2_S)[1])), i, out)
        return float(self._map(e.start + len(out) * e.row_bytes, (4,)).view("<f4")[0])

    def _blocks(
        self, name: str, e: Entry, row: int, raw: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Codes uint8[blocks, weights] and scales [blocks] of rows from `row` on; those of a block of scale 0 are zeros."""
        block, width = block_of(e.type)
        codes, scales = UNPACK[e.type](np.ascontiguousarray(raw).reshape(-1, width))
        if not np.isfinite(scales).all() or (scales < 0).any():
            bad = int(np.argwhere(~(np.isfinite(scales) & (scales >= 0)))[0, 0])
            raise UserError(
                f"{self.where(name)}: the scale of block {row * (e.shape[1] // block) + bad} is {scales[bad]}; the file is damaged"
            )
        codes[scales == 0] = 1
        return codes, scales

    def _one_scale(self, name: str, e: Entry, out: NDArray[np.int8]) -> float:
        low, high, several = math.inf, 0.0, set[float]()
        for i, raw in self._pieces(e):
            codes, scales = self._blocks(name, e, i, raw)
            self._codes(name, codes, i, out)
            if scales.any():
                low, high = min(low, float(scales[scales > 0].min())), max(high, float(scales.max()))
                several.update(float(s) for s in np.unique(scales[scales > 0]))
        if high > low * _HALF_STEP:
            raise UserError(
                f"{self.where(name)}: its blocks have scales from {low:g} to {high:g}, {len(several):,} different ones, but the matrices of the "
                "first layer have one each. If the model was not trained with ternary weights, take one that was"
            )
        return high

    def _grouped(self, name: str, e: Entry, shape: tuple[int, int], out: NDArray[np.int8]) -> NDArray[np.float32]:
        """Weights to `out`; the scale of every `ternary.GROUP` inputs, float32[rows, groups]."""
        groups = ceil_div(shape[1], ternary.GROUP)
        each = np.empty((shape[0], groups), np.float32)
        if e.type == I2_S:
            each[:] = self._i2_s(name, e, out)
        elif e.type in UNPACK:
            times = block_of(e.type)[0] // ternary.GROUP
            for i, raw in self._pieces(e):
                codes, scales = self._blocks(name, e, i, raw)
                self._codes(name, codes, i, out)
                each[i : i + len(raw)] = np.repeat(scales.reshape(len(raw), -1), times, axis=1)
        else:
            for i, x in self.float_pieces(name, shape):
                part = slice(i, i + len(x))
                out[part], each[part] = group_scales(self.where(name), x, i)
        return each

    def _exact(self, name: str, shape: tuple[int, int], out: NDArray[np.int8]) -> float:
        """Floats of which each is -s, 0 or s."""
        scale = 0.0
        for i, x in self.float_pieces(name, shape):
            magnitude = np.abs(x)
            scale = scale or float(magnitude.max())
            bad = (magnitude != scale) & (x != 0)
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                if group := ternary.scale_group(x):
                    raise several_scales(self.where(name), group, magnitude, i, scale)
                raise UserError(
                    f"{self.where(name)}: its weights are not ternary: magnitudes {scale:g} and {magnitude[row, column]:g} (row {row + i}, "
                    f"column {column}); convert a model that was trained with ternary weights, or quantise these by their mean magnitude with --latent"
                )
            out[i : i + len(x)] = np.sign(x)
        return scale
