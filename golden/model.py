"""The whole model, pass by pass, as the accelerator computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import attention, elementwise, fp, hadamard, head, layout, schedule, screen, ternary
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, LARGEST, CacheFormat, largest
from tellme.golden.spec import ACTIVATIONS, NORMS, STEPS, ModelError, ModelSpec, RopeScaling, Step, rope_tables

__all__ = [
    "PREFILL_LANES",
    "GoldenModel",
    "GoldenPass",
    "LayerWeights",
    "ModelError",
    "ModelSpec",
    "ModelWeights",
    "PassError",
    "RopeScaling",
    "rope_tables",
]

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
Ints = NDArray[np.integer]

PREFILL_LANES = 64
"""Positions that `GoldenModel.prefill` takes at a time, whatever the accelerator's lanes: results do not depend on it."""


class PassError(ValueError):
    """A pass that the accelerator cannot run."""


def _check_shapes(shapes: Sequence[tuple[str, ArrayLike | None, tuple[int, ...] | None]]) -> None:
    for name, array, shape in shapes:
        have = None if array is None else np.shape(array)
        if have != shape:
            raise ModelError(f"{name} must have shape {shape}, not {have}")


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights of a layer: matrices [outputs, inputs] in the checkpoint's row order, scales, norm gains.

    Matrices are int8, -1, 0 or 1; where groups of inputs have scales of their own (`ModelSpec.group_scales`) int16, those times the
    group's scale, an integer in units of the matrix's (`golden.ternary.group_integers`). A gain is None where the model has no such norm.
    """

    q: Ints
    k: Ints
    v: Ints
    o: Ints
    gate: Ints
    up: Ints
    down: Ints
    q_scale: float
    k_scale: float
    v_scale: float
    o_scale: float
    gate_scale: float
    up_scale: float
    down_scale: float
    input_norm: F32
    post_norm: F32
    attn_norm: F32 | None = None
    ffn_norm: F32 | None = None
    q_norm: F32 | None = None
    k_norm: F32 | None = None

    def matrix(self, name: str) -> tuple[Ints, float]:
        """A matrix of `golden.spec.MATRICES` and its scale."""
        return getattr(self, name), getattr(self, f"{name}_scale")

    def check(self, spec: ModelSpec, index: int) -> None:
        """Raises ModelError unless every array of this layer, the model's `index`-th, has the shape of the specification."""
        shapes: dict[str, tuple[int, ...] | None] = dict(spec.matrices)
        shapes |= {name: (size,) if (size := norm.size(spec)) else None for name, norm in NORMS.items()}
        _check_shapes([(f"layer {index} {name}", getattr(self, name), shape) for name, shape in shapes.items()])


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """Weights of a model: specification, layers, last norm, int8 embedding and head rows with a float32 scale each.

    A tied model has head and head_scales None: the embedding's are used. `screen` is the ternary copy of the head, None if it
    has none; of a `spec.ternary_head` it is the head (`Screen.exact`), and head and head_scales are None. `inputs` are the embedding's rows as the checkpoint has them [vocab, hidden], float32, float16, or uint16 with
    the bits of bfloat16: what tokens begin with, unless it is None: then it is the int8 rows. A list of layers is checked here; a sequence that
    makes its layers when asked for them checks each with `LayerWeights.check`.

    Raises
    ------
    ModelError : an array has not the shape that the specification asks for.
    """

    spec: ModelSpec
    layers: Sequence[LayerWeights]
    norm: F32
    embedding: I8
    embedding_scales: F32
    head: I8 | None = None
    head_scales: F32 | None = None
    screen: screen.Screen | None = None
    inputs: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        s = self.spec
        if len(self.layers) != s.layers:
            raise ModelError(f"the model has {s.layers} layers, not {len(self.layers)}")
        shapes: list[tuple[str, ArrayLike | None, tuple[int, ...] | None]] = [
            ("norm", self.norm, (s.hidden,)),
            ("embedding", self.embedding, (s.vocab, s.hidden)),
            ("embedding_scales", self.embedding_scales, (s.vocab,)),
            ("inputs", self.inputs, None if self.inputs is None else (s.vocab, s.hidden)),
            ("head", self.head, None if s.tied or s.ternary_head else (s.vocab, s.hidden)),
            ("head_scales", self.head_scales, None if s.tied or s.ternary_head else (s.vocab,)),
        ]
        if s.ternary_head != (self.screen is not None and self.screen.exact):
            raise ModelError("a ternary head must be given as the model's screen, and that as exact")
        if self.screen is not None:
            count = self.screen.count
            shapes.append(("ternary head", self.screen.planes, (s.vocab, count, s.hidden)))
            shapes.append(("scales of the ternary head", self.screen.scales, (s.vocab, count)))
        _check_shapes(shapes)
        if isinstance(self.layers, (list, tuple)):
            for i, layer in enumerate(self.layers):
                layer.check(s, i)

    def check_head(self, config: AcceleratorConfig) -> None:
        """Raises ModelError unless a ternary head is in the accelerator's format of weights."""
        if self.spec.ternary_head and self.screen is not None and self.screen.planes.dtype != config.packing.dtype:
            raise ModelError(
                f"the ternary head is {self.screen.planes.dtype}, the format {config.packing.name!r} has {config.packing.dtype}"
            )

    @property
    def head_rows(self) -> tuple[I8, F32]:
        """int8 rows and scales of the output head."""
        if self.head is None or self.head_scales is None:
            return self.embedding, self.embedding_scales
        return self.head, self.head_scales


