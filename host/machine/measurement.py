"""Speed of a model's real shape on the simulated accelerator: synthetic weights, every pass held against golden.

Whole layers and the output head are run. Identical layers are multiplied: a pass of L layers takes what a pass of two
layers takes, and L - 2 times what the second of them added. `complete=True` runs all L layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat, largest
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.golden.registers import BUSY, STALLS
from tellme.golden.screen import quantise
from tellme.golden.shapes import SHAPES
from tellme.golden.spec import STEPS, ModelSpec
from tellme.host.checkpoints.checkpoint import Checkpoint, golden_errors, is_checkpoint
from tellme.host.checkpoints.common import LazyLayers
from tellme.host.checkpoints.synthetic import random_weights
from tellme.host.errors import CheckError, UserError
from tellme.host.image.file import Image
from tellme.host.image.model import DEMOS, Model, convert, demo_folder, read_spec
from tellme.host.image.screening import shape_for
from tellme.host.machine.passes import Pass, PassResult, chunks
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import Program, check_fits, check_positions, compile_program, usable_context
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.progress import Status
from tellme.host.text.tokenizer import Files

if TYPE_CHECKING:
    from tellme.sim.timing import MemoryTiming
    from tellme.sim.trace import Trace

_CACHE_PARTS = ("K", "K scale", "V", "V scale")
SEED = 7
"""Of weights, cached keys and tokens."""

Say = Callable[[str], None]


def shape(name: str, config: AcceleratorConfig | None = None) -> ModelSpec:
    """A model's shape: a published one's by name, or that of a file. Weights are not needed for it, if there is a config.json
    (but for a ternary head, see `host.image.screening.shape_for`).

    Parameters
    ----------
    name : one of `golden.shapes.SHAPES`, demo, demo-qwen3, a config.json or its folder, a .gguf file, or a .tlm image.
    config : an accelerator, whose image it is asked of: a ternary head is one of int8 rows, where that takes none so.

    Raises
    ------
    UserError : there is no such model, or its file cannot be used.
    """
    if name in SHAPES:
        spec = SHAPES[name]
        return replace(spec, ternary_head=False) if config is not None and not config.ternary_head else spec
    path = DEMOS[name]() if name in DEMOS else Path(name)
    if not path.exists():
        raise UserError(
            f"model {name!r} is not a known shape; there are {', '.join((*SHAPES, *DEMOS))}, or a config.json, .gguf or .tlm file"
        )
    if path.name == "config.json" or is_checkpoint(path):
        return shape_for(path, config)
    image = Image(path, verify=False)
    try:
        with golden_errors(path):
            return read_spec(image.model.get("spec"))
    except ValueError as e:
        raise UserError(f"{path}: its header is broken, {e}; convert the checkpoint again") from e


@dataclass(frozen=True)
class Cost:
    """Counters of a pass; sums and multiples of passes are costs too.

    Attributes
    ----------
    cycles, beats, writes : of the pass; a beat is read, a write is a beat or a part of one.
    stalls, busy : cycles by cause (`golden.registers.STALLS`) and by unit (`BUSY`).
    """

    cycles: int
    beats: int
    writes: int
    stalls: dict[str, int]
    busy: dict[str, int]

    @staticmethod
    def of(result: PassResult) -> Cost:
        """The counters that came with a pass."""
        assert result.cycles is not None and result.beats is not None and result.writes is not None
        return Cost(result.cycles, result.beats, result.writes, result.stalls, result.busy)

    def plus(self, other: Cost, times: int = 1) -> Cost:
        """This and `times` the other."""
        return Cost(
            self.cycles + times * other.cycles,
            self.beats + times * other.beats,
            self.writes + times * other.writes,
            {k: self.stalls[k] + times * other.stalls[k] for k in STALLS},
            {k: self.busy[k] + times * other.busy[k] for k in BUSY},
        )


@lru_cache(maxsize=1)
def _weights(spec: ModelSpec, planes: int) -> ModelWeights:
    """Random weights of a whole shape, with so many planes of a screened head (0: none): the head takes longer to make than to run."""
    weights = random_weights(spec, SEED)
    if spec.ternary_head:
        return weights
    return replace(weights, screen=quantise(*weights.head_rows, planes)) if planes else weights


class Machine:
    """A model with the first `layers` layers of a shape on the simulated accelerator, and golden beside it.

    Parameters
    ----------
    spec : the whole model's shape.
    cached : keys that every slot of the cache holds before the first pass: random ones, the same in both.
    slots : cache slots.
    candidates : of the screened head; 0: the full head. planes : of its ternary copy.
    kv : elements of the cache.
    trace : file for the records of what every unit does.

    Raises
    ------
    UserError : the shape does not fit the accelerator.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layers: int,
        config: AcceleratorConfig,
        timing: MemoryTiming,
        *,
        cached: int,
        context: int,
        slots: int = 1,
        candidates: int = 0,
        planes: int = 1,
        kv: CacheFormat = EIGHT,
        trace: Path | None = None,
        status: Status | None = None,
    ):
        self.config = config
        self.slots = slots
        self.candidates = candidates
        self.spec = replace(spec, layers=layers, max_context=context)
        made = _weights(replace(spec, max_context=1), planes if candidates else 0)
        weights = replace(made, spec=self.spec, layers=LazyLayers(self.spec, made.layers.__getitem__))
        self._folder = tempfile.TemporaryDirectory(prefix="tellme-")
        try:
            path = Path(self._folder.name) / "model.tlm"
            tokenizer = Files.read(demo_folder())
            convert(Checkpoint(name="synthetic", weights=weights, tokenizer=tokenizer, eos_ids=()), path, config)
            self.model = Model.open(path, config, verify=False)
            self.program = compile_program(self.model, config, slots=slots, kv=kv)
            self.golden = GoldenModel(weights, config, slots, cache=kv)
            self.accelerator = SimulatedAccelerator(self.model, self.program, timing=timing, trace=trace, status=status)
        except BaseException:
            self._folder.cleanup()
            raise
        self._fill(cached)

    def close(self) -> None:
        """Ends the simulation and removes the model."""
        self.accelerator.close()
        self.model.close()
        self._folder.cleanup()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _block(self, slot: int, layer: int, head: int, position: int) -> int:
        p = self.program
        return p.kv_address + layer * self.slots * p.kv.slot_stride + p.kv.block(slot, head, position)

    def _fill(self, n: int) -> None:
        """Random keys and values at positions [0, n) of every slot."""
        s, size = self.spec, self.config.key_block
        cache = self.program.kv.cache
        most = largest(cache.k_narrow), largest(cache.v_narrow)
        for slot, layer in product(range(self.slots), range(s.layers if n else 0)):
            rng = np.random.default_rng([SEED, 1, layer, slot])
            k, v = (rng.integers(-m, m, (s.kv_heads, n, s.head_dim), np.int8, endpoint=True) for m in most)
            k_scales, v_scales = rng.uniform(0.01, 0.03, (2, s.kv_heads, n)).astype(np.float32)
            self.golden.set_cache(slot, layer, k, k_scales, v, v_scales)
            for h in range(s.kv_heads):
                for b in range(0, n, size):
                    part = slice(b, min(b + size, n))
                    beats = self.program.kv.pack_block(k[h, part], k_scales[h, part], v[h, part], v_scales[h, part])
                    self.accelerator.put(self._block(slot, layer, h, b), beats)

    def run(self, tokens: Sequence[int], position: int, *, head: bool, logits: bool = False) -> Cost:
        """One pass of neighbouring positions of slot 0; the head on the last lane or not at all.

        Raises
        ------
        CheckError : as `run_pass`.
        """
        n = len(tokens)
        return self.run_pass(
            Pass.of(
                tokens,
                range(position, position + n),
                head=(n - 1, 1) if head else (0, 0),
                write_logits=logits,
                candidates=self.candidates if head else 0,
            )
        )

    def run_pass(self, given: Pass) -> Cost:
        """One pass on both.

        Raises
        ------
        CheckError : arg-max, a logit, or what the pass wrote to the cache differs from golden's.
        """
        got = self.accelerator.run_pass(given)
        want = self.golden.run_pass(given.tokens, given.positions, given.slots, given.head, candidates=given.candidates)
        where = f"{self.spec.layers} layers, {given.lanes} lanes from position {given.positions[0]}"
        for lane in range(given.head[1]):
            token, value = int(want.best[lane]), want.logits[lane].max()
            if got.best_index[lane] != token or got.best_value[lane].tobytes() != value.tobytes():
                raise CheckError(
                    f"{where}: arg-max of head lane {lane} is token {got.best_index[lane]} ({got.best_value[lane]!r}), "
                    f"the golden model's is {token} ({value!r})"
                )
        if got.logits is not None and not np.array_equal(got.logits.view(np.uint32), want.logits.view(np.uint32)):
            raise CheckError(f"{where}: logits differ from the golden model's")
        if want.bound is not None and (
            got.bound is None or [x.tobytes() for x in got.bound] != [x.tobytes() for x in want.bound]
        ):
            raise CheckError(f"{where}: bounds {got.bound} differ from the golden model's {want.bound}")
        if (
            got.candidates is not None
            and want.candidates is not None
            and not np.array_equal(got.candidates, want.candidates)
        ):
            raise CheckError(f"{where}: candidates differ from the golden model's")
        for first, last in given.groups:
            self._check_cache(given.positions[first], last - first + 1, where, given.slots[first])
        return Cost.of(got)

    def _check_cache(self, position: int, n: int, where: str, slot: int = 0) -> None:
        p, s, size = self.program, self.spec, self.config.key_block
        self.accelerator.device.invalidate(p.kv_address, p.window_beats - p.kv_address)
        for layer in range(s.layers):
            want: tuple[NDArray[Any], ...] = self.golden.cache(slot, layer)
            for h in range(s.kv_heads):
                for b in range(position // size * size, position + n, size):
                    got: tuple[NDArray[Any], ...] = p.kv.unpack_block(
                        self.accelerator.get(self._block(slot, layer, h, b), p.kv.block_stride)
                    )
                    low, high = max(position, b), min(position + n, b + size)
                    for part, g, w in zip(_CACHE_PARTS, got, want, strict=True):
                        if not np.array_equal(_bits(g[low - b : high - b]), _bits(w[h, low:high])):
                            raise CheckError(f"{where}: {part} in layer {layer}, KV head {h} differ from golden's")


def _bits(x: NDArray[Any]) -> NDArray[Any]:
    """Bit patterns, so that -0 and 0 differ."""
    a = np.ascontiguousarray(x)
    return a.view(np.uint32) if a.dtype == np.float32 else a


@dataclass(frozen=True, kw_only=True)
class PrefillPass:
    """Cost of a pass of the whole model."""

    lanes: int
    position: int
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a shape takes on an accelerator.

    Attributes
    ----------
    phases : where the ports' regions began, bytes modulo 64 KiB; () : one behind the other.
    candidates, planes : of the screened head, 0: the full head. ternary_head : the head is ternary itself, without planes.
    kv : elements of the cache.
    decode : one token with `context` cached keys.
    prefill : the passes of a prompt, in order; empty if none was asked for.
    complete : the decode pass with every layer run, None if it was not asked for.
    trace : of the decode pass with two layers, None if it was not asked for.
    """

    model: str
    config: AcceleratorConfig
    timing: str
    phases: tuple[int, ...]
    context: int
    candidates: int
    planes: int
    kv: CacheFormat
    decode: Cost
    prefill: tuple[PrefillPass, ...]
    complete: Cost | None
    trace: Trace | None
    ternary_head: bool = False

    @property
    def tokens_per_s(self) -> float:
        """Decode rate."""
        return self.config.clock_hz / self.decode.cycles

    @property
    def ttft_s(self) -> float | None:
        """Time of the accelerator from the prompt to its first new token."""
        return sum(p.cost.cycles for p in self.prefill) / self.config.clock_hz if self.prefill else None

    @property
    def complete_error(self) -> float | None:
        """What multiplying layers says, against running them all: relative."""
        return None if self.complete is None else self.decode.cycles / self.complete.cycles - 1

    def report(self) -> dict[str, Any]:
        """As one JSON object; every figure is simulated."""
        c, d = self.config, self.decode
        seconds = d.cycles / c.clock_hz
        prompt = sum(p.lanes for p in self.prefill)
        ttft = self.ttft_s
        return {
            "model": self.model,
            "board": c.name,
            "timing": self.timing,
            "phases_kib": [x // 1024 for x in self.phases],
            "simulated": True,
            "bit_exact": True,
            "lanes": c.lanes,
            "beat_bytes": c.beat_bytes,
            "clock_hz": c.clock_hz,
            "context": self.context,
            "head": "screened" if self.candidates else "full",
            "candidates": self.candidates or None,
            "planes": self.planes or None,
            "ternary_head": self.ternary_head,
            "kv": self.kv.name,
            "hadamard": self.kv.hadamard,
            "tokens_per_s": self.tokens_per_s,
            "cycles_per_pass": d.cycles,
            "bytes_per_pass": d.beats * c.beat_bytes,
            "gb_per_s": d.beats * c.beat_bytes / seconds / 1e9,
            "share_of_beat_rate": d.beats / d.cycles,
            "stalls": d.stalls,
            "busy": {k: v / d.cycles for k, v in d.busy.items()},
            "prompt": prompt or None,
            "ttft_s": ttft,
            "prefill_tokens_per_s": prompt / ttft if ttft else None,
            "prefill": [
                {
                    "lanes": p.lanes,
                    "position": p.position,
                    "cycles": p.cost.cycles,
                    "beats": p.cost.beats,
                    "share_of_beat_rate": p.cost.beats / p.cost.cycles,
                    "stalls": p.cost.stalls,
                }
                for p in self.prefill
            ],
            "complete_cycles_per_pass": self.complete.cycles if self.complete else None,
            "complete_error": self.complete_error,
        }


def _names(program: Program) -> list[str]:
    """A name for each descriptor."""
    layers = [f"layer {i} {step}" for i in range(program.spec.layers) for step in STEPS]
    if program.spec.ternary_head:
        return ["load", *layers, "head", "end"]
    return ["load", *layers, *(["screened head"] if program.screened else []), "head", "end"]


def measure(
    name: str,
    config: AcceleratorConfig,
    timing: MemoryTiming,
    *,
    context: int,
    prompt: int = 0,
    complete: bool = False,
    trace: bool = False,
    logits: bool = True,
    candidates: int = 0,
    planes: int = 1,
    kv: CacheFormat = EIGHT,
    say: Say = lambda _: None,
    status: Status | None = None,
) -> Measurement:
    """Runs the passes that a measurement needs.

    Parameters
    ----------
    name : of `golden.shapes.SHAPES`.
    context : cached keys of the decode pass.
    prompt : tokens to prefill from an empty cache; 0: none.
    complete : run the decode pass with all layers too.
    trace : record the decode pass with two layers.
    logits : compare every logit (of the model of one layer), not only the arg-max.
    candidates : of the screened head; 0: the full head. planes : of its ternary copy.
    kv : elements of the cache.
    say : told what is being done.
    status : told how long the simulator takes to build.

    Raises
    ------
    UserError : shape, context or prompt do not fit the accelerator.
    CheckError : a result differs from golden's.
    """
    spec = shape(name, config)
    check_fits(spec, config, name, kv)
    check_positions(spec, config, name, kv, context=context, prompt=prompt)
    usable = usable_context(spec, config, kv)
    tokens = np.random.default_rng([SEED, 2]).integers(0, spec.vocab, max(prompt, 1)).tolist()
    # A cache no longer than needed: its length changes nothing but addresses.
    room = min(usable, max(context, prompt) + config.lanes)

    def machine(layers: int, cached: int, file: Path | None = None) -> Machine:
        say(f"{name}: preparing {layers} layer{'s' * (layers > 1)}")
        return Machine(
            spec,
            layers,
            config,
            timing,
            cached=cached,
            context=room,
            candidates=candidates,
            planes=planes,
            kv=kv,
            trace=file,
            status=status,
        )

    def step(m: Machine, tokens: Sequence[int], position: int, **kwargs: bool) -> Cost:
        n = len(tokens)
        head = "with" if kwargs["head"] else "without"
        say(f"{name}: simulating {n} lane{'s' * (n > 1)} at position {position}, {m.spec.layers} layers {head} head")
        return m.run(tokens, position, **kwargs)

    def whole(one: Cost, two: Cost, base: Cost) -> Cost:
        """`base`, a pass of two layers, with the rest of the layers; one and two are passes without the head."""
        return base.plus(two, spec.layers - 2).plus(one, 2 - spec.layers)

    with tempfile.TemporaryDirectory(prefix="tellme-") as folder:
        file = Path(folder) / "trace" if trace else None
        last = tokens[:1]
        with machine(1, context) as m:
            if logits:
                step(m, last, context, head=True, logits=True)
            one = step(m, last, context, head=False)
        with machine(2, context, file) as m:
            two = step(m, last, context, head=False)
            decode = whole(one, two, step(m, last, context, head=True))
            names = _names(m.program)
        recorded = None
        if file is not None:
            from tellme.sim import trace as traces

            recorded = traces.read(file, names)
    passes = chunks(config, spec.heads // spec.kv_heads, prompt, kv=kv)
    prefill = []
    if passes:
        with machine(1, 0) as m:
            ones = [step(m, tokens[at : at + n], at, head=False) for at, n in passes]
        with machine(2, 0) as m:
            for (at, n), one in zip(passes, ones, strict=True):
                base = two = step(m, tokens[at : at + n], at, head=False)
                if at + n == prompt:
                    base = step(m, tokens[at : at + n], at, head=True)
                prefill.append(PrefillPass(lanes=n, position=at, cost=whole(one, two, base)))
    everything = None
    if complete:
        with machine(spec.layers, context) as m:
            everything = step(m, last, context, head=True)
    return Measurement(
        model=name,
        config=config,
        timing=timing.name,
        phases=in_use(config, "sim").phases,
        context=context,
        candidates=candidates,
        planes=planes if candidates and not spec.ternary_head else 0,
        kv=kv,
        decode=decode,
        prefill=tuple(prefill),
        complete=everything,
        trace=recorded,
        ternary_head=spec.ternary_head,
    )


# ---- several conversations -------------------------------------------------------------------------------------------

Shape = tuple[int, ...]
"""Lanes of each conversation in a pass, most first; every lane has logits."""


def side_by_side(shape_: Shape, context: int, candidates: int = 0, tokens: Sequence[int] = ()) -> Pass:
    """A pass of conversations with `context` cached keys each.

    tokens : of the lanes; any if there are none.
    """
    n = sum(shape_)
    positions = [context + i for lanes in shape_ for i in range(lanes)]
    slots = [slot for slot, lanes in enumerate(shape_) for _ in range(lanes)]
    return Pass.of(tokens or [0] * n, positions, slots, head=(0, n), candidates=candidates)


def measure_together(
    name: str,
    config: AcceleratorConfig,
    timing: MemoryTiming,
    shapes: Sequence[Shape],
    *,
    context: int,
    candidates: int = 0,
    planes: int = 1,
    kv: CacheFormat = EIGHT,
    say: Say = lambda _: None,
    status: Status | None = None,
) -> dict[Shape, Cost]:
    """What passes of several conversations take, each run on the RTL; layers are multiplied as in `measure`.

    Parameters
    ----------
    shapes : of the passes; all with the same number of conversations.
    context : cached keys of each conversation. Others: as `measure`.

    Raises
    ------
    UserError : as `measure`, or a pass does not fit.
    CheckError : a result differs from golden's.
    """
    spec = shape(name, config)
    check_fits(spec, config, name, kv)
    usable = usable_context(spec, config, kv)
    longest = max(n for lanes in shapes for n in lanes)
    if not 0 <= context <= usable - longest:
        raise UserError(f"context must be from 0 to {usable - longest} for {name} on {config.name!r}, not {context}")
    tokens = np.random.default_rng([SEED, 2]).integers(0, spec.vocab, config.lanes).tolist()
    room = min(usable, context + config.lanes)
    costs: dict[int, list[tuple[Cost, Cost]]] = {}
    for layers in (1, 2):
        say(f"{name}: preparing {layers} layer{'s' * (layers > 1)}")
        with Machine(
            spec, layers, config, timing, cached=context, context=room, slots=len(shapes[0]), candidates=candidates,
            planes=planes, kv=kv, status=status,
        ) as m:  # fmt: skip
            for lanes in shapes:
                say(f"{name}: simulating {'+'.join(map(str, lanes))} lanes at position {context}, {layers} layers")
                given = side_by_side(lanes, context, candidates, tokens[: sum(lanes)])
                bare = m.run_pass(replace(given, head=(0, 0), candidates=0))
                costs.setdefault(layers, []).append((bare, m.run_pass(given) if layers == 2 else bare))
    return {
        lanes: whole.plus(two, spec.layers - 2).plus(one, 2 - spec.layers)
        for lanes, (one, _), (two, whole) in zip(shapes, costs[1], costs[2], strict=True)
    }
