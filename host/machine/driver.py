"""The driver: opens an accelerator behind a device, loads a model, runs passes. One code for boards and simulations."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from tellme.golden import layout, registers
from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import BUSY, STALLS, ErrorCode
from tellme.host.errors import DeviceError, UserError
from tellme.host.image.model import Model
from tellme.host.machine.device import Device
from tellme.host.machine.passes import Backend, Cache, Pass, PassResult
from tellme.host.machine.program import Program

RESET_S = 10.0
"""Wall clock that a soft reset may take, seconds, and never more than a pass: the time memory has for what it owes."""

ERROR_WORDS: dict[ErrorCode, str] = {
    ErrorCode.NONE: "no error",
    ErrorCode.READ_WINDOW: "a read outside the buffer's window was refused, at beat {address}",
    ErrorCode.WRITE_WINDOW: "a write outside the buffer's window was refused, at beat {address}",
    ErrorCode.READ_SLVERR: "memory answered a read with SLVERR, at beat {address}",
    ErrorCode.READ_DECERR: "memory answered a read with DECERR (no such address), at beat {address}",
    ErrorCode.WRITE_SLVERR: "memory answered a write with SLVERR, at beat {address}",
    ErrorCode.WRITE_DECERR: "memory answered a write with DECERR (no such address), at beat {address}",
    ErrorCode.TIMEOUT: "no progress for the time set in the timeout register, at descriptor {address}",
    ErrorCode.BAD_DESCRIPTOR: "descriptor {address} of the program cannot be executed",
    ErrorCode.BAD_WEIGHT: "a weight byte above 242 was read, the image in memory is damaged, at descriptor {address}",
    ErrorCode.BAD_LANES: "the lane, head, position or slot registers do not make a pass",
}
"""What each error code means; `{address}` is the error_address register."""


def _pack(name: str, value: int | None = None, /, **fields: int) -> int:
    try:
        return registers.pack(name, value, **fields)
    except ValueError as e:
        raise UserError(str(e)) from None


class Driver(Backend):
    """An accelerator with a model loaded.

    Parameters
    ----------
    device : where the accelerator is.
    config : what was built; checked against the device's registers.
    timeout_s : wall clock that a pass may take, seconds.
    timeout_cycles : cycles without progress after which the accelerator itself gives up, 0: never.

    Raises
    ------
    UserError : a time-out that the register cannot hold.
    DeviceError : identity, version, geometry or build are not what is expected, or a port's region is where the
        accelerator does not reach.
    """

    def __init__(
        self,
        device: Device,
        config: AcceleratorConfig,
        *,
        timeout_s: float = 10.0,
        timeout_cycles: int = 1 << 20,
    ):
        _pack("timeout", timeout_cycles)
        self.device = device
        self.config = config
        self.timeout_s = timeout_s
        self.timeout_cycles = timeout_cycles
        self.vocab = self.context = self.slots = 0
        self.group = 1
        self._model: Model | None = None
        self._program: Program | None = None
        expected = {
            "identity": registers.IDENTITY,
            "version": registers.VERSION,
            "geometry": registers.geometry(config),
            "build": registers.build_hash(config),
        }
        for name, value in expected.items():
            found = self.read(name)
            if found != value:
                raise DeviceError(
                    f"the accelerator's {name} register is {found:#010x}, board {config.name!r} needs {value:#010x}; "
                    "load the bitstream (or build the simulation) that belongs to this configuration and version"
                )
        ports, width = len(device.memory), device.memory[0].shape[1]
        if ports != config.ports or width != config.port_bytes:
            raise DeviceError(
                f"the device's buffer has {ports} regions of {width}-byte beats, board {config.name!r} needs "
                f"{config.ports} of {config.port_bytes}"
            )
        self._check_regions()

    def _check_regions(self) -> None:
        """Refuses regions that the accelerator's masters would take for others."""
        length = self.device.memory[0].nbytes
        regions = sorted((base, port) for port, base in enumerate(self.device.port_bases))
        for base, port in regions:
            if base < 0 or base % registers.BASE_ALIGNMENT:
                raise DeviceError(
                    f"the region of port {port} begins at {base:#x}, no multiple of {registers.BASE_ALIGNMENT}; "
                    "the device must hand out buffers of whole pages"
                )
            if base + length > 1 << registers.PORT_ADDRESS_BITS:
                raise DeviceError(
                    f"the region of port {port} ends at {base + length:#x}, the accelerator's addresses have "
                    f"{registers.PORT_ADDRESS_BITS} bits"
                )
        for (base, port), (following, other) in itertools.pairwise(regions):
            if base + length > following:
                raise DeviceError(
                    f"the regions of ports {port} and {other} overlap: {length:,} bytes from {base:#x} and {following:#x}"
                )

    # ---- registers ---------------------------------------------------------------------------------------------------

    def read(self, name: str, index: int = 0) -> int:
        """A register by name."""
        return self.device.read(registers.offset(name, index))

    def read_fields(self, name: str, index: int = 0) -> dict[str, int]:
        """The fields of a register by name."""
        return registers.unpack(name, self.read(name, index))

    def write(self, name: str, value: int | None = None, index: int = 0, /, **fields: int) -> None:
        """Sets a register by name: `value`, or the fields of one that has them (the others become 0).

        Raises
        ------
        UserError : a value that no accelerator's register holds; names the register and the limit.
        """
        self.device.write(registers.offset(name, index), _pack(name, value, **fields))

    def reset(self) -> None:
        """Soft reset: stops a pass, forgets errors; the loaded model stays.

        Raises
        ------
        DeviceError : the accelerator does not become idle; says what memory owes it.
        """
        if stuck := self._reset():
            raise DeviceError(stuck)

    def _reset(self) -> str:
        """Soft reset; empty, or in words that it did not help, and what to do."""
        self.write("control", soft_reset=1)
        limit = min(RESET_S, self.timeout_s)
        deadline = time.monotonic() + limit
        while self.read_fields("control")["soft_reset"] or self.read_fields("status")["busy"]:
            if time.monotonic() > deadline:
                lost = self._owed()
                why = f" because memory never answered {lost}" if lost else ""
                return f"the accelerator is still busy {limit:g} s after a soft reset{why}; load the bitstream again"
        return ""

    def _owed(self) -> str:
        """What memory owes the ports, in words; empty if nothing."""
        parts = []
        for port in range(self.config.ports):
            owed = self.read_fields("owed", port)
            counts = ((owed["reads"], "read burst"), (owed["writes"], "write"))
            words = [f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n]
            if words:
                parts.append(f"{' and '.join(words)} of port {port}")
        return ", ".join(parts)

    # ---- models ------------------------------------------------------------------------------------------------------

    def load(self, model: Model, program: Program) -> None:
        """Puts a model into the buffer and points the accelerator at it.

        Parameters
        ----------
        model : an open image.
        program : the model's, compiled for this accelerator (`compile_program`).

        Raises
        ------
        UserError : image or program are another accelerator's, or do not fit the buffer.
        DeviceError : a pass is running that no reset ends.
        """
        model.image.require(self.config)
        # The clock is no part of a program: a board's is that of its bitstream.
        if replace(program.config, clock_hz=self.config.clock_hz) != self.config:
            raise UserError(
                f"{model.name}: the program was compiled for {program.config.name!r}, this is {self.config.name!r}; "
                "compile it again"
            )
        beats = len(self.device.memory[0])
        if program.window_beats > beats:
            raise UserError(
                f"{model.name}: needs {program.window_beats * self.config.beat_bytes:,} bytes of buffer with "
                f"{program.slots} slot(s) of {program.context} positions, the device has {beats * self.config.beat_bytes:,}; "
                "take a smaller context or fewer slots"
            )
        if self.read_fields("status")["busy"]:
            self.reset()  # a pass that another host began and left; registers take no writes while it runs
        self._put(program.image_address, model.image.data)
        self.put(program.rope_address, program.rope_table)
        width = self.config.beat_bytes
        code = program.code + bytes(-len(program.code) % width)
        self.put(program.program_address, np.frombuffer(code, np.uint8).reshape(-1, width))
        self.device.flush(0, program.kv_address)
        self.point(self.device.port_bases, program.window_beats)
        self.write("program_address", program.program_address)
        self.write("program_length", program.length)
        self.write("context", program.context)
        self.write("slots", program.slots)
        self.write("timeout", self.timeout_cycles)
        self.write("port_lead", free=0)
        self.write("irq_enable", done=1)
        self._model, self._program = model, program
        self.can_screen = program.screened
        self.spec, self.kv = program.spec, program.kv.cache
        self.vocab, self.context, self.slots = model.spec.vocab, program.context, program.slots
        self.group = model.spec.heads // model.spec.kv_heads

    def put(self, address: int, beats: layout.Beats) -> None:
        """Writes uint8[n, beat_bytes] to the buffer, from a beat address on; the device must be told by `flush`."""
        self._put(address, layout.stripe(beats, self.config))

    def get(self, address: int, beats: int) -> layout.Beats:
        """Beats [address, address + beats) of the buffer, uint8[beats, beat_bytes]; after `invalidate`."""
        return layout.unstripe([region[address : address + beats] for region in self.device.memory])

    def point(self, bases: Sequence[int], window_beats: int) -> None:
        """Tells the accelerator where its ports' regions are, and how many beats of them it may touch.

        Raises
        ------
        UserError : a base that is no page's, or is beyond the ports' addresses; or too many beats.
        """
        for port, base in enumerate(bases):
            if base % registers.BASE_ALIGNMENT:
                raise UserError(
                    f"the region of port {port} begins at {base:#x}, no multiple of {registers.BASE_ALIGNMENT}"
                )
            self.write("base_low", None, port, page=base % (1 << 32) // registers.BASE_ALIGNMENT)
            self.write("base_high", None, port, high=base >> 32)
        self.write("window_beats", window_beats)

    def _put(self, address: int, parts: layout.Beats) -> None:
        """Writes uint8[ports, n, port_bytes], each port's part to its region."""
        for region, part in zip(self.device.memory, parts, strict=True):
            region[address : address + len(part)] = part

    # ---- passes ------------------------------------------------------------------------------------------------------

    def _pass(self, given: Pass) -> PassResult:
        if self._program is None or self._model is None:
            raise UserError("no model is loaded; call load() first")
        program = self._program
        self.put(program.x_address, layout.pack_floats(self._model.embed(given.tokens), self.config))
        self.device.flush(program.x_address, given.lanes * program.x_beats)
        for lane, (position, slot) in enumerate(zip(given.positions, given.slots, strict=True)):
            self.write("position", position, lane)
            self.write("slot", slot, lane)
        first, count = given.head
        self.write("lanes", given.lanes)
        self.write("head_lanes", first=first, count=count)
        self.write("write_logits", every=int(given.write_logits))
        wanted = given.candidates if count else 0
        self.write("candidates", wanted)
        self.execute()
        logits = candidates = bound = None
        stride = program.logits_stride
        begin, beats = program.logits_address + first * stride, count * stride
        if wanted:
            bound = tuple(
                np.array([self.read("bound", i) for i in range(first, first + count)], np.uint32).view(np.float32)
            )
        if given.write_logits and wanted:
            self.device.invalidate(begin, beats)
            chosen = [layout.unpack_candidates(self.get(begin + i * stride, stride), wanted) for i in range(count)]
            candidates, logits = np.stack([c for c, _ in chosen]), np.stack([v for _, v in chosen])
        elif given.write_logits:
            self.device.invalidate(begin, beats)
            logits = self.get(begin, beats).view("<f4").reshape(count, -1)[:, : self.vocab].astype(np.float32)
        lanes = range(first, first + count)
        values = np.array([self.read("best_value", i) for i in lanes], np.uint32).view(np.float32)
        return PassResult(
            head_first=first,
            head_count=count,
            best_index=tuple(self.read("best_index", i) for i in lanes),
            best_value=tuple(values),
            logits=logits,
            candidates=candidates,
            bound=bound,
            cycles=self.read("cycles"),
            beats=self.read("beats"),
            writes=self.read("writes"),
            stalls={name: self.read("stall", i) for i, name in enumerate(STALLS)},
            busy={name: self.read("busy", i) for i, name in enumerate(BUSY)},
        )

    # ---- the cache ---------------------------------------------------------------------------------------------------

    def _runs(self, slot: int) -> Iterator[tuple[int, int, int]]:
        """(layer, KV head, first beat of its blocks in a slot)."""
        program = self._loaded()
        kv = program.kv
        for layer in range(program.spec.layers):
            for head in range(program.spec.kv_heads):
                start = program.kv_address + layer * program.slots * kv.slot_stride
                yield layer, head, start + kv.block(slot, head, 0)

    def _loaded(self) -> Program:
        if self._program is None:
            raise UserError("no model is loaded; call load() first")
        return self._program

    def read_cache(self, slot: int, positions: int) -> Cache:
        """As `Backend.read_cache`."""
        program = self._loaded()
        self._check_cache(slot, positions)
        kv, s, block = program.kv, program.spec, self.config.key_block
        blocks = ceil_div(positions, block)
        k = np.zeros((2, s.layers, s.kv_heads, blocks * block, s.head_dim), np.int8)
        scales = np.zeros((2, s.layers, s.kv_heads, blocks * block), np.float32)
        for layer, head, start in self._runs(slot):
            beats = blocks * kv.block_stride
            self.device.invalidate(start, beats)
            found = self.get(start, beats)
            for b in range(blocks):
                at = slice(b * block, (b + 1) * block)
                part = found[b * kv.block_stride : (b + 1) * kv.block_stride]
                k[0, layer, head, at], scales[0, layer, head, at], k[1, layer, head, at], scales[1, layer, head, at] = (
                    kv.unpack_block(part)
                )
        n = slice(positions)
        return Cache(k[0, :, :, n], scales[0, :, :, n], k[1, :, :, n], scales[1, :, :, n])

    def write_cache(self, slot: int, cache: Cache) -> None:
        """As `Backend.write_cache`."""
        program = self._loaded()
        self._check_cache(slot, cache.positions)
        cache.check(program.spec, self.kv)
        kv, block = program.kv, self.config.key_block
        for layer, head, start in self._runs(slot):
            parts = []
            for b in range(ceil_div(cache.positions, block)):
                at = slice(b * block, (b + 1) * block)
                mine = (a[layer, head, at] for a in (cache.k, cache.k_scales, cache.v, cache.v_scales))
                parts.append(kv.pack_block(*mine))
            if parts:
                beats = np.concatenate(parts)
                self.put(start, beats)
                self.device.flush(start, len(beats))

    def copy_cache(self, source: int, target: int, positions: int) -> None:
        """As `Backend.copy_cache`: whole blocks, as they lie."""
        kv = self._loaded().kv
        self._check_cache(source, positions)
        self._check_cache(target, positions)
        beats = ceil_div(positions, self.config.key_block) * kv.block_stride
        if not beats:
            return
        runs = zip(self._runs(source), self._runs(target), strict=True)
        for (_, _, a), (_, _, b) in runs:
            self.device.invalidate(a, beats)
            for region in self.device.memory:
                region[b : b + beats] = region[a : a + beats]
            self.device.flush(b, beats)

    def execute(self) -> None:
        """Starts a pass with what the registers hold, and waits for its end.

        Raises
        ------
        DeviceError : it stopped with an error, or did not end.
        """
        self.write("control", start=1)
        try:
            self.meanwhile()
            in_time = self._wait()
        except KeyboardInterrupt:
            # Nobody will read this pass; the next one may start at once.
            with contextlib.suppress(Exception):
                self.reset()
            raise
        word = self.read("status")
        status = registers.unpack("status", word)
        error = status["error"]
        if error:
            address = self.read("error_address")
            try:
                words = ERROR_WORDS[ErrorCode(error)].format(address=address)
            except ValueError:
                words = f"unknown error code, error address {address}"
            self._give_up(f"the accelerator stopped the pass with error {error}: {words}")
        if not in_time or not status["done"]:
            self._give_up(f"{self._overdue()} (status {word:#x})")

    def _wait(self) -> bool:
        """Waits for the end of the pass; False if it took too long."""
        return self.device.wait_done(self.timeout_s)

    def _overdue(self) -> str:
        """What to say of a pass that took too long."""
        return f"the accelerator did not finish a pass in {self.timeout_s:g} s"

    def _give_up(self, why: str) -> NoReturn:
        """Makes the accelerator ready for the next pass, and says why this one failed; and whether a next one can be."""
        stuck = self._reset()
        raise DeviceError(f"{why}; {stuck}" if stuck else why)

    def close(self) -> None:
        """Closes the device."""
        self.device.close()
