"""`tellme explore`: configurations for a board and a model, their speed and area estimated, and the best of them as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tellme.golden.boards import BOARDS
from tellme.golden.config import AcceleratorConfig, ConfigError
from tellme.golden.project import advice
from tellme.host.commands.build import at_clock
from tellme.host.commands.common import (
    SHAPE_HELP,
    BenchHead,
    Board,
    Candidates,
    Clock,
    ConfigFile,
    Kv,
    Planes,
    Prompt,
    Settings,
    bench_candidates,
    cache_format,
)
from tellme.host.commands.sweep import kinds, lists, write_csv
from tellme.host.configuration import Configuration, resolve, text
from tellme.host.errors import CheckError, UserError
from tellme.host.farm import farm
from tellme.host.machine.exploration import Answer, Kept, Question, explore, judge, sources, synthesis_key, task_of
from tellme.host.machine.measurement import shape
from tellme.host.machine.program import check_fits, check_positions
from tellme.host.machine.simulation import memory_timing, unloadable
from tellme.host.places import check_new_folder, replacing
from tellme.host.progress import Status
from tellme.host.provenance import command_line, json_line
from tellme.host.tables import grid, show

if TYPE_CHECKING:
    from tellme.golden.spec import ModelSpec

MOST_CONVERSATIONS = 32
SHOWN = ("tokens_per_s", "ttft_s", "joules_per_token", "lut", "ff", "dsp", "ramb36", "uram")


def picture(points: list[dict[str, Any]], best: list[int], title: str, path: Path) -> None:
    """Speed against LUTs, UltraRAM and energy (SVG); the front is joined."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError as e:
        raise UserError(f"pictures need matplotlib ({e}); install it: {advice('sim')}, or take --no-picture") from e
    axes_of = {"lut": "LUT, estimated", "uram": "UltraRAM", "joules_per_token": "J a token, a rough estimate"}
    with matplotlib.rc_context({"svg.hashsalt": "tellme"}):
        figure, axes = pyplot.subplots(1, len(axes_of), figsize=(14, 4), layout="constrained")
        for axis, (metric, label) in zip(axes, axes_of.items(), strict=True):
            for feasible, mark, colour in ((False, "x", "#bbbbbb"), (True, "o", "#1f5fa8")):
                chosen = [p for p in points if p["feasible"] == feasible and "lut" in p]
                said = "fits" if feasible else "does not fit"
                x, y = [p[metric] for p in chosen], [p["tokens_per_s"] for p in chosen]
                axis.scatter(x, y, s=12, marker=mark, c=colour, label=said)
            line = sorted((points[i] for i in best), key=lambda p: (p[metric], p["tokens_per_s"]))
            high: list[dict[str, Any]] = []
            for p in line:
                if not high or p["tokens_per_s"] > high[-1]["tokens_per_s"]:
                    high.append(p)
            axis.plot([p[metric] for p in high], [p["tokens_per_s"] for p in high], lw=0.8, c="#c0392b", label="best")
            base = points[0]
            if "lut" in base:
                axis.scatter(
                    [base[metric]], [base["tokens_per_s"]], s=50, marker="*", c="#e67e22", label="the base", zorder=3
                )
            axis.set_xlabel(label)
            axis.set_ylabel("tokens/s, by the plan")
        axes[0].legend(fontsize="small")
        figure.suptitle(title)
        with replacing(path) as whole:
            figure.savefig(whole, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _question(
    found: Configuration, model: str, spec: ModelSpec, over: list[str], workload: dict[str, Any], timing: str | None,
    prompt: int, margin: float, most: int, clock: float | None,
) -> Question:  # fmt: skip
    """Checks what was asked for.

    Raises
    ------
    UserError : with value and limit.
    """
    base = at_clock(found.config, clock)
    if base.name not in BOARDS:
        raise UserError(f"{base.name!r} is no board: it has no chip to fit; there are {', '.join(BOARDS)}")
    for what, value in (("--margin", margin), ("--most", most)):
        if not 0 < value < math.inf:
            raise UserError(f"{what} must be above 0, not {value:g}")
    if margin > 1:
        raise UserError(f"--margin must be above 0 and at most 1, not {margin:g}")
    if not 1 <= workload["conversations"] <= MOST_CONVERSATIONS:
        raise UserError(f"--conversations must be from 1 to {MOST_CONVERSATIONS}, not {workload['conversations']}")
    check_fits(spec, base, model, workload["kv"])
    check_positions(spec, base, model, workload["kv"], context=workload["context"], prompt=prompt)
    space: Mapping[str, Sequence[Any]] = lists(over, kinds(base))
    memory = memory_timing(timing or base.name, None)
    try:
        from tellme.hw.explore import Workload, candidates, default_space
    except ImportError as e:
        raise unloadable(e, "") from e
    space = space or default_space(base, BOARDS[base.name])
    for name, values in space.items():
        if (
            over
            and len(list(candidates(base, {name: values}, BOARDS[base.name]))) == 1
            and getattr(base, name) not in values
        ):
            _check_first(base, name, values[0])
    return Question(model, spec, base, space, Workload(**workload), memory, prompt, margin, most)


def _check_first(base: AcceleratorConfig, name: str, value: Any) -> None:
    """Refuses a list of which no value can be alone, by what is said of its first, unless another parameter may mend it."""
    try:
        replace(base, **{name: value})
    except ConfigError as e:
        if f"{name} must be" in str(e):
            raise UserError(f"--over {name}: {e}") from None


def asked(question: Question) -> dict[str, Any]:
    """The workload, for reports."""
    w = question.workload
    return {
        "context": w.context, "prompt": question.prompt, "conversations": w.conversations, "kv": w.kv.name,
        "candidates": w.candidates or None, "planes": w.planes if w.candidates else None,
    }  # fmt: skip


def files(answer: Answer, question: Question, found: Configuration, folder: Path, drawn: bool) -> None:
    """Writes the front's configuration files, the table of all points (CSV), and the picture."""
    front = answer.front()
    for i in front:
        p = answer.points[i]
        config = AcceleratorConfig(**p["config"])
        said = f"{p['tokens_per_s']:.2f} tokens/s of {question.model}, {p['lut']:,.0f} LUT, estimated"
        p["file"] = str(folder / f"{p['name']}.toml")
        with replacing(folder / f"{p['name']}.toml") as whole:
            whole.write_text(text(config, found.board, found.base, said))
    about = {
        "model": question.model,
        "timing": question.timing.name,
        "workload": asked(question),
        "sources": sources(),
    }
    rows = ({**p, "best": i in front, **about} for i, p in enumerate(answer.points))
    write_csv(folder / "points.csv", rows)
    if drawn:
        title = f"{question.model} on {question.base.name}, {question.workload.context} keys: estimated"
        picture(answer.points, front, title, folder / "front.svg")


def synthesise(answer: Answer, question: Question, count: int, kept: Kept, status: Status) -> None:
    """Maps the best points, and corrects the model of area by them for all points.

    Raises
    ------
    CheckError : Yosys failed.
    UserError : it is not installed.
    """
    try:
        from tellme.hw.explore import evaluate
        from tellme.hw.synth import synthesis, yosys
        from tellme.hw.synth.estimate import METRICS, Point, counts, fit, points
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install it: {advice('synth')}") from e
    own = []
    chosen = [i for i in [answer.best(), *answer.front()] if i is not None]
    for n, i in enumerate(list(dict.fromkeys(chosen))[:count]):
        point = answer.points[i]
        config = AcceleratorConfig(**point["config"])
        name = synthesis_key(config)
        if name not in kept.found:
            status(f"synthesis of {point['name']}, {n + 1} of {count}")
            try:
                report = synthesis.synthesise(config, progress=lambda block, step: status(f"{block}: {step.lower()}"))
            except yosys.SynthesisError as e:
                raise CheckError(f"synthesis of {point['name']} failed: {e}") from None
            kept.put(name, {b: {m: r.record()[m] for m in METRICS} for b, r in report.blocks.items()})
        own.append((i, Point(config, counts(config), kept.found[name])))
    area = fit([*points(), *(p for _, p in own)])
    measured = {i: {m: sum(b[m] for b in p.blocks.values()) for m in METRICS} for i, p in own}
    for i, point in enumerate(answer.points):
        if "lut" in point:
            config = AcceleratorConfig(**point["config"])
            now = dict(evaluate(task_of(question, config), area)) | measured.get(i, {})
            estimated = {m: point[m] for m in METRICS}
            answer.points[i] = judge(question, config, now)
            if i in measured:
                answer.points[i] |= {"synthesised": True, "estimated": estimated}


def command(
    model: Annotated[str, typer.Option("--model", help=SHAPE_HELP)],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", help="Values of a parameter, as lanes=4,8,16; repeatable. Default: see docs/explore.md."
        ),
    ] = None,
    context: Annotated[int, typer.Option("--context", help="Cached keys of each conversation when decoding.")] = 128,
    prompt: Prompt = 0,
    conversations: Annotated[int, typer.Option("--conversations", help="Conversations decoded together.")] = 1,
    timing: Annotated[
        str | None, typer.Option("--timing", help="Timing of the simulated memory; that of the board if not given.")
    ] = None,
    clock: Clock = None,
    head: BenchHead = "full",
    candidates: Candidates = None,
    planes: Planes = 1,
    kv: Kv = "8",
    margin: Annotated[
        float, typer.Option("--margin", help="Part of the chip's LUTs and flip-flops that may be used.")
    ] = 0.85,
    most: Annotated[
        int, typer.Option("--most", help="Configurations that are looked at; a larger space is searched, not walked.")
    ] = 1000,
    count: Annotated[
        int, typer.Option("--synthesise", help="Map the best of so many, and correct the model by them.")
    ] = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes here. Default: one for each core; 1: none but this one.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Scheduler of dask.distributed instead, as tcp://host:8786.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of results. Default: explore-BOARD here.")] = None,
    drawn: Annotated[bool, typer.Option("--picture/--no-picture", help="Draw front.svg in the folder.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Search configurations for a board and a model: speed by the plan, area by a fitted model. Nothing is built."""
    found = resolve(board_name, config_file, settings or (), default="kv260")
    spec = shape(model, found.config)
    workload = {
        "context": context, "conversations": conversations, "planes": planes, "kv": cache_format(kv),
        "candidates": bench_candidates(head, candidates, planes, spec),
    }  # fmt: skip
    question = _question(found, model, spec, over or [], workload, timing, prompt, margin, most, clock)
    if count < 0:
        raise UserError(f"--synthesise must be at least 0, not {count}")
    folder = out or Path(f"explore-{question.base.name}")
    check_new_folder(folder)
    with Status(Console(stderr=True), "evaluating") as status, farm(workers, scheduler) as run:
        kept = Kept(folder)
        looked = 0

        def said(n: int) -> None:
            nonlocal looked
            looked += n
            status(f"{looked} of {min(question.size, most):,} configurations")

        answer = explore(question, kept, run, said)
        if count:
            synthesise(answer, question, count, kept, status)
    files(answer, question, found, folder, drawn)
    report(answer, question, folder, as_json)


def report(answer: Answer, question: Question, folder: Path, as_json: bool) -> None:
    """Prints what was found."""
    points, front, best, w = answer.points, answer.front(), answer.best(), question.workload
    if as_json:
        print(
            json_line(
                {
                    "model": question.model, "board": question.base.name, "estimated": True, "workload": asked(question),
                    "timing": question.timing.name, "clock_hz": question.base.clock_hz, "margin": question.margin,
                    "space": question.space, "walked": question.size <= question.most, "evaluated": answer.new,
                    "sources": sources(), "command": command_line(), "base": points[0]["name"], "best": None if best is None else points[best]["name"],
                    "front": [points[i]["name"] for i in front], "folder": str(folder), "points": points,
                }
            )
        )  # fmt: skip
        return
    console = Console()
    rows = []
    for i in dict.fromkeys([*front, 0]):
        p = points[i]
        if "lut" not in p:
            continue
        numbers = {m: f"{p[m]:,.2f}" if p[m] is not None else "" for m in SHOWN[:3]}
        numbers |= {m: f"{p[m]:,.1f}".removesuffix(".0") for m in SHOWN[3:]}
        mark = "best" if i == best else "base" if i == 0 else ""
        rows.append((p["name"], mark, *(p["config"][n] for n in question.space), *numbers.values()))
    title = (
        f"{question.model} on {question.base.name}, {w.context} keys, estimated: {len(points)} configurations, "
        f"{len(answer.fitting)} fit, {len(front)} are not beaten"
    )
    show(grid(title, ("build", "", *question.space, *SHOWN), rows, left=("",)), console)
    if best is None:
        console.print(f"none fits: the base has {points[0]['reason']}", highlight=False, soft_wrap=True, markup=False)
        return
    console.print(f"their files are in {folder}; build the best one:", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"tellme build --config {points[best]['file']} --out DIR", highlight=False, soft_wrap=True, markup=False
    )
