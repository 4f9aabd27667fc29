"""`tellme explore`: configurations for a board and a model, their speed and area estimated, and the best of them as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.project import advice
from tellme.golden.spec import ModelSpec
from tellme.host.commands.common import SHAPE_HELP, Board, ConfigFile, Settings
from tellme.host.configuration import Configuration, parse, resolve, text
from tellme.host.errors import UserError
from tellme.host.machine.measurement import shape
from tellme.host.machine.passes import chunks
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import check_fits, usable_context
from tellme.host.machine.simulation import memory_timing, unloadable
from tellme.host.places import check_new_file, replacing
from tellme.host.progress import Status
from tellme.host.provenance import json_line, version
from tellme.host.tables import grid, show

if TYPE_CHECKING:
    from tellme.hw.explore import Workload

KEPT = "points.jsonl"
"""File of a folder of results: an object a line, `key` and what was found."""

PER_POINT = ("tokens_per_s", "ttft_s", "lut", "ff", "dsp", "ramb36", "uram")


def space_of(given: list[str]) -> dict[str, tuple[int, ...]]:
    """The lists of `--over`: name=value,value.

    Raises
    ------
    UserError : one is not, or a name comes twice.
    """
    out: dict[str, tuple[int, ...]] = {}
    for text_ in given:
        name, _, values = text_.partition("=")
        name, found = parse(f"{name}=[{values}]") if values else parse(text_)
        if name in out or not isinstance(found, list) or not all(type(v) is int for v in found):
            raise UserError(f"--over {text_}: must be name=value,value of whole numbers, each name once")
        out[name] = tuple(dict.fromkeys(found))
    return out


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    """Results of earlier runs by their key; a line that was cut off in the middle is left out."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = file.read_text().splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: cannot be read ({e}); remove it, or give another folder") from e
    for line in lines:
        try:
            entry = json.loads(line)
            found[entry["key"]] = entry["found"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def evaluate(
    found: Configuration,
    space: dict[str, tuple[int, ...]],
    spec: ModelSpec,
    workload: Workload,
    prompt: int,
    margin: float,
    timing: str,
    kept: dict[str, dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Points one after the other, the base first: each with what is to be kept of it (a line), if it is new."""
    from tellme.hw.explore import candidates, fits, speed
    from tellme.hw.synth.estimate import model
    from tellme.sim.stream import SustainedMemory

    board = BOARDS[found.config.name]
    memory = memory_timing(timing, None)
    about = {"spec": asdict(spec), "context": workload.context, "sequences": workload.sequences, "prompt": prompt}
    same = json.dumps([about, timing, version()], sort_keys=True)
    for config in candidates(found.config, space, board):
        key = hashlib.sha256((same + json.dumps(asdict(config), sort_keys=True)).encode()).hexdigest()[:24]
        line = None
        if key not in kept:
            try:
                check_fits(spec, config, "the model")
                if max(workload.context, prompt) >= usable_context(spec, config):
                    raise UserError(f"the model: context must be below {usable_context(spec, config)}")
            except UserError as e:
                kept[key] = {"refused": str(e)}
            else:
                placed = SustainedMemory(memory, in_use(config, "sim").phases or None)
                s = speed(spec, config, placed, workload, chunks(config, spec.heads // spec.kv_heads, prompt))
                area = {m: round(v, 1) for m, v in model().total(config).items()}
                kept[key] = {"tokens_per_s": s.tokens_per_s, "ttft_s": s.ttft_s, **area}
            line = json.dumps({"key": key, "found": kept[key]})
        point = kept[key]
        if "refused" in point:
            yield (
                {"name": build_name(config), "feasible": False, "reason": point["refused"], "config": asdict(config)},
                line,
            )
            continue
        over = fits(point, board, margin)
        reason = ", ".join(f"{m} {part:.0%} of the chip's" for m, part in over.items())
        yield {
            "name": build_name(config), "feasible": not over, "reason": reason or None, **point, "config": asdict(config),
        }, line  # fmt: skip


def picture(points: list[dict[str, Any]], best: list[int], title: str, path: Path) -> None:
    """Speed against LUTs and against UltraRAM (SVG); the front is joined."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError as e:
        raise UserError(f"pictures need matplotlib ({e}); install it: {advice('sim')}") from e
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, metric in zip(axes, ("lut", "uram"), strict=True):
        for feasible, mark in ((False, "x"), (True, "o")):
            chosen = [p for p in points if p["feasible"] == feasible]
            label = "fits" if feasible else "does not fit"
            axis.scatter(
                [p[metric] for p in chosen], [p["tokens_per_s"] for p in chosen], s=12, marker=mark, label=label
            )
        line = sorted((points[i] for i in best), key=lambda p: p[metric])
        axis.plot([p[metric] for p in line], [p["tokens_per_s"] for p in line], lw=0.8)
        axis.set_xlabel({"lut": "LUT, estimated", "uram": "URAM288"}[metric])
        axis.set_ylabel("tokens/s, by the plan")
    axes[0].legend()
    figure.suptitle(title)
    with replacing(path) as whole:
        figure.savefig(whole, format="svg")
    pyplot.close(figure)


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
    context: Annotated[int, typer.Option("--context", help="Cached keys when decoding.")] = 128,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens to prefill; 0: none.")] = 0,
    sequences: Annotated[int, typer.Option("--sequences", help="Sequences decoded together.")] = 1,
    margin: Annotated[
        float, typer.Option("--margin", help="Part of the chip's LUTs and flip-flops that may be used.")
    ] = 0.85,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of results. Default: explore-BOARD here.")] = None,
    image: Annotated[Path | None, typer.Option("--picture", help="Picture of the points (SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Search configurations for a board and a model: speed by the plan, area by a fitted model. Nothing is built."""
    found = resolve(board_name, config_file, settings or (), default="kv260")
    if found.config.name not in BOARDS:
        raise UserError(f"{found.config.name!r} is no board: it has no chip to fit; there are {', '.join(BOARDS)}")
    if not 0 < margin <= 1:
        raise UserError(f"--margin must be above 0 and at most 1, not {margin:g}")
    if not 1 <= sequences <= 32:
        raise UserError(f"--sequences must be from 1 to 32, not {sequences}")
    spec = shape(model)
    check_fits(spec, found.config, model)
    usable = usable_context(spec, found.config)
    for what, value in (("context", context), ("prompt", prompt)):
        if not 0 <= value < usable:
            raise UserError(f"{what} must be from 0 to {usable - 1} for {model} on {found.config.name!r}, not {value}")
    given = space_of(over or [])
    for name, values in given.items():
        resolve_each(found.config, name, values)
    if image is not None:
        check_new_file(image)
    try:
        from tellme.hw.explore import Workload, default_space, front
    except ImportError as e:
        raise unloadable(e, "") from e
    folder = out or Path(f"explore-{found.config.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = open(folder / KEPT, "a")  # noqa: SIM115 - closed below
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror})") from e
    kept = _kept(folder / KEPT)
    points: list[dict[str, Any]] = []
    new = 0
    space = given or default_space(found.config, BOARDS[found.config.name])
    with record, Status(Console(stderr=True), "evaluating") as status:
        todo = evaluate(found, space, spec, Workload(context, sequences), prompt, margin, found.config.name, kept)
        for point, line in todo:
            if line is not None:
                record.write(line + "\n")
                record.flush()
                new += 1
            points.append(point)
            status(f"{len(points)} configurations, {new} new")
    base = points[0]
    usable_points = [p for p in points if p["feasible"]]
    best = [points.index(usable_points[i]) for i in front(usable_points)]
    best.sort(key=lambda i: (-points[i]["tokens_per_s"], points[i]["lut"]))
    for i in best:
        point = points[i]
        config = AcceleratorConfig(**point["config"])
        said = f"{point['tokens_per_s']:.2f} tokens/s of {model}, {point['lut']:,.0f} LUT, estimated"
        point["file"] = str(folder / f"{point['name']}.toml")
        with replacing(folder / f"{point['name']}.toml") as whole:
            whole.write_text(text(config, found.board, found.base, said))
    if image is not None:
        picture([p for p in points if "lut" in p], best, f"{model} on {found.config.name}", image)
    if as_json:
        about = {"context": context, "prompt": prompt, "sequences": sequences}
        print(
            json_line(
                {
                    "model": model, "board": found.config.name, "estimated": True, "workload": about, "margin": margin,
                    "space": space, "evaluated": new, "base": base["name"], "front": [points[i]["name"] for i in best],
                    "points": points,
                }
            )
        )  # fmt: skip
        return
    console = Console()
    header = ("build", *space, *PER_POINT)
    rows = []
    for i in best:
        p = points[i]
        cells = [
            f"{p[m]:,.2f}" if m in ("tokens_per_s", "ttft_s") and p[m] is not None else p[m] or 0 for m in PER_POINT
        ]
        rows.append(
            (p["name"], *(p["config"][n] for n in space), *(round(c) if isinstance(c, float) else c for c in cells))
        )
    title = f"{model} on {found.config.name}, estimated: {len(points)} configurations, {len(usable_points)} fit, {len(best)} are best"
    show(grid(title, header, rows), console)
    console.print(f"their files are in {folder}: tellme build --config FILE --out DIR", highlight=False, soft_wrap=True)


def resolve_each(base: AcceleratorConfig, name: str, values: tuple[int, ...]) -> None:
    """Refuses a list of which no value can be, by the words of the first."""
    refused: UserError | None = None
    for value in values:
        try:
            resolve(base.name, None, [f"{name}={value}"])
            return
        except UserError as e:
            if "there is no parameter" in str(e) or name in ("name", "clock_mhz"):
                raise UserError(f"--over {name}: {str(e).partition(': ')[2]}") from None
            refused = refused or e
    if refused is not None and " must be " in str(refused) and not any(w in str(refused) for w in ("score_words", "*")):
        raise UserError(f"--over {name}: {str(refused).partition(': ')[2]}")
