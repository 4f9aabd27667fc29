"""A search over configurations, of which everything that was found is kept: what `tellme explore` does, for programs.

Speed is that of the plan, area that of the fitted model (hw/synth/estimate.py): nothing is built, simulated or synthesised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.project import advice
from tellme.golden.spec import ModelSpec
from tellme.host.configuration import sha256
from tellme.host.errors import UserError
from tellme.host.farm import Run
from tellme.host.machine.passes import chunks
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import check_fits, usable_context

if TYPE_CHECKING:
    from tellme.hw.explore import Space, Task, Workload
    from tellme.sim.timing import MemoryTiming

KEPT = "points.jsonl"
"""File of a folder of results: an object a line, `key` and what was found."""

TOGETHER = 8
"""Configurations of a task: neighbours share blocks, which are counted once."""

GENERATION = 64
"""Configurations that the optimiser asks for at a time, whatever the number of workers."""

SEED = 7
"""Of the optimiser."""

Point = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked of every configuration.

    Parameters
    ----------
    base : configuration that the others are changes of. space : values of each parameter that is varied.
    prompt : tokens to prefill, 0: none. margin : part of the chip's LUTs and flip-flops that may be used.
    most : configurations that are looked at; a space of more is searched by an optimiser in place of walked.
    """

    model: str
    spec: ModelSpec
    base: AcceleratorConfig
    space: Space
    workload: Workload
    timing: MemoryTiming
    prompt: int = 0
    margin: float = 0.85
    most: int = 1000

    @property
    def size(self) -> int:
        """Configurations of the space, those that cannot be built among them."""
        return prod(len(v) for v in self.space.values())


@dataclass
class Answer:
    """What was found: points in the order of the space, the base first; new: how many were not kept before."""

    points: list[Point] = field(default_factory=list)
    new: int = 0

    @property
    def fitting(self) -> list[int]:
        """Places of the points that fit."""
        return [i for i, p in enumerate(self.points) if p["feasible"]]

    def front(self) -> list[int]:
        """Places of the points that fit and that no other is better than; the fastest first."""
        from tellme.hw.explore import front

        chosen = self.fitting
        best = [chosen[i] for i in front([self.points[i] for i in chosen])]
        return sorted(best, key=lambda i: (-self.points[i]["tokens_per_s"], self.points[i]["lut"]))

    def best(self) -> int | None:
        """Place of the point to build: of those on the front that are within a thousandth of the fastest, and no slower than the
        base if that fits, the one with the fewest LUTs."""
        chosen = self.front()
        if not chosen:
            return None
        fastest, base = self.points[chosen[0]], self.points[0]
        least = max(0.999 * fastest["tokens_per_s"], base["tokens_per_s"] if base["feasible"] else 0.0)
        near = [i for i in chosen if self.points[i]["tokens_per_s"] >= least]
        return min(near or chosen[:1], key=lambda i: self.points[i]["lut"])


@cache
def sources() -> str:
    """Hash of the files that a result depends on."""
    root = Path(__file__).resolve().parents[2]
    names = [p for folder in ("golden", "hw") for p in sorted((root / folder).rglob("*.py"))]
    names += [
        root / "hw" / "synth" / "points.json",
        *(root / "sim" / n for n in ("stream.py", "stream.cpp", "dram.hpp", "timing.py")),
    ]
    names += [root / "host" / "machine" / n for n in ("passes.py", "program.py")]
    digest = hashlib.sha256()
    for path in names:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


