"""Passes recorded for a test bench without a host: what the driver writes, and what golden says comes of it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tellme.golden import layout, registers
from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import BASE_ALIGNMENT
from tellme.golden.screen import MULTIPLE, problem, quantise
from tellme.golden.shapes import BONSAI_17B
from tellme.golden.spec import ModelError, ModelSpec
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.checkpoints.synthetic import random_weights
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import Cache, Pass, PassResult, lanes_that_fit
from tellme.host.machine.program import compile_program, usable_context
from tellme.host.text.tokenizer import Files

if TYPE_CHECKING:
    from tellme.sim.standalone.bench import Recording, Step

SEED = 19
_SLOTS = 2
_BASE = 0x8_0000_0000
"""Of the first port's region: above 4 GiB, so that addresses that are cut are found."""
_APART = 0x1_1000_0000
"""Between the regions of two ports: in both halves of an address."""
_WAIT = 500_000
"""Cycles that a pass may take: ten times what they take."""


def small_model(config: AcceleratorConfig) -> ModelSpec:
    """A shape that this accelerator holds, which has everything: groups of queries, several tiles where they fit, sub-norms."""
    for layers, hidden, ffn, (heads, kv_heads) in itertools.product(
        (2, 1), (128, 96, 64, 32), (384, 160, 64, 32), ((4, 2), (2, 1), (1, 1))
    ):
        spec = ModelSpec(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=32,
            ffn=ffn,
            vocab=160,
            activation=BONSAI_17B.activation,
            qk_norm=True,
            group_scales=config.packing.group > 0,
            max_context=config.key_block + 64,
        )
        try:
            spec.check_fits(config)
        except ModelError:
            continue
        return replace(spec, max_context=usable_context(spec, config))
    raise AssertionError(f"{config.name} holds no model at all")


class _Recorder:
    """A device that keeps what is done to it, and answers what an accelerator would that has just been built."""

    def __init__(self, config: AcceleratorConfig, beats: int) -> None:
        page = BASE_ALIGNMENT // config.port_bytes
        self.beats = ceil_div(beats, page) * page
        self.memory = np.zeros((config.ports, self.beats, config.port_bytes), np.uint8)
        self.port_bases = tuple(_BASE + i * _APART for i in range(config.ports))
        self.loads: list[dict[int, NDArray[np.uint8]]] = []
        self.results: list[dict[int, NDArray[np.uint8]]] = []
        self.steps: list[Step] = []
        self._seen = self.memory.copy()
        self._answers = {
            registers.offset("identity"): registers.IDENTITY,
            registers.offset("version"): registers.VERSION,
            registers.offset("build"): registers.build_hash(config),
            registers.offset("geometry"): registers.geometry(config),
            registers.offset("status"): registers.pack("status", done=1),
        }

    def changed(self) -> dict[int, NDArray[np.uint8]]:
        """Beats that differ from what they were at the last call, by address; all ports' parts, the lowest first."""
        where = np.flatnonzero((self.memory != self._seen).any(axis=(0, 2)))
        self._seen = self.memory.copy()
        return {int(b): self.memory[:, b].reshape(-1).copy() for b in where}

    def _step(self, kind: str, address: int, value: int) -> None:
        from tellme.sim.standalone.bench import Kind, Step

        self.steps.append(Step(Kind[kind], address, value))

    def expect(self, name: str, value: int, index: int = 0) -> None:
        self._step("EXPECT", registers.offset(name, index), value)

    def finish(self) -> None:
        """What memory holds now is what the pass must have made of it."""
        self._step("COMPARE", 0, len(self.results))
        self.results.append(self.changed())

    def read(self, offset: int) -> int:
        return self._answers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if offset == registers.offset("control"):
            self._step("LOAD", 0, len(self.loads))
            self.loads.append(self.changed())
        self._step("WRITE", offset, value)

    def flush(self, start: int, beats: int) -> None:
        pass

    def invalidate(self, start: int, beats: int) -> None:
        pass

    def wait_done(self, timeout_s: float) -> bool:
        self._step("WAIT", 0, _WAIT)
        return True

    def close(self) -> None:
        pass

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _passes(config: AcceleratorConfig, spec: ModelSpec, cached: int, screened: bool) -> Iterator[Pass]:
    """A prompt behind cached keys, one at the beginning of another slot, and a token of both, with every logit."""
    rng = np.random.default_rng([SEED, 1])
    group = spec.heads // spec.kv_heads
    n = lanes_that_fit(config, group, cached, min(5, spec.max_context - cached - 2))

    def tokens(count: int) -> list[int]:
        return [int(t) for t in rng.integers(0, spec.vocab, count)]

    yield Pass.of(tokens(n), range(cached, cached + n), head=(n - 1, 1), candidates=MULTIPLE if screened else 0)
    m = min(3, config.lanes)
    yield Pass.of(tokens(m), range(m), [1] * m, head=(0, m), write_logits=True)
    both = [(cached + n, 0), (m, 1)][: config.lanes]
    positions, slots = zip(*both, strict=True)
    yield Pass.of(tokens(len(both)), positions, slots, head=(0, len(both)), write_logits=True)


