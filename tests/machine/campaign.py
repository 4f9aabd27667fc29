"""Faults put into passes of the simulated machine, and what becomes of them: detected, harmless, data, hung or wrong.

`Campaign.inject` runs one of a fixed set of passes (prefill, decode, several conversations, several tokens of one conversation with logits of each) with one fault in
it, then a pass that must be exact. Everything random comes from a seed and the injection's number.

- detected: the host is told, with a code that the fault may have;
- harmless: every logit is what it is without a fault;
- data: other logits and no error, where the fault is in bytes that carry no redundancy (any byte below 243 is a weight, any bits are keys, values, scales, gains,
  inputs): what memory hands out is taken, docs/security.md; or the interconnect broke AXI4;
- wrong: other logits and no error after any other fault, or a byte written outside what the pass may write;
- hung: the pass or the reset does not end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tellme.golden import registers
from tellme.golden.check import problem
from tellme.golden.config import TINY
from tellme.golden.program import DESCRIPTOR_BYTES
from tellme.golden.registers import REGISTERS, ErrorCode
from tellme.host.errors import DeviceError
from tellme.host.image.model import Model
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Pass, PassResult
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.sim.timing import MemoryTiming, timing

SLOTS = 4
HELD = (7, 33, 2)
"""Positions of each slot that are filled before; the last slot is empty."""
TIMEOUT = 20_000
"""Cycles without progress; the longest wait of this machine is some thousands."""
LONGEST = 400_000
"""Cycles in which any pass here ends."""
CANDIDATES = 64
"""Rows that a screened head scores exactly."""

N = TINY.lanes
# None attends to keys that one before it in this order overwrites: golden runs them once, the machine in any order from the same memory.
PASSES: dict[str, Pass] = {
    "prefill": Pass.of([0, 432, 433, 260][:N], range(N), [3] * N, head=(0, N), write_logits=True),
    "decode": Pass.of([17], [33], [1], head=(0, 1), write_logits=True),
    "batched": Pass.of([5, 6, 7, 8][:N], [7, 33, 34, 2][:N], [0, 1, 1, 2][:N], head=(0, N), write_logits=True),
    "speculative": Pass.of([9, 10, 11, 12][:N], range(31, 31 + N), [1] * N, head=(0, N), write_logits=True),
}
BUS = {ErrorCode.READ_SLVERR, ErrorCode.READ_DECERR, ErrorCode.WRITE_SLVERR, ErrorCode.WRITE_DECERR}


@dataclass(frozen=True)
class Injection:
    """What was done and what became of it; `code` is the error's, if there was one."""

    kind: str
    passed: str
    outcome: str
    code: int = 0
    detail: str = ""