class Kept:
    """Results of a folder, by key; every new one is written at once. A line that was cut off in the middle is left out.

    Raises
    ------
    UserError : the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / KEPT
        self.found: dict[str, Point] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.path.read_bytes() if self.path.exists() else b""
            with open(self.path, "ab") as file:
                file.write(b"\n" * (text != b"" and not text.endswith(b"\n")))
        except OSError as e:
            raise UserError(f"{e.filename or folder}: cannot be used for results ({e.strerror})") from e
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.found[entry["key"]] = dict(entry["found"])
            except (ValueError, KeyError, TypeError):
                continue

    def put(self, key: str, found: Point) -> None:
        """Keeps a result.

        Raises
        ------
        UserError : it cannot be written.
        """
        self.found[key] = found
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps({"key": key, "found": found}).encode() + b"\n")
        except OSError as e:
            raise UserError(f"{self.path}: cannot be written ({e.strerror})") from e


def task_of(question: Question, config: AcceleratorConfig) -> Task:
    """What a worker needs.

    Raises
    ------
    UserError : the model does not run on the configuration.
    """
    from tellme.hw.explore import Task
    from tellme.sim.stream import SustainedMemory

    spec, kv = question.spec, question.workload.kv
    check_fits(spec, config, question.model, kv)
    usable = usable_context(spec, config, kv)
    wanted = max(question.workload.context, question.prompt)
    if wanted >= usable:
        raise UserError(f"{question.model}: {wanted} keys of {usable - 1} at most")
    memory = SustainedMemory(question.timing, in_use(config, "sim").phases or None)
    prompt = chunks(config, spec.heads // spec.kv_heads, question.prompt, kv=kv)
    return Task(config, BOARDS[config.name], spec, memory, question.workload, tuple(prompt))


def key(task: Task) -> str:
    """Name of a task's result: a hash of all that it follows from."""
    about = [sources(), asdict(task)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def synthesis_key(config: AcceleratorConfig) -> str:
    """Name of a synthesis' result: neither model nor workload matters."""
    about = [sources(), asdict(config), asdict(BOARDS[config.name])]
    return "synthesis-" + hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def _evaluate(tasks: Sequence[Task]) -> list[Point]:
    """In a worker."""
    from tellme.hw.explore import evaluate

    return [dict(evaluate(t)) for t in tasks]


def name_of(config: AcceleratorConfig) -> str:
    """Name of a point and its file: the build's (a hash of all parameters but the clock) and the clock."""
    return f"{build_name(config)}-{config.clock_hz / 1e6:g}MHz"


def judge(question: Question, config: AcceleratorConfig, found: Mapping[str, Any] | None, refused: str = "") -> Point:
    """A point as it is reported."""
    from tellme.hw.explore import fits, watts

    point: Point = {"name": name_of(config), "sha256": sha256(config), "feasible": False, "reason": refused or None}
    if found is None:
        return {**point, "config": asdict(config)}
    over = fits(found, BOARDS[config.name], question.margin)
    reason = ", ".join(f"{m} {part:.0%} of the chip's" for m, part in over.items())
    power = watts(found, config.clock_hz, found["bytes_per_s"])
    return {
        **point, "feasible": not over, "reason": reason or None, **found, "watts": round(power, 2),
        "joules_per_token": round(power / found["tokens_per_s"], 4), "config": asdict(config),
    }  # fmt: skip


def look(
    question: Question,
    configs: Sequence[AcceleratorConfig],
    kept: Kept,
    run: Run,
    said: Callable[[int], None],
) -> tuple[list[Point], int]:
    """Points of configurations, in their order, and how many of them were new."""
    tasks: list[Task | None] = []
    refused: list[str] = []
    for config in configs:
        try:
            tasks.append(task_of(question, config))
            refused.append("")
        except UserError as e:
            tasks.append(None)
            refused.append(str(e))
    keys = [None if t is None else key(t) for t in tasks]
    todo = [i for i, k in enumerate(keys) if k is not None and k not in kept.found]
    parts = {f"configurations from {n}": todo[n : n + TOGETHER] for n in range(0, len(todo), TOGETHER)}
    said(len(configs) - len(todo))
    for part, found in run(_evaluate, {name: [tasks[i] for i in part] for name, part in parts.items()}):
        for i, one in zip(parts[part], found, strict=True):
            name = keys[i]
            assert name is not None
            kept.put(name, one)
        said(len(found))
    points = [
        judge(question, c, None if k is None else kept.found[k], why)
        for c, k, why in zip(configs, keys, refused, strict=True)
    ]
    return points, len(todo)


def explore(question: Question, kept: Kept, run: Run, said: Callable[[int], None] = lambda n: None) -> Answer:
    """Looks at a space, whole if it is small, else by an optimiser.

    Parameters
    ----------
    run : where tasks run (`host.farm`). said : told how many configurations more were looked at.

    Raises
    ------
    UserError : the results cannot be kept, or the optimiser is not installed.
    """
    from tellme.hw.explore import candidates

    board = BOARDS[question.base.name]
    if question.size <= question.most:
        configs = list(candidates(question.base, question.space, board))
        return Answer(*look(question, configs, kept, run, said))
    answer = Answer()
    for configs in _generations(question, answer):
        points, new = look(question, configs, kept, run, said)
        answer.points += points
        answer.new += new
    return answer


def _generations(question: Question, answer: Answer) -> Iterator[list[AcceleratorConfig]]:
    """Asks Optuna's NSGA-II for configurations; what came of the last generation is in `answer` when the next one is asked for.

    Each generation is asked for before any of it is told, so the course does not depend on the workers.
    """
    try:
        import optuna
    except ImportError as e:
        raise UserError(
            f"a space of {question.size:,} configurations needs an optimiser ({e}); install it: {advice('explore')}, or give fewer "
            f"values (--over) or a larger --most"
        ) from e
    from tellme.hw.explore import RESOURCES, candidate

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    board, base = BOARDS[question.base.name], question.base
    sampler = optuna.samplers.NSGAIISampler(population_size=GENERATION, seed=SEED)
    study = optuna.create_study(directions=["maximize", *(["minimize"] * len(RESOURCES))], sampler=sampler)
    space = {n: optuna.distributions.CategoricalDistribution(list(v)) for n, v in question.space.items()}
    places = {base: 0}
    yield [base]
    asked = 0
    while len(answer.points) < question.most and asked < 4 * question.most:
        trials = [study.ask(space) for _ in range(GENERATION)]
        asked += GENERATION
        built = [candidate(base, t.params, board) for t in trials]
        fresh = list(dict.fromkeys(c for c in built if c is not None and c not in places))
        fresh = fresh[: question.most - len(answer.points)]
        first = len(answer.points)
        places.update((c, first + i) for i, c in enumerate(fresh))
        if fresh:
            yield fresh
        for trial, config in zip(trials, built, strict=True):
            place = None if config is None else places.get(config)
            point = None if place is None else answer.points[place]
            if point is None or "lut" not in point:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            trial.set_constraint("chip", 0.0 if point["feasible"] else 1.0)
            study.tell(trial, [point["tokens_per_s"], *(point[m] for m in RESOURCES)])
