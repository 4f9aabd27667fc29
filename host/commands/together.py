"""`tellme bench --sequences --speculate`: several conversations, and guesses, on the simulated accelerator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import CacheFormat
from tellme.host.commands.sweep import emit
from tellme.host.errors import UserError
from tellme.host.image.model import demo_folder
from tellme.host.machine.costs import Costs
from tellme.host.machine.measurement import Cost, Shape, measure_together, shape, side_by_side
from tellme.host.machine.placement import in_use
from tellme.host.machine.simulation import check_simulator
from tellme.host.progress import Status
from tellme.host.tables import grid, show
from tellme.host.talk.replay import Replay, replay
from tellme.host.talk.work import WORK, find
from tellme.host.text.tokenizer import Files, Tokenizer

SIMULATED = 4
"""Kinds of passes that are run on the RTL, the most frequent ones; what the plan says of the others is held against these."""


@dataclass(frozen=True)
class Together:
    """What is measured: `sequences` conversations with `context` cached keys each. candidates, planes : of the screened head, 0: the full head.
    kv : elements of the cache."""

    model: str
    config: AcceleratorConfig
    memory: Any
    context: int
    sequences: int
    candidates: int
    planes: int
    kv: CacheFormat


def _guessed(t: Together, work: str) -> Replay:
    """The passes in which answers to `work` are decoded."""
    try:
        find(work)
    except KeyError:
        raise UserError(f"--work must be one of {', '.join(w.name for w in WORK)}, not {work!r}") from None
    tokenizer = Tokenizer(Files.read(demo_folder()), shape("demo").vocab)
    spec = shape(t.model, t.config)
    costs = Costs(spec, t.config, t.kv)

    def cost(firsts: Any, lanes: Any, heads: int, more: Any) -> list[float]:
        # As if each conversation had `context` keys before every pass.
        return costs.cycles([t.context] * len(lanes), lanes, heads, more)

    w = find(work)
    text = tokenizer.encode(w.prompt), tokenizer.encode_more(w.answer)
    return replay([text] * t.sequences, t.config, spec.heads // spec.kv_heads, cost, kv=t.kv)


def _planned(t: Together, lanes: Shape) -> int:
    from tellme.hw.plan import predict, steps
    from tellme.sim.stream import SustainedMemory

    given = side_by_side(lanes, t.context)
    asked = given.positions, given.slots, given.head[1]
    todo = steps(shape(t.model, t.config), t.config, *asked, t.candidates, t.planes or 1, t.kv)
    return predict(todo, t.config, SustainedMemory(t.memory, in_use(t.config, "sim").phases or None)).cycles


def _report(t: Together, work: str | None, kinds: Counter[Shape], tokens: int, costs: dict[Shape, Cost], found: Replay | None) -> dict[str, Any]:  # fmt: skip
    planned = {lanes: _planned(t, lanes) for lanes in kinds}
    off = {lanes: planned[lanes] / costs[lanes].cycles - 1 for lanes in costs}
    cycles = {lanes: costs[lanes].cycles if lanes in costs else planned[lanes] for lanes in kinds}
    total = sum(cycles[lanes] * times for lanes, times in kinds.items())
    passes = kinds.total()
    plain = (1,) * t.sequences
    return {
        "model": t.model,
        "board": t.config.name,
        "timing": t.memory.name,
        "phases_kib": in_use(t.config, "sim").kib,
        "simulated": True,
        "bit_exact": True,
        "clock_hz": t.config.clock_hz,
        "context": t.context,
        "head": "screened" if t.candidates else "full",
        "candidates": t.candidates or None,
        "planes": t.planes if t.candidates else None,
        "kv": t.kv.name,
        "hadamard": t.kv.hadamard,
        "sequences": t.sequences,
        "work": work,
        "tokens_per_s": tokens * t.config.clock_hz / total,
        "tokens_per_pass": tokens / passes,
        "cycles_per_pass": total / passes,
        "drafted": found.drafted if found else None,
        "accepted": found.accepted if found else None,
        "faster": tokens / t.sequences * cycles.get(plain, _planned(t, plain)) / total if found else None,
        "on_rtl": sum(kinds[lanes] for lanes in costs) / passes,
        "plan_error": max(off.values(), key=abs),
        "passes": [
            {
                "lanes": list(lanes),
                "times": times,
                "cycles": costs[lanes].cycles if lanes in costs else None,
                "planned_cycles": planned[lanes],
                "stalls": costs[lanes].stalls if lanes in costs else None,
            }
            for lanes, times in kinds.most_common()
        ],
    }


def together(t: Together, work: str | None, as_json: bool) -> None:
    """Measures and prints.

    Parameters
    ----------
    work : what the conversations answer, with guesses; None: no guesses.

    Raises
    ------
    UserError : it cannot be measured; CheckError: a pass differs from golden's.
    """
    if not 1 <= t.sequences <= t.config.lanes:
        raise UserError(
            f"--sequences must be from 1 to {t.config.lanes}, the lanes of {t.config.name!r}, not {t.sequences}"
        )
    found = _guessed(t, work) if work is not None else None
    kinds = found.passes if found else Counter({(1,) * t.sequences: 1})
    check_simulator(t.config)
    with Status(Console(stderr=True), "starting", lines=True) as status:
        costs = measure_together(
            t.model,
            t.config,
            t.memory,
            [lanes for lanes, _ in kinds.most_common(SIMULATED)],
            context=t.context,
            candidates=t.candidates,
            planes=t.planes,
            kv=t.kv,
            say=status,
            status=status,
        )
    r = _report(t, work, kinds, found.tokens if found else t.sequences, costs, found)
    if as_json:
        emit(r)
        return
    console = Console()
    rows = [
        ("+".join(map(str, p["lanes"])), p["times"], "by the plan" if p["cycles"] is None else f"{p['cycles']:,}", f"{p['planned_cycles']:,}")
        for p in r["passes"]
    ]  # fmt: skip
    title = f"{t.model} on {r['board']}, simulated, timing {r['timing']}: {t.sequences} conversation(s) with {t.context} keys each"
    show(grid(title, ("lanes", "passes", "cycles", "planned"), rows), console)
    text = f"{r['tokens_per_s']:.1f} tokens/s in all, {r['tokens_per_pass']:.2f} tokens a pass"
    if found:
        text += f"; {work}: {found.drafted} guessed, {found.accepted} right, {r['faster']:.2f} times as fast as without"
    console.print(text, highlight=False)
    console.print("every pass on the RTL equals the golden model's, bit for bit", highlight=False)