class Campaign:
    """A simulated machine with the demo model, three conversations begun, and faults for it.

    Parameters
    ----------
    model : open image of the demo model for the tiny preset.
    seed : of the faults.
    error_rate : of every burst in memory: 0, or one that makes a fault in many passes. Such a machine takes the kind "bus error" alone.
    screened : passes take candidates of the head, which the image must have planes for.
    random_start : registers and memories hold random bits before the first reset.
    odd : an answer that AXI4 does not allow (sim/timing.py); of the passes there is "prefill" alone, and no conversation.
    """

    def __init__(
        self,
        model: Model,
        seed: int,
        *,
        error_rate: float = 0.0,
        screened: bool = False,
        random_start: bool = False,
        odd: tuple[str, int] | None = None,
    ):
        self.seed, self.model = seed, model
        self.passes = {n: replace(p, candidates=CANDIDATES if screened else 0) for n, p in PASSES.items()}
        self.program = compile_program(model, TINY, slots=SLOTS)
        self.error_rate = error_rate
        how = timing("kv260", error_rate=error_rate, seed=seed)
        if odd:
            how = timing("kv260-ideal", odd=odd)
            self.passes = {"prefill": self.passes["prefill"]}
        start = random.Random(f"{seed} start").getrandbits(31) if random_start else None
        self.machine = SimulatedAccelerator(model, self.program, timing=how, random_start=start)
        self.machine.write("timeout", TIMEOUT)
        self.golden = GoldenBackend(model.weights(), TINY, slots=SLOTS)
        if not odd:
            self._fill()
        self.before = self.machine.device.memory.copy()
        self.wanted = {name: self._expected(p) for name, p in self.passes.items()}

    def _fill(self) -> None:
        """The three conversations, in golden and in memory: as the machine writes them, or by a machine without faults."""
        passes = [
            Pass.of([(7 * p + 11 * slot) % 1000 + 2 for p in part], part, [slot] * len(part))
            for slot, held in enumerate(HELD)
            for part in (range(i, min(i + N, held)) for i in range(0, held, N))
        ]
        for p in passes:
            self.golden.run_pass(p)
        if not self.error_rate:
            for p in passes:
                self.machine.run_pass(p)
            return
        with SimulatedAccelerator(self.model, self.program, timing=timing("ideal")) as clean:
            for p in passes:
                clean.run_pass(p)
            self.machine.device.memory[:] = clean.device.memory

    def _expected(self, p: Pass) -> PassResult:
        result = self.golden.run_pass(p)
        assert result.logits is not None and (result.candidates is None) == (p.candidates == 0)
        return result

    def close(self) -> None:
        """Ends the simulation."""
        self.machine.close()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- passes ------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Memory and registers as they were before the injection."""
        m, p = self.machine, self.program
        m.write("irq_enable", done=1)
        m.device.memory[:] = self.before
        m.point(m.device.port_bases, p.window_beats)
        for name, value in (
            ("program_address", p.program_address), ("program_length", p.length), ("context", p.context), ("slots", p.slots), ("timeout", TIMEOUT),
        ):  # fmt: skip
            m.write(name, value)

    def same(self, name: str, result: PassResult) -> bool:
        """Whether every logit, arg-max, candidate and bound is golden's."""
        want = self.wanted[name]

        def bits(x: object) -> bytes:
            return b"" if x is None else np.asarray(x).tobytes()

        return result.best_index == want.best_index and all(
            bits(getattr(result, n)) == bits(getattr(want, n)) for n in ("logits", "best_value", "candidates", "bound")
        )

    def misplaced(self, text: str, within: bool) -> bool:
        """Whether an error names what there is not: a descriptor behind the program's memory, or, if no address was changed, a beat
        behind the window."""
        descriptor, beat = re.search(r"descriptor (\d+)", text), re.search(r"beat (\d+)", text)
        return bool(descriptor and int(descriptor[1]) > TINY.max_descriptors) or bool(
            within and beat and int(beat[1]) >= self.program.window_beats
        )

    def stray(self, changed: NDArray[np.uint8]) -> bool:
        """Whether a byte of image, program or table is not what it was before the pass (`changed`: memory as the fault left it)."""
        end = self.program.logits_address
        skip = slice(self.program.x_address, self.program.x_address + N * self.program.x_beats)
        now, then = self.machine.device.memory[:, :end].copy(), changed[:, :end].copy()
        now[:, skip] = then[:, skip] = 0
        return not np.array_equal(now, then)

    def attempt(
        self,
        name: str,
        run: Callable[[], PassResult],
        allowed: set[ErrorCode],
        *,
        data: bool = False,
        within: bool = True,
        kind: str,
    ) -> Injection:
        """Runs a pass with a fault in it, and judges. `within`: the fault leaves the program's addresses as they are."""
        changed = self.machine.device.memory.copy()
        try:
            result = run()
        except DeviceError as e:
            text = str(e)
            found = re.search(r"stopped the pass with error (\d+)", text)
            if "still busy" in text or found is None:
                return Injection(kind, name, "hung", detail=text)
            code = int(found[1])
            bad = (
                code not in {int(c) for c in allowed}
                or (within and self.stray(changed))
                or self.misplaced(text, within)
            )
            return Injection(kind, name, "wrong" if bad else "detected", code, text if bad else "")
        if within and self.stray(changed):
            return Injection(kind, name, "wrong", detail="a byte outside caches and logits was written")
        if self.same(name, result):
            return Injection(kind, name, "harmless")
        return Injection(kind, name, "data" if data else "wrong", detail="" if data else "other logits, no error")

    def raw(self, name: str, given: Pass, change: Callable[[], None]) -> PassResult:
        """A pass whose registers are changed behind the host's back, between being set and the start."""
        machine = self.machine
        execute = machine.execute

        def late() -> None:
            change()
            execute()

        machine.execute = late  # type: ignore[method-assign]
        try:
            return machine._pass(given)
        finally:
            machine.execute = execute  # type: ignore[method-assign]

    def inject(self, number: int) -> tuple[Injection, bool]:
        """The `number`-th injection, and whether the pass behind it was exact."""
        rng = random.Random(f"{self.seed} {number} {self.error_rate}")
        kinds = [k for k in KINDS if (k == "bus error") == bool(self.error_rate)]
        kind = kinds[number % len(kinds)]
        name = rng.choice(list(PASSES))
        self.restore()
        injection = KINDS[kind](self, rng, name)
        if self.error_rate:
            return injection, True  # what follows may be hit, too: it is an injection of its own
        self.restore()
        after = rng.choice(list(PASSES))
        idle = self.machine.read("owed") == 0 and not self.machine.read_fields("status")["busy"]
        try:
            exact = self.same(after, self.machine.run_pass(self.passes[after]))
        except DeviceError:
            exact = False
        return injection, exact and idle

    def interrupted(self, kind: str, name: str, stop: Callable[[], bool]) -> Injection:
        """A pass that `stop` ends from outside, if it says so; then nothing may be told of it, and nothing stray be written."""
        m = self.machine
        wait, changed, stopped = m._wait, m.device.memory.copy(), False

        def waiting() -> bool:
            nonlocal stopped
            stopped = stop()
            return stopped or wait()

        m._wait = waiting  # type: ignore[method-assign]
        detail = ""
        try:
            outcome = "harmless" if self.same(name, m.run_pass(self.passes[name])) else "wrong"
        except DeviceError as e:
            outcome, detail = ("detected", "") if stopped and "still busy" not in str(e) else ("hung", str(e))
        finally:
            m._wait = wait  # type: ignore[method-assign]
        fields = m.read_fields("status")
        if stopped and (fields["error"] or fields["done"] or self.stray(changed)):
            outcome = "wrong"
        return Injection(kind, name, outcome, detail=detail)