def _apply(driver: Driver, golden: GoldenBackend, given: Pass, result: PassResult) -> None:
    """Brings into memory what the pass writes: keys and values, and logits."""
    program = driver._loaded()
    for first, last in given.groups:
        slot = given.slots[first]
        driver.write_cache(slot, golden.read_cache(slot, given.positions[last] + 1))
    if result.logits is None:
        return
    for i, logits in enumerate(result.logits):
        at = program.logits_address + (given.head[0] + i) * program.logits_stride
        driver.put(at, layout.pack_floats(logits, driver.config))


def record(config: AcceleratorConfig) -> Recording:
    """Three passes of a small random model on an accelerator, one of them with the screened head where it fits."""
    from tellme.sim.standalone.bench import Recording

    spec = small_model(config)
    screened = not problem(MULTIPLE, 1, spec.vocab, config.screen_entries)
    weights = random_weights(spec, SEED)
    if screened:
        weights = replace(weights, screen=quantise(*weights.head_rows, 1))
    golden = GoldenBackend(weights, config, slots=_SLOTS, context=spec.max_context)
    with tempfile.TemporaryDirectory(prefix="tellme-") as folder:
        path = Path(folder) / "model.tlm"
        convert(
            Checkpoint(name="recorded", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, config
        )
        with Model.open(path, config, verify=False) as model:
            program = compile_program(model, config, slots=_SLOTS, context=spec.max_context)
            device = _Recorder(config, program.window_beats)
            driver = Driver(device, config)
            for name in ("identity", "version", "build", "geometry"):
                device.expect(name, device.read(registers.offset(name)))
            driver.load(model, program)
            cached = max(0, min(config.key_block + 3, spec.max_context - 8))
            rng = np.random.default_rng([SEED, 2])
            shape = (spec.layers, spec.kv_heads, cached, spec.head_dim)
            k, v = (rng.integers(-127, 127, shape, np.int8, endpoint=True) for _ in range(2))
            k_scales, v_scales = rng.uniform(0.01, 0.03, (2, *shape[:3])).astype(np.float32)
            for machine in (driver, golden):
                machine.write_cache(0, Cache(k, k_scales, v, v_scales))
            for given in _passes(config, spec, cached, screened):
                driver.run_pass(given)
                result = golden.run_pass(given)
                device.expect("status", device.read(registers.offset("status")))
                for i, index in enumerate(result.best_index):
                    lane = given.head[0] + i
                    device.expect("best_index", index, lane)
                    device.expect("best_value", int(np.float32(result.best_value[i]).view(np.uint32)), lane)
                    if result.bound is not None:
                        device.expect("bound", int(np.float32(result.bound[i]).view(np.uint32)), lane)
                _apply(driver, golden, given, result)
                device.finish()
    return Recording(
        title=f"{len(device.loads)} passes of a random model with {spec.layers} layers of {spec.hidden} features",
        steps=tuple(device.steps),
        loads=tuple(device.loads),
        results=tuple(device.results),
        bases=device.port_bases,
        beats=device.beats,
    )
