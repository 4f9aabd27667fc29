"""`--over` and `--csv`: a command that measures one configuration, for every combination of several values; and figures as files.

A sweep runs the command itself for each point, and takes the object that it would print with `--json`.
"""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tellme.golden.config import AcceleratorConfig
from tellme.host.commands.build import at_clock
from tellme.host.commands.common import bench_candidates, cache_format
from tellme.host.configuration import PARAMETERS, parse, resolve
from tellme.host.errors import UserError
from tellme.host.machine.measurement import shape
from tellme.host.machine.program import check_fits, check_positions
from tellme.host.machine.simulation import memory_timing
from tellme.host.places import check_new_file, replacing
from tellme.host.provenance import command_line, commit, json_line, version
from tellme.host.tables import grid, show

Over = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        help="Several values of a parameter or of an option, as lanes=4,8 or context=128,1024; repeatable: every combination.",
    ),
]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write the figures to a table (CSV), a line for each point.")]

OPTIONS: dict[str, type] = {
    "model": str, "board": str, "timing": str, "clock": float, "context": int, "prompt": int, "sequences": int, "head": str,
    "candidates": int, "planes": int, "kv": str, "hadamard": bool,
}  # fmt: skip
"""Options that may be varied, as far as a command has them, and what their values are."""

SHOWN = ("tokens_per_s", "ttft_s", "cycles_per_pass", "bytes_per_pass")

KINDS = {int: "whole numbers", float: "numbers", bool: "true and false", str: "words"}

Record = dict[str, Any]

_records: ContextVar[list[Record] | None] = ContextVar("records", default=None)


def emit(record: Mapping[str, Any]) -> None:
    """A command's result: a line of JSON on standard output, or a point of the sweep that runs it."""
    points = _records.get()
    if points is None:
        print(json_line(record), flush=True)
    else:
        points.append(dict(record))


# ---- values ----------------------------------------------------------------------------------------------------------


def kinds(base: AcceleratorConfig) -> dict[str, type]:
    """What the values of a configuration's parameters are."""
    return {name: type(getattr(base, name)) for name in PARAMETERS}


def _value(one: str, name: str, value: str, wanted: type) -> Any:
    if wanted is str:
        found: Any = value.strip()
    else:
        try:
            found = parse(f"{name}={value}")[1]
        except UserError as e:
            raise UserError(f"--over {one}: {str(e).partition(': ')[2]}") from None
    if wanted is float and type(found) is int:
        found = float(found)
    if type(found) is not wanted or found == "":
        raise UserError(f"--over {one}: values of {name} are {KINDS[wanted]}, not {found!r}")
    return found


def lists(given: Sequence[str], known: Mapping[str, type]) -> dict[str, tuple[Any, ...]]:
    """The lists of `--over`: name=value,value.

    Parameters
    ----------
    known : names that may be varied, and what their values are.

    Raises
    ------
    UserError : one is not, a name comes twice or is not known, or a value is of another kind.
    """
    out: dict[str, tuple[Any, ...]] = {}
    for one in given:
        name, equals, values = one.partition("=")
        name = name.strip()
        if name in out or not equals or not values.strip():
            raise UserError(f"--over {one}: must be name=value,value, each name once, for instance --over lanes=4,8")
        if name not in known:
            others = ", ".join(n for n in known if n in OPTIONS)
            more = f"; besides these there are {others}" if others else ""
            raise UserError(
                f"--over {one}: there is no parameter {name!r} to vary; tellme config show lists them{more}"
            )
        out[name] = tuple(dict.fromkeys(_value(one, name, v, known[name]) for v in values.split(",")))
    return out