# ---- faults ----------------------------------------------------------------------------------------------------------


def flip(region: NDArray[np.uint8], rng: random.Random, low: int, high: int, bits: int) -> None:
    """Flips random bits of beats [low, high)."""
    for _ in range(bits):
        region[rng.randrange(region.shape[0]), rng.randrange(low, high), rng.randrange(region.shape[2])] ^= np.uint8(
            1 << rng.randrange(8)
        )


def bus_error(c: Campaign, rng: random.Random, name: str) -> Injection:
    return c.attempt(name, lambda: c.machine.run_pass(c.passes[name]), BUS, kind="bus error")


def _reset_again(c: Campaign, again: int | None) -> bool:
    """A soft reset, and perhaps another while the first is under way."""
    m = c.machine
    m.write("control", soft_reset=1)
    if again is not None:
        m.device.run(again)
        m.write("control", soft_reset=1)
    m.device.run(2)
    m.reset()
    return True


def soft_reset(c: Campaign, rng: random.Random, name: str) -> Injection:
    """In any cycle of a pass, or shortly before or behind it; once or twice."""
    at, again = int(10 ** rng.uniform(0, 4.5)), rng.choice((None, 0, 1, 2, 3, rng.randrange(200)))
    return c.interrupted("soft reset", name, lambda: not c.machine.device.run(at) and _reset_again(c, again))


def reset_of_writes(c: Campaign, rng: random.Random, name: str) -> Injection:
    """A soft reset at a moment when memory owes the answers of writes: the first such moment behind a random cycle."""
    at, again = int(10 ** rng.uniform(2, 4)), rng.choice((None, 0, 1))
    m = c.machine

    def stop() -> bool:
        if m.device.run(at):
            return False
        for _ in range(3000):
            if any(m.read_fields("owed", port)["writes"] for port in range(TINY.ports)):
                return _reset_again(c, again)
            if m.device.run(1):
                break
        return False

    return c.interrupted("soft reset, writes owed", name, stop)


def hard_reset(c: Campaign, rng: random.Random, name: str) -> Injection:
    """Accelerator and memory are reset together in any cycle of a pass, bursts half done: what a loader does with a running design."""
    m, at, cycles = c.machine, int(10 ** rng.uniform(0, 4.5)), rng.choice((1, 2, 8, 40))

    def stop() -> bool:
        if m.device.run(at):
            return False
        m.device.reset(cycles)  # type: ignore[attr-defined]
        return True

    return c.interrupted("hardware reset", name, stop)