@dataclass(frozen=True)
class GoldenPass:
    """What a pass returns.

    Attributes
    ----------
    logits : [head lanes, vocab]; of a screened head [head lanes, candidates].
    best : [head lanes], arg-max tokens.
    candidates : [head lanes, candidates], rows of the logits, ascending; None: all.
    bound : [head lanes], of a screened head (`golden.screen`).
    head_inputs, head_scale : int8 [head lanes, hidden] and float32 [head lanes], what the head multiplies.
    taps : intermediate values by name, with leading axis lanes unless said otherwise; filled only when asked for.
        `x` the inputs; per layer `<layer>.<part>.acc`, `.q` (int8 inputs), `.scale` (of q), part qkv, o, gate or down, and where
        activations have them `.exponents`;
        `<layer>.qkv.y` ([Q heads + K heads + V heads, head_dim], after scale and RoPE),
        `<layer>.attention.u`, `<layer>.gate.u`, `<layer>.o.u`, `<layer>.down.u` (u buffers written by that part),
        `<layer>.query`, `.key`, `.value` (int8) and `<layer>.query_scale`, `.key_scale`, `.value_scale`;
        `<layer>.attention.out`; `<layer>.x` the residual stream after the layer; `head.q`, `head.scale` of head lanes.
    """

    logits: F32
    best: NDArray[np.int64]
    taps: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    candidates: NDArray[np.int64] | None = None
    bound: F32 | None = None
    head_inputs: I8 | None = None
    head_scale: F32 | None = None


@dataclass
class _Slot:
    """Cache of a slot, axes [layer, KV head, position(, dim)], in the order of dimensions of the hardware."""

    k: I8
    v: I8
    k_scales: F32
    v_scales: F32
    filled: int = 0


@dataclass(frozen=True)
class _Matrix:
    """A matrix as the engine holds it: rows in hardware order, a scale for each."""

    weights: Ints
    scales: F32


@dataclass(frozen=True)
class _Layer:
    """A layer as the engine holds it: matrices by name (qkv, o, gate, down), norm gains; those of Q and K by head, in rope order."""

    matrices: dict[str, _Matrix]
    input_norm: F32
    post_norm: F32
    attn_norm: F32 | None
    ffn_norm: F32 | None
    qk_norm: F32 | None


