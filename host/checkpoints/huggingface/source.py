"""The tensors of a Hugging Face folder as weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import head, ternary
from tellme.golden.arith import ceil_div
from tellme.golden.model import LayerWeights
from tellme.golden.spec import MATRICES, NORMS, ModelSpec
from tellme.host.checkpoints.common import golden_errors, group_scales, several_scales, sound, sound_floats
from tellme.host.checkpoints.huggingface.config import Family
from tellme.host.checkpoints.tensors import FLOATS, Tensors
from tellme.host.errors import UserError

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_IGNORED = ("rotary_emb.inv_freq",)


class Source:
    """The weights of a Hugging Face folder. Construction checks every header entry and scale; reading checks the rest.

    Raises
    ------
    UserError : naming the tensor, what was found and what is needed.
    """

    def __init__(self, tensors: Tensors, spec: ModelSpec, family: Family, *, latent: bool):
        self.tensors = tensors
        self.spec = spec
        self.family = family
        self.latent = latent or family.declared
        self.scales: dict[str, float] = {}
        self.used: set[str] = set()
        s = spec
        if EMBEDDING not in tensors:
            self._refuse_other_names()
        self._floats(EMBEDDING, (s.vocab, s.hidden))
        self._floats(NORM, (s.hidden,))
        for i in range(s.layers):
            for part, shape in s.matrices.items():
                self._matrix(self._name(i, part), shape)
            for name, size in self._gains(i).values():
                self._floats(name, (size,))
        self._head()
        extra = sorted(n for n in tensors if n not in self.used and not n.endswith(_IGNORED))
        if biases := [n for n in extra if n.endswith(".bias")]:
            raise UserError(f"{tensors.where(biases[0])}: linear layers with a bias are not supported")
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise UserError(
                f"{tensors.where(extra[0])}{more}: no place in this model; it may not be of the supported kind"
            )

    def _refuse_other_names(self) -> None:
        """Says what names a checkpoint has that are not those of transformers' whole model."""
        t = self.tensors
        lora = next((n for n in t if "lora_" in n), None)
        if lora is not None:
            raise UserError(
                f"{t.where(lora)}: is part of an adapter (LoRA); merge it into its base model (peft: merge_and_unload, "
                "save_pretrained) and give that folder"
            )
        last = EMBEDDING.removeprefix("model.")
        name = next((n for n in t if n.endswith(last)), None)
        if name is not None:
            prefix = name.removesuffix(last)
            begin = f"begin with {prefix!r}" if prefix else "have no prefix"
            raise UserError(
                f"{t.where(name)}: the names of its tensors {begin}, where 'model.' is needed (model.embed_tokens.weight): the inner "
                "model or a wrapper of it was saved; save the whole one (AutoModelForCausalLM), or rename the tensors"
            )
        if "tok_embeddings.weight" in t:
            raise UserError(
                f"{t.where('tok_embeddings.weight')}: the tensors have the names of Meta's own format; convert it to a Hugging Face "
                "folder (transformers' convert_llama_weights_to_hf.py)"
            )

    @staticmethod
    def _name(layer: int, part: str) -> str:
        return f"model.layers.{layer}.{MATRICES[part].transformers}.weight"

    def _gains(self, layer: int) -> dict[str, tuple[str, int]]:
        """Tensor and size of every norm of a layer, under the first of its names that exists."""
        gains = {}
        for part, size in self.spec.norms.items():
            names = [f"model.layers.{layer}.{n}" for n in NORMS[part].transformers]
            gains[part] = (next((n for n in names if n in self.tensors), names[0]), size)
        return gains

    def _floats(self, name: str, shape: tuple[int, ...]) -> None:
        self.tensors.require_floats(name, shape)
        self.used.add(name)

    def _head(self) -> None:
        t, shape = self.tensors, (self.spec.vocab, self.spec.hidden)
        if not self.spec.tied:
            if HEAD not in t:
                raise UserError(
                    f"{t.folder}: tensor {HEAD} is missing; if the embedding is the head, config.json must say "
                    "tie_word_embeddings"
                )
            self._floats(HEAD, shape)
        elif HEAD in t:
            self._floats(HEAD, shape)
            pairs = zip(t.float_pieces(HEAD), t.float_pieces(EMBEDDING), strict=True)
            if not all(np.array_equal(a, b) for (_, a), (_, b) in pairs):
                raise UserError(
                    f"{t.where(HEAD)} differs from {EMBEDDING}, but config.json says tie_word_embeddings; "
                    "correct one of them"
                )

    def _matrix(self, name: str, shape: tuple[int, int]) -> None:
        """Checks what the header says of a ternary matrix, and reads the scale of a packed one."""
        t, scale = self.tensors, f"{name}_scale"
        if name not in t:
            raise UserError(f"{t.folder}: tensor {name} is missing")
        self.used.add(name)
        where = t.where(name)
        if t.dtype(name) in FLOATS:
            t.require(name, shape)
            if scale in t:
                self._scale(name)
            return
        if t.dtype(name) != "U8":
            raise UserError(f"{where} is {t.dtype(name)}; packed weights are U8, latent ones floating-point")
        rows, inputs = shape
        if rows % 4:
            raise UserError(f"{where}: packed matrices have a multiple of 4 rows, config.json asks for {rows}")
        t.require(name, (rows // 4, inputs))
        if scale not in t:
            raise UserError(f"{t.folder}: tensor {scale} is missing; packed weights need it")
        self._scale(name)

    def _scale(self, name: str) -> None:
        """Reads the weight_scale of a matrix."""
        t, scale = self.tensors, f"{name}_scale"
        if t.shape(scale) not in ((), (1,)):
            raise UserError(
                f"{t.where(scale)} has shape {list(t.shape(scale))}, one scale a matrix is supported, several are not yet"
            )
        s = t.float32(scale, t.shape(scale)).reshape(-1)[0]
        if s <= 0:
            raise UserError(f"{t.where(scale)} is {s}; a scale must be positive")
        with np.errstate(over="ignore"):
            s = np.float32(1) / s if self.family.divides else s
        if not np.isfinite(s):
            raise UserError(f"{t.where(scale)} is too small, its inverse is not finite")
        self.used.add(scale)
        self.scales[name] = float(s)

    def several_scales(self) -> bool:
        """Whether a matrix of the first layer is ternary with scales that differ, for groups of its inputs."""
        if self.latent:
            return False
        for part in self.spec.matrices:
            name = self._name(0, part)
            if self.tensors.dtype(name) not in FLOATS or name in self.scales:
                continue
            scale = np.float32(0)
            for _, piece in self.tensors.float_pieces(name):
                magnitude = np.abs(piece)
                scale = scale or magnitude.max()
                if not ((magnitude == 0) | (magnitude == scale)).all():
                    if ternary.scale_group(piece) is not None:
                        return True
                    break
        return False

    # ---- reading -----------------------------------------------------------------------------------------------------

    def layer(self, i: int) -> LayerWeights:
        """Reads a layer."""
        parts: dict[str, Any] = {}
        for part, shape in self.spec.matrices.items():
            parts[part], parts[f"{part}_scale"] = self.matrix(self._name(i, part), shape)
        for part, (name, size) in self._gains(i).items():
            parts[part] = self.gain(name, size)
        return LayerWeights(**parts)

    def gain(self, name: str, size: int) -> NDArray[np.float32]:
        """The gain of a norm."""
        return sound_floats(self.tensors.where(name), self.tensors.float32(name, (size,)))

    def matrix(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.integer], float]:
        """A ternary matrix [rows, inputs] and the scale that multiplies its outputs; with `group_scales` each group of inputs has one of its
        own (`golden.ternary.group_integers`)."""
        where = self.tensors.where(name)
        if self.spec.group_scales and self.tensors.dtype(name) in FLOATS and name not in self.scales:
            return self._grouped(name, shape)
        if self.tensors.dtype(name) == "U8":
            weights, scale = self._packed(name, shape), self.scales[name]
        elif name in self.scales:
            weights, unit = self._exact(name, shape)
            with np.errstate(all="ignore"):
                scale = float(np.float32(unit) * np.float32(self.scales[name]))
            if not 0 < scale < np.inf:
                raise UserError(
                    f"{where}: its values of {unit:g} times weight_scale {self.scales[name]:g} are no float32; the file is damaged"
                )
        else:
            weights, scale = self._latent(name, shape) if self.latent else self._exact(name, shape)
        return sound(where, weights), scale

    def _grouped(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.integer], float]:
        where = self.tensors.where(name)
        out = np.empty(shape, np.int8)
        scales = np.empty((shape[0], ceil_div(shape[1], ternary.GROUP)), np.float32)
        for i, piece in self.tensors.float_pieces(name):
            part = slice(i, i + len(piece))
            out[part], scales[part] = group_scales(where, piece, i)
        sound(where, out)
        with golden_errors(where):
            weights, unit = ternary.group_integers(out, scales, ternary.GROUP)
        return weights, float(unit)

    def _packed(self, name: str, shape: tuple[int, int]) -> NDArray[np.int8]:
        out = np.empty(shape, np.int8)
        quarter = shape[0] // 4
        for first, codes in self.tensors.pieces(name):
            bad = codes & (codes >> 1) & 0x55  # both bits of a code set: 3
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                row += first + quarter * next(i for i in range(4) if bad[row, column] >> 2 * i & 1)
                raise UserError(
                    f"{self.tensors.where(name)}: code 3 at row {row}, column {column} is no ternary weight; "
                    "the file is damaged"
                )
            for i in range(4):
                part = (codes >> 2 * i) & 3
                part -= 1
                out[i * quarter + first :][: len(codes)] = part.view(np.int8)
        return out

    def _latent(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], float]:
        total = sum(float(np.abs(p).sum(dtype=np.float64)) for _, p in self.tensors.float_pieces(name))
        scale = ternary.latent_scale(total, shape[0] * shape[1])
        out = np.empty(shape, np.int8)
        for i, piece in self.tensors.float_pieces(name):
            out[i : i + len(piece)] = ternary.quantise(piece, scale)[0]
        return out, float(scale)

    def _exact(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], float]:
        """Floating-point weights that are -s, 0 and s."""
        out = np.empty(shape, np.int8)
        scale = np.float32(0)
        where = self.tensors.where(name)
        for i, piece in self.tensors.float_pieces(name):
            magnitude = np.abs(piece)
            scale = scale or magnitude.max()
            bad = (magnitude != 0) & (magnitude != scale)
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                if group := ternary.scale_group(piece):
                    raise several_scales(where, group, magnitude, i, scale)
                raise UserError(
                    f"{where} is not ternary: {self.tensors.dtype(name)} values like "
                    f"{piece[row, column]:.6g} at row {i + row}, column {column} beside {scale:.6g}; convert a 1.58-bit "
                    "checkpoint, or quantise these weights by their mean magnitude with --latent"
                )
            out[i : i + len(piece)] = np.sign(piece)
        if not scale:
            sound(where, out)
        return out, float(scale)

    def rows(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Embedding or head: int8 rows and their scales."""
        out = np.empty((self.spec.vocab, self.spec.hidden), np.int8)
        scales = np.empty(self.spec.vocab, np.float32)
        for i, piece in self.tensors.float_pieces(name):
            part = slice(i, i + len(piece))
            out[part], scales[part] = head.quantise_rows(piece)
        return sound_floats(self.tensors.where(name), out), scales