def short_time_out(c: Campaign, rng: random.Random, name: str) -> Injection:
    c.machine.write("timeout", int(10 ** rng.uniform(0, 3.5)))
    return c.attempt(name, lambda: c.machine.run_pass(c.passes[name]), {ErrorCode.TIMEOUT}, kind="short time-out")


def descriptor_bits(c: Campaign, rng: random.Random, name: str) -> Injection:
    p = c.program
    beats = -(-p.length * DESCRIPTOR_BYTES // TINY.beat_bytes)
    flip(c.machine.device.memory, rng, p.program_address, p.program_address + beats, rng.choice((1, 1, 2, 8)))
    # Addresses, scales and epsilons of a program are numbers like others: nothing shows that they are not meant.
    allowed = {ErrorCode.BAD_DESCRIPTOR, ErrorCode.BAD_WEIGHT, ErrorCode.READ_WINDOW, ErrorCode.WRITE_WINDOW}
    return c.attempt(
        name, lambda: c.machine.run_pass(c.passes[name]), allowed, data=True, within=False, kind="bits of descriptors"
    )


def random_program(c: Campaign, rng: random.Random, name: str) -> Injection:
    p = c.program
    count = rng.randrange(1, TINY.max_descriptors + 1)
    code = b"".join(bytes([rng.randrange(7)]) + rng.randbytes(DESCRIPTOR_BYTES - 1) for _ in range(count))
    possible = problem(code, TINY, context=p.context, slots=SLOTS) is None  # an END alone
    padded = np.frombuffer(code + bytes(-len(code) % TINY.beat_bytes), np.uint8).reshape(-1, TINY.beat_bytes)
    c.machine.put(p.kv_address, padded)
    c.machine.write("program_address", p.kv_address)
    c.machine.write("program_length", count)
    return c.attempt(
        name,
        lambda: c.machine.run_pass(c.passes[name]),
        {ErrorCode.BAD_DESCRIPTOR},
        data=possible,
        kind="random program",
    )


def image_bits(c: Campaign, rng: random.Random, name: str) -> Injection:
    p = c.program
    flip(
        c.machine.device.memory,
        rng,
        p.image_address,
        p.image_address + len(c.model.image.data[0]),
        rng.choice((1, 8, 64)),
    )
    return c.attempt(
        name,
        lambda: c.machine.run_pass(c.passes[name]),
        {ErrorCode.BAD_WEIGHT},
        data=True,
        kind="bits of weights and gains",
    )


def cache_bits(c: Campaign, rng: random.Random, name: str) -> Injection:
    p = c.program
    flip(c.machine.device.memory, rng, p.kv_address, p.window_beats, rng.choice((1, 8, 500)))
    return c.attempt(name, lambda: c.machine.run_pass(c.passes[name]), set(), data=True, kind="bits of keys and values")


def random_memory(c: Campaign, rng: random.Random, name: str) -> Injection:
    """All keys, values and scales random bits: NaN, infinities and all magnitudes."""
    p, memory = c.program, c.machine.device.memory
    part = memory[:, p.kv_address : p.window_beats]
    part[:] = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, part.shape, np.uint8)
    return c.attempt(name, lambda: c.machine.run_pass(c.passes[name]), set(), data=True, kind="random caches")


def register_bits(c: Campaign, rng: random.Random, name: str) -> Injection:
    """One or two bits of the registers of a pass, between being set and the start; the bases are left: what is there belongs to others."""
    m = c.machine
    chosen = [
        r
        for r in REGISTERS
        if r.access == "rw" and r.name not in ("control", "base_low", "base_high", "irq_enable", "irq_status")
    ]

    def change() -> None:
        for _ in range(rng.choice((1, 2))):
            r = rng.choice(chosen)
            place = registers.offset(r.name, rng.randrange(N) if r.name in ("position", "slot") else 0)
            m.device.write(place, m.device.read(place) ^ 1 << rng.choice((rng.randrange(32), rng.randrange(4))))

    allowed = {
        ErrorCode.BAD_LANES, ErrorCode.BAD_DESCRIPTOR, ErrorCode.READ_WINDOW, ErrorCode.WRITE_WINDOW, ErrorCode.TIMEOUT, ErrorCode.BAD_WEIGHT,
    }  # fmt: skip
    return c.attempt(
        name, lambda: c.raw(name, c.passes[name], change), allowed, data=True, within=False, kind="bits of registers"
    )