# ---- tables ----------------------------------------------------------------------------------------------------------


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The figures of a record as columns: those of an object inside are called object.name, parameters of a configuration just as
    they are; lists are left to JSON."""
    out: dict[str, Any] = {}
    for name, value in record.items():
        if name == "config":
            continue
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, (list, tuple)):
            out[prefix + name] = value
    return {**out, **{n: v for n, v in record.get("config", {}).items() if n not in out}}


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table of records, with what made it in every line: version, commit and command. A column for every figure of any of them.

    Raises
    ------
    UserError : it cannot be written.
    """
    about = {"version": version(), "commit": commit(), "command": command_line()}
    lines = [{**flat(row), **about} for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in about)) + list(about)
    with replacing(path) as whole, open(whole, "w", newline="") as f:
        out = csv.DictWriter(f, names, restval="")
        out.writeheader()
        out.writerows(lines)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """values: of what is varied. asked: the command's options. about: of its configuration, for the record."""

    values: Record
    asked: Record
    about: Record


def _point(values: Record, asked: Mapping[str, Any]) -> _Point:
    """A combination, checked by all that can be said before it is measured.

    Raises
    ------
    UserError : which combination, and why not.
    """
    said = {
        n: f"{n}={str(v).lower() if isinstance(v, bool) else f'{v:g}' if isinstance(v, float) else v}"
        for n, v in values.items()
    }
    where = ", ".join(said.values())
    a = dict(asked) | {"board_name" if n == "board" else n: v for n, v in values.items() if n in OPTIONS}
    a["settings"] = [*(a["settings"] or ()), *(text for n, text in said.items() if n not in OPTIONS)]
    try:
        found = resolve(a["board_name"], a["config_file"], a["settings"], default="kv260")
        config = at_clock(found.config, a["clock"])
        spec, cache = shape(a["model"], config), cache_format(a["kv"], a["hadamard"])
        memory_timing(a["timing"], None)
        bench_candidates(a["head"], a["candidates"], a["planes"], spec)
        check_fits(spec, config, a["model"], cache)
        check_positions(spec, config, a["model"], cache, context=a["context"], prompt=a["prompt"])
        if not 1 <= a.get("sequences", 1) <= config.lanes:
            raise UserError(
                f"--sequences must be from 1 to {config.lanes}, the lanes of {config.name!r}, not {a['sequences']}"
            )
    except UserError as e:
        raise UserError(f"--over {where}: {e}" if where else str(e)) from None
    record = found.record()
    return _Point(values, a, {"sha256": record["sha256"], "config": record["parameters"]})


def sweep(
    command: Callable[..., None], over: Sequence[str], file: Path | None, as_json: bool, asked: Mapping[str, Any]
) -> None:
    """Runs a command for every combination, and prints what came of it; the table is written again after each.

    Parameters
    ----------
    command : which prints its result by `emit`. asked : its options. file : of the table, if one is asked for.

    Raises
    ------
    UserError : a combination cannot be measured; nothing has been done.
    """
    options = {"board_name" if n == "board" else n for n in OPTIONS} & inspect.signature(command).parameters.keys()
    base = resolve(asked["board_name"], asked["config_file"], asked["settings"] or (), default="kv260").config
    own = {n: t for n, t in OPTIONS.items() if n in options or (n == "board" and "board_name" in options)}
    values = lists(over, {**own, **kinds(base)})
    if "board" in values and asked["config_file"] is not None:
        raise UserError("--over board and --config exclude each other")
    rest = {n: v for n, v in asked.items() if n not in ("over", "csv_file", "as_json")}
    points = [_point(dict(zip(values, found, strict=True)), rest) for found in product(*values.values())]
    if file is not None:
        check_new_file(file)
    rows: list[Record] = []
    for point in points:
        records: list[Record] = []
        token = _records.set(records)
        try:
            command(**point.asked, as_json=True)
        finally:
            _records.reset(token)
        (record,) = records
        rows.append({**point.values, **record, **point.about})
        if file is not None:
            write_csv(file, rows)
    if as_json:
        about = {"over": {n: list(v) for n, v in values.items()}, "points": rows, "command": command_line()}
        print(json_line(about), flush=True)
        return
    header = [*values, *(n for n in SHOWN if any(r.get(n) is not None for r in rows))]
    table = [
        ["" if r.get(n) is None else f"{r[n]:,.4g}" if isinstance(r[n], float) else r[n] for n in header] for r in rows
    ]
    kind = "simulated" if rows[0].get("simulated") else "estimated"
    show(grid(f"{len(rows)} points, {kind}", header, table), Console())