class GoldenModel:
    """Runs passes of a model, with cache slots, bit for bit as the accelerator does.

    Parameters
    ----------
    weights : the model.
    config : the accelerator. It limits lanes, context and sizes; results do not depend on it, but for its format of weights: with
        `grouped`, activations have an exponent for every 64.
    slots : cache slots.
    cache : elements of K and V.

    Raises
    ------
    ModelError : the accelerator cannot hold the model, or not keep its cache so.
    """

    def __init__(
        self, weights: ModelWeights, config: AcceleratorConfig, slots: int = 1, cache: CacheFormat = EIGHT
    ) -> None:
        if why := cache.problem(config):
            raise ModelError(why)
        weights.check_head(config)
        weights.spec.check_fits(config, cache.v_narrow)
        rows = (weights.spec.heads, weights.spec.kv_heads, weights.spec.kv_heads)
        self._largest = np.repeat([LARGEST, largest(cache.k_narrow), largest(cache.v_narrow)], rows)
        self.spec = weights.spec
        self.config = config
        self.cos, self.sin = rope_tables(self.spec)
        self._hadamard = cache.hadamard
        query_factor = hadamard.query_scale_factor(self.spec.head_dim, cache.hadamard)
        self._scale_factors = np.repeat(np.array([query_factor, 1, 1], np.float32), rows)
        self._layers = [self._layer_of(weights.layers[i]) for i in range(self.spec.layers)]
        self._norm = weights.norm
        self._embedding, self._embedding_scales = weights.embedding, weights.embedding_scales
        self._inputs = weights.inputs
        self._rows, self._row_scales = weights.head_rows
        self._screen = weights.screen
        self._slots: list[_Slot | None] = [None] * slots

    def _layer_of(self, w: LayerWeights) -> _Layer:
        def matrix(step: Step) -> _Matrix:
            rows, scales = zip(*map(w.matrix, step.matrices), strict=True)
            scales = tuple(self.config.packing.scale(scale) for scale in scales)
            if len(scales) == 1:
                return _Matrix(rows[0], np.array(scales, np.float32))
            each = [np.full(len(r), scale, np.float32) for r, scale in zip(rows, scales, strict=True)]
            dim = self.spec.head_dim
            return _Matrix(layout.join_rows(step, rows, dim), layout.join_rows(step, each, dim))

        matrices = {step.name: matrix(step) for step in STEPS.values() if step.matrices}
        s, heads = self.spec, None
        if w.q_norm is not None and w.k_norm is not None:
            order = layout.rope_order(s.head_dim)
            heads = np.repeat([w.q_norm[order], w.k_norm[order]], [s.heads, s.kv_heads], axis=0)
        return _Layer(matrices, w.input_norm, w.post_norm, w.attn_norm, w.ffn_norm, heads)

    # ---- cache -------------------------------------------------------------------------------------------------------

    def reset(self, slot: int = 0) -> None:
        """Empties a slot."""
        self._slots[slot] = None

    def filled(self, slot: int = 0) -> int:
        """Positions that a slot holds."""
        s = self._slots[slot]
        return 0 if s is None else s.filled

    def cache(self, slot: int, layer: int) -> tuple[I8, F32, I8, F32]:
        """K, K scales, V, V scales of a slot and layer: [kv_heads, filled, head_dim] and [kv_heads, filled]."""
        s = self._slot(slot)
        n = s.filled
        return s.k[layer, :, :n], s.k_scales[layer, :, :n], s.v[layer, :, :n], s.v_scales[layer, :, :n]

    def set_cache(self, slot: int, layer: int, k: I8, k_scales: F32, v: I8, v_scales: F32) -> None:
        """Fills a slot's layer from position 0 on, in the order of `cache`; every layer must get as many positions."""
        s = self._slot(slot)
        n = k.shape[1]
        s.k[layer, :, :n], s.k_scales[layer, :, :n] = k, k_scales
        s.v[layer, :, :n], s.v_scales[layer, :, :n] = v, v_scales
        s.filled = n

    def _slot(self, index: int) -> _Slot:
        slot = self._slots[index]
        if slot is None:
            shape = (self.spec.layers, self.spec.kv_heads, self.spec.max_context)
            data = np.zeros((2, *shape, self.spec.head_dim), np.int8)
            scales = np.zeros((2, *shape), np.float32)
            slot = self._slots[index] = _Slot(data[0], data[1], scales[0], scales[1])
        return slot

    # ---- passes ------------------------------------------------------------------------------------------------------

    def embed(self, tokens: ArrayLike) -> F32:
        """Inputs of tokens: [lanes, hidden]."""
        t = self._tokens(tokens)
        if self._inputs is not None:
            return elementwise.widen(self._inputs[t])
        return elementwise.dequantise(self._embedding[t], self._embedding_scales[t])

    def prefill(
        self,
        tokens: ArrayLike,
        slot: int = 0,
        *,
        start: int | None = None,
        all_logits: bool = False,
        lanes: int = PREFILL_LANES,
        candidates: int = 0,
    ) -> GoldenPass:
        """Takes tokens at positions start, start + 1, ... of a slot (behind what it holds, if None).

        Parameters
        ----------
        all_logits : return the logits of every token, not of the last alone.
        lanes : positions taken at a time. More are faster and take more memory; results are the same.
        candidates : of the screened head, for each token; 0: the full head.
        """
        t = self._tokens(tokens)
        if not len(t):
            raise PassError("a prompt needs at least one token")
        first = self.filled(slot) if start is None else start
        self._check_context(first + len(t) - 1)
        results = []
        for i in range(0, len(t), lanes):
            part = t[i : i + lanes]
            n = len(part)
            groups = self._groups(list(range(first + i, first + i + n)), [slot] * n)
            heads = (0, n) if all_logits else (n - 1, 1) if i + n == len(t) else (0, 0)
            results.append(self._run(part, np.arange(first + i, first + i + n), groups, heads, None, candidates))
        if len(results) == 1 or not all_logits:
            return results[-1]

        def joined(name: str) -> Any:
            parts = [getattr(r, name) for r in results]
            return None if parts[0] is None else np.concatenate(parts)

        names = ("logits", "best", "candidates", "bound", "head_inputs", "head_scale")
        return GoldenPass(**{name: joined(name) for name in names})

    def decode(self, token: int, slot: int = 0) -> GoldenPass:
        """Appends one token to a slot: a pass of one lane."""
        return self.run_pass([token], [self.filled(slot)], [slot], (0, 1))

    def run_pass(
        self,
        tokens: ArrayLike,
        positions: Sequence[int] | NDArray[np.integer],
        slots: Sequence[int],
        head_lanes: tuple[int, int] | None = None,
        *,
        taps: bool = False,
        candidates: int = 0,
    ) -> GoldenPass:
        """One pass: a token, position and slot for each lane.

        Parameters
        ----------
        head_lanes : first lane whose logits are computed, and how many; all of them if None.
        taps : whether to keep intermediate values.
        candidates : of the screened head, for each head lane; 0: the full head.

        Raises
        ------
        PassError : too many lanes, a position behind the context or behind a gap, lanes of a slot that are not
            neighbours with ascending positions, unknown tokens or slots.
        """
        t = self._tokens(tokens)
        lanes = len(t)
        if not 1 <= lanes <= self.config.lanes:
            raise PassError(f"a pass has 1 to {self.config.lanes} lanes, not {lanes}")
        if not lanes == len(positions) == len(slots):
            raise PassError(f"{lanes} tokens, {len(positions)} positions and {len(slots)} slots are not as many")
        groups = self._groups(list(map(int, positions)), list(map(int, slots)))
        first, count = (0, lanes) if head_lanes is None else head_lanes
        if not (0 <= first and 0 <= count and first + count <= lanes):
            raise PassError(f"head lanes {first}..{first + count - 1} are not among the {lanes} lanes of the pass")
        return self._run(t, np.asarray(positions, np.int64), groups, (first, count), {} if taps else None, candidates)

    def _run(
        self,
        t: NDArray[np.int64],
        p: NDArray[np.int64],
        groups: list[tuple[int, int, int, int]],
        head_lanes: tuple[int, int],
        keep: dict[str, NDArray[np.generic]] | None,
        candidates: int,
    ) -> GoldenPass:
        """A pass whose arguments are valid; `keep` takes the taps."""
        if candidates:
            self._check_candidates(candidates)
        x = self.embed(t)
        if keep is not None:
            keep["x"] = x
        stats = elementwise.statistics(x, self._layers[0].input_norm)
        for i in range(self.spec.layers):
            x, stats = self._layer(i, x, stats, p, groups, keep)
        for slot, _, n, start in groups:
            self._slot(slot).filled = max(self._slot(slot).filled, start + n)
        first, count = head_lanes
        if not count:
            return GoldenPass(np.empty((0, self.spec.vocab), np.float32), np.empty(0, np.int64), keep or {})
        lane = slice(first, first + count)
        last = elementwise.Statistics(stats.ss[lane], stats.amax[lane], stats.u[lane])
        q, scale = elementwise.quantise(last, norm=True, eps=self.spec.norm_eps)
        if keep is not None:
            keep |= {"head.q": q, "head.scale": scale}
        if self._screen is not None and self._screen.exact:
            r = screen.exact(q, scale, self._screen, candidates)
            if candidates:
                return GoldenPass(r.logits, r.best, keep or {}, r.indices, r.bound, q, scale)
            assert r.every is not None
            return GoldenPass(r.every, r.best, keep or {}, head_inputs=q, head_scale=scale)
        if candidates and self._screen is not None:
            r = screen.screened(q, scale, self._screen, self._rows, self._row_scales, candidates)
            return GoldenPass(r.logits, r.best, keep or {}, r.indices, r.bound, q, scale)
        values = head.logits(q, scale, self._rows, self._row_scales)
        return GoldenPass(values, head.best(values), keep or {}, head_inputs=q, head_scale=scale)

    def _linear(
        self,
        layer: int,
        part: str,
        stats: elementwise.Statistics,
        keep: dict[str, NDArray[np.generic]] | None,
    ) -> F32:
        m = self._layers[layer].matrices[part]
        norm = STEPS[part].normalised(self.spec)
        if self.config.packing.group:
            q, exponents, scale = elementwise.quantise_groups(stats, norm=norm, eps=self.spec.norm_eps)
            acc: NDArray[Any] = ternary.grouped_linear(m.weights, q, exponents)
            if keep is not None:
                keep[f"{layer}.{part}.exponents"] = exponents
        else:
            q, scale = elementwise.quantise(stats, norm=norm, eps=self.spec.norm_eps)
            acc = ternary.product(q, m.weights, ternary.ACTIVATION * self.config.packing.largest)
        if keep is not None:
            keep |= {
                f"{layer}.{part}.q": q,
                f"{layer}.{part}.scale": scale,
                f"{layer}.{part}.acc": acc.astype(np.int64),
            }
        return elementwise.scale(acc, m.scales, scale)

    def _quantised_heads(self, y: F32, qk_norm: F32 | None, cos: F32, sin: F32) -> tuple[I8, F32]:
        """Queries, keys and values of heads y [lanes, heads, head_dim], and their scales, the queries' times the query factor.

        y becomes what is quantised: queries and keys are rotated.
        """
        s = self.spec
        rotated = s.heads + s.kv_heads
        if qk_norm is None:
            u = elementwise.rope(y[:, :rotated], cos, sin)
            stats = elementwise.Statistics(np.zeros(u.shape[:-1], np.float32), fp.max_abs(u), u)
        else:
            stats = elementwise.head_statistics(y[:, :rotated], qk_norm, cos, sin)
        y[:, :rotated] = stats.u
        codes, scales = elementwise.quantise_head(y, self._largest)
        scales = fp.mul(scales, self._scale_factors)
        if not self._hadamard and qk_norm is None:
            return codes, scales
        norm, largest, factor = qk_norm is not None, self._largest[:rotated], self._scale_factors[:rotated]
        if self._hadamard:
            turned = hadamard.quantise(stats, norm=norm, eps=s.norm_eps, largest=largest, factor=factor)
        else:
            q, scale = elementwise.quantise(stats, norm=norm, eps=s.norm_eps, largest=largest)
            turned = q, fp.mul(scale, factor)
        codes[:, :rotated], scales[:, :rotated] = turned
        return codes, scales

    def _layer(
        self,
        i: int,
        x: F32,
        stats: elementwise.Statistics,
        positions: NDArray[np.int64],
        groups: list[tuple[int, int, int, int]],
        keep: dict[str, NDArray[np.generic]] | None,
    ) -> tuple[F32, elementwise.Statistics]:
        s, w = self.spec, self._layers[i]
        lanes = len(x)
        y = self._linear(i, "qkv", stats, keep).reshape(lanes, -1, s.head_dim)
        rotated = s.heads + s.kv_heads
        codes, scales = self._quantised_heads(y, w.qk_norm, self.cos[positions, None], self.sin[positions, None])
        query, query_scale = codes[:, : s.heads], scales[:, : s.heads]
        key, value = codes[:, s.heads : rotated], codes[:, rotated:]
        key_scale, value_scale = scales[:, s.heads : rotated], scales[:, rotated:]
        out = np.empty((lanes, s.q_dim), np.float32)
        for slot, lane, n, start in groups:
            mine, at = slice(lane, lane + n), slice(start, start + n)
            c = self._slot(slot)
            c.k[i, :, at], c.v[i, :, at] = key[mine].swapaxes(0, 1), value[mine].swapaxes(0, 1)
            c.k_scales[i, :, at], c.v_scales[i, :, at] = key_scale[mine].T, value_scale[mine].T
            keys = slice(0, start + n)
            result = attention.attend(
                query[mine],
                query_scale[mine],
                c.k[i, :, keys],
                c.k_scales[i, :, keys],
                c.v[i, :, keys],
                c.v_scales[i, :, keys],
                start,
            )
            out[mine] = attention.merge_heads(result.out, n)
        attended = elementwise.statistics(out, w.attn_norm)
        x = elementwise.residual(x, self._linear(i, "o", attended, keep))
        middle = elementwise.statistics(x, w.post_norm)
        z = self._linear(i, "gate", middle, keep)
        gate = ACTIVATIONS[s.activation].gate
        gated = elementwise.statistics(gate(z[:, 0::2], z[:, 1::2]), w.ffn_norm)
        x = elementwise.residual(x, self._linear(i, "down", gated, keep))
        following = self._layers[i + 1].input_norm if i + 1 < s.layers else self._norm
        after = elementwise.statistics(x, following)
        if keep is not None:
            keep |= {
                f"{i}.qkv.y": y,
                f"{i}.query": query,
                f"{i}.key": key,
                f"{i}.value": value,
                f"{i}.query_scale": query_scale,
                f"{i}.key_scale": key_scale,
                f"{i}.value_scale": value_scale,
                f"{i}.attention.out": out,
                f"{i}.attention.u": attended.u,
                f"{i}.o.u": middle.u,
                f"{i}.gate.u": gated.u,
                f"{i}.down.u": after.u,
                f"{i}.x": x,
            }
        return x, after

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _tokens(self, tokens: ArrayLike) -> NDArray[np.int64]:
        t = np.asarray(tokens, np.int64).reshape(-1)
        bad = t[(t < 0) | (t >= self.spec.vocab)]
        if len(bad):
            raise PassError(f"token {bad[0]} is not in the vocabulary of {self.spec.vocab}")
        return t

    def _check_candidates(self, count: int) -> None:
        if self._screen is None:
            raise PassError("the model has no ternary head to choose candidates with; convert it with --head screened")
        if why := screen.problem(count, 1, self.spec.vocab, self.config.screen_entries):
            raise PassError(why)

    def _check_context(self, position: int) -> None:
        if position >= self.spec.max_context:
            raise PassError(
                f"position {position} is outside the context of {self.spec.max_context} positions: "
                f"the conversation is full; start a new one or shorten the prompt"
            )

    def _groups(self, positions: list[int], slots: list[int]) -> list[tuple[int, int, int, int]]:
        """(slot, first lane, lanes, first position) of every group; checks a pass."""
        out: list[tuple[int, int, int, int]] = []
        for lo, hi in schedule.groups(slots):
            slot, first = slots[lo], positions[lo]
            if not 0 <= slot < len(self._slots):
                raise PassError(f"slot {slot} of lane {lo} is not one of the {len(self._slots)} slots")
            self._check_context(first)
            if slot in slots[:lo]:
                raise PassError(f"lanes of slot {slot} must be neighbours; lane {lo} is apart")
            if not 0 <= first <= self.filled(slot):
                raise PassError(f"lane {lo} has position {first}, but slot {slot} holds {self.filled(slot)}")
            for lane in range(lo + 1, hi + 1):
                self._check_context(positions[lane])
                if positions[lane] != first + lane - lo:
                    raise PassError(
                        f"lane {lane} must have position {first + lane - lo}, one after its neighbour, "
                        f"not {positions[lane]}"
                    )
            out.append((slot, lo, hi - lo + 1, first))
        return out