def meddling(c: Campaign, rng: random.Random, name: str) -> Injection:
    """Writes to registers while the pass runs, which it must not see."""
    m = c.machine
    wait = m._wait
    ours = [r for r in REGISTERS if r.access == "rw" and not r.live and r.name != "control"]

    def meddle() -> bool:
        if m.device.run(int(10 ** rng.uniform(0, 4))):
            return wait()
        for _ in range(4):
            r = rng.choice(ours)
            if m.read_fields("status")["busy"]:
                m.device.write(registers.offset(r.name), rng.getrandbits(32))
        if m.read_fields("status")["busy"]:
            m.device.write(registers.offset("control"), registers.pack("control", start=1))
        return wait()

    m._wait = meddle  # type: ignore[method-assign]
    try:
        return c.attempt(name, lambda: m.run_pass(c.passes[name]), set(), kind="registers written in a pass")
    finally:
        m._wait = wait  # type: ignore[method-assign]


KINDS: dict[str, Callable[[Campaign, random.Random, str], Injection]] = {
    "bus error": bus_error,
    "soft reset": soft_reset,
    "soft reset, writes owed": reset_of_writes,
    "hardware reset": hard_reset,
    "short time-out": short_time_out,
    "bits of descriptors": descriptor_bits,
    "random program": random_program,
    "bits of weights and gains": image_bits,
    "bits of keys and values": cache_bits,
    "random caches": random_memory,
    "bits of registers": register_bits,
    "registers written in a pass": meddling,
}


def lost_answer(model: Model, seed: int, number: int) -> Injection:
    """A burst anywhere in the buffer is never answered: a machine of its own, of which only a new bitstream makes another."""
    rng = random.Random(f"{seed} lost {number}")
    program = compile_program(model, TINY, slots=SLOTS)
    at = rng.choice(
        (
            rng.randrange(program.window_beats),
            program.logits_address,
            rng.randrange(program.kv_address, program.window_beats),
        )
    )
    hang: MemoryTiming = timing("kv260", hangs=((at * TINY.port_bytes, (at + 1) * TINY.port_bytes),))
    golden = GoldenBackend(model.weights(), TINY, slots=SLOTS)
    with SimulatedAccelerator(model, program, timing=hang) as machine:
        machine.write("timeout", 5000)
        machine.timeout_s = 0.2  # of the reset that cannot help
        machine._wait = lambda: machine.device.run(LONGEST)  # type: ignore[method-assign]
        given = PASSES["prefill"]
        want = golden.run_pass(given).logits
        assert want is not None
        try:
            got = machine.run_pass(given).logits
        except DeviceError as e:
            told = re.search(
                r"error 7: no progress .* memory never answered .* of port 0; load the bitstream again$",
                str(e),
            )
            return Injection("lost answer", "prefill", "detected" if told else "hung", 7, "" if told else str(e))
        same = got is not None and np.array_equal(got.view(np.uint32), want.view(np.uint32))
        return Injection("lost answer", "prefill", "harmless" if same else "wrong")


ODD = ("id", "twice", "swap")


def odd_answer(model: Model, seed: int, number: int) -> Injection:
    """A burst is answered as AXI4 does not allow: with another ID, twice, or after the one behind it; on a machine of its own.

    The accelerator uses one ID and looks at none, so another is harmless. Beats of an answer that nobody asked for, or in another order, are taken for those that are
    owed: what they carry has no redundancy. What must hold is that the pass ends, and that nothing is written outside of what it may write.
    """
    rng = random.Random(f"{seed} odd {number}")
    what = ODD[number % len(ODD)]
    kind = f"odd answer, {what}"
    with Campaign(model, seed, odd=(what, int(10 ** rng.uniform(0, 3.3)))) as c:
        c.machine.timeout_s = 0.5  # of the reset that cannot help
        c.machine._wait = lambda: c.machine.device.run(LONGEST)  # type: ignore[method-assign]
        result = c.attempt(
            "prefill", lambda: c.machine.run_pass(c.passes["prefill"]), set(ErrorCode), data=what != "id", kind=kind
        )
        told = re.search(r"stopped the pass with error \d+.*(load the bitstream again)?", result.detail)
        return replace(result, outcome="detected") if result.outcome == "hung" and told else result
