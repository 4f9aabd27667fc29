"""`tellme synth`: the accelerator through Yosys for AMD UltraScale+, block by block, joined to a whole.

The top's RTLIL is cut at its blocks; each is flattened and mapped alone (`synth_xilinx -family xcup`), the top with its
blocks as black boxes, and the netlists are joined again. Results are kept in the cache (hw/cache.py) by the hash of the
RTLIL, so that a changed block costs only its own minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

from amaranth.hdl import Module
from amaranth.hdl._xfrm import TransformedElaboratable

from tellme.golden.boards import BOARDS, ZYNQMP, Board
from tellme.golden.config import AcceleratorConfig
from tellme.hw import cache as user_cache
from tellme.hw.emit import to_rtlil
from tellme.hw.platforms import platform_of
from tellme.hw.primitives import UltraScalePlus
from tellme.hw.synth import yosys
from tellme.hw.synth.inventory import check_columns, inventory
from tellme.hw.synth.levels import Levels
from tellme.hw.synth.levels import Path as LogicPath
from tellme.hw.synth.netlist import Resources, flatten
from tellme.hw.top import Accelerator

TOP = "tellme"
GLUE = "top"
"""Name of the block that is what the top itself holds: the wiring between the others."""

MAP = (
    "synth_xilinx -family {family} {options} -flatten -noiopad -noclkbuf -top {top} -run begin:map_luts",
    # In place of synth_xilinx's abc9, which stops with an assertion on some of our blocks (Yosys 0.70), and trades levels
    # for area: 10 levels and 108 LUT against 6 and 116 in attention.queries.
    "opt_expr -mux_undef -noclkinv",
    "abc -luts 2:2,3,6:5,10,20",
    "clean",
    "xilinx_srl -fixed -minlen 3",
    "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
    "xilinx_dffopt",
    "opt_lut_ins -tech xilinx",
    "clean",
    "blackbox =A:whitebox",
)
"""Yosys commands that map a design to AMD cells. {family}: xcup (UltraScale+) or xc7; {top}: its module; {options}: more of
synth_xilinx."""

Progress = Callable[[str, str], None]
"""Called with a block and what it does now: a Yosys pass, "cached" or "done"."""


@dataclass(frozen=True)
class Report:
    """Of a synthesis. total: of the whole top, None when single blocks were asked for. chip: what the board's has, by column.

    levels: longest path between registers that ends in each block. paths: the longest of each block.
    """

    board: str
    tool: str
    chip: dict[str, int]
    total: Resources | None
    blocks: dict[str, Resources]
    levels: dict[str, float]
    paths: dict[str, list[LogicPath]]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        blocks = {name: {**r.record(), "levels": self.levels.get(name, 0)} for name, r in self.blocks.items()}
        total = self.total and {**self.total.record(), "levels": max(self.levels.values())}
        return {"board": self.board, "tool": self.tool, "chip": self.chip, "total": total, "blocks": blocks}


class UnknownBlock(ValueError):
    """The accelerator has no block of that name; the message lists those there are."""


def synthesise(
    config: AcceleratorConfig,
    *,
    blocks: Sequence[str] = (),
    paths: int = 3,
    jobs: int = 1,
    progress: Progress = lambda block, step: None,
    cache: Path | None = None,
) -> Report:
    """Resources and logic levels of an accelerator.

    Parameters
    ----------
    blocks : only these: blocks of the top, or parts inside them ("attention.array"). None: the whole top.
    paths : longest paths kept of each block.
    jobs : Yosys processes at a time.

    Raises
    ------
    UnknownBlock : a name that is no block.
    hw.synth.inventory.ColumnError : a memory whose write columns would not map as counted.
    hw.synth.yosys.SynthesisError : Yosys failed.
    """
    check_blocks(config, blocks)
    yosys.version()
    progress(TOP, "elaboration")
    cache = cache or user_cache.prepare() / user_cache.syntheses().name
    modules = modules_of(_rtlil(config, cache))
    board = BOARDS.get(config.name)
    target = target_of(config)
    chip = {} if board is None else _chip(board)
    chosen = list(dict.fromkeys(blocks)) or [GLUE, *blocks_in(modules, TOP)]
    for name in chosen:
        if name != GLUE and f"{TOP}.{name}" not in modules:
            raise UnknownBlock(f"block {name!r} is unknown; {_known(blocks_in(modules, TOP))}")
    with ThreadPoolExecutor(jobs) as pool:
        try:
            found = pool.map(lambda b: mapped(modules, b, config.name, target, progress, cache), chosen)
            files = dict(zip(chosen, found, strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            yosys.stop()
            raise
    whole = not blocks
    progress(TOP, "levels")
    if whole:
        netlist = flatten(files.values(), TOP, glue=GLUE)
        resources, levels = netlist.resources(), Levels(netlist)
        longest = {b: levels.worst(paths, b) for b in resources}
        total = reduce(Resources.__add__, resources.values())
    else:
        resources, longest, total = {}, {}, None
        for name, path in files.items():
            part = flatten([path], TOP if name == GLUE else f"{TOP}.{name}", glue=GLUE)
            resources[name] = reduce(Resources.__add__, part.resources().values(), Resources())
            longest[name] = Levels(part).worst(paths)
    progress(TOP, "done")
    highest = {b: found[0].levels for b, found in longest.items() if found}
    return Report(config.name, yosys.version(), chip, total, resources, highest, longest)


def target_of(config: AcceleratorConfig) -> dict[str, str]:
    """What Yosys maps to: family, and options of synth_xilinx."""
    board = BOARDS.get(config.name)
    return {
        "family": "xcup" if board is None or board.ps == ZYNQMP else "xc7",
        "options": "-uram" if board is None or board.urams else "",
    }


def platform_for(config: AcceleratorConfig) -> object:
    """What a configuration is elaborated for: its board's chip, UltraScale+ without a board."""
    return platform_of(config) or UltraScalePlus()


def _parts(component: object, platform: object) -> dict[str, object] | None:
    """The named submodules of a component, none of which is elaborated; None of one that is no Amaranth module."""
    while isinstance(component, TransformedElaboratable):
        component = component._elaboratable_
    module = component.elaborate(platform)
    return {n: e for n, (e, _) in module._named_submodules.items()} if isinstance(module, Module) else None


def children(config: AcceleratorConfig, platform: object) -> dict[str, object]:
    """The blocks of an accelerator by name, none elaborated."""
    found = _parts(Accelerator(config), platform)
    assert found is not None
    return found


def check_blocks(config: AcceleratorConfig, blocks: Sequence[str]) -> None:
    """Refuses names of blocks without elaborating the whole accelerator.

    Raises
    ------
    UnknownBlock : a name that is no block.
    """
    if not set(blocks) - {GLUE}:
        return
    platform = platform_for(config)
    top = children(config, platform)
    for name in blocks:
        parts: dict[str, object] | None = top
        where = ""
        for part in name.split(".") if name != GLUE else ():
            if parts is None:
                break  # what is inside is known when it has been elaborated
            if part not in parts:
                inside = f"parts of {where} are {', '.join(parts)}" if where else _known(parts)
                raise UnknownBlock(f"block {name!r} is unknown; {inside}")
            where = f"{where}.{part}".lstrip(".")
            parts = _parts(parts[part], platform)


def _known(blocks: Iterable[str]) -> str:
    return f"there are {', '.join([GLUE, *blocks])}, and parts inside them (block.part)"


def _chip(board: Board) -> dict[str, int]:
    return {"lut": board.luts, "ff": board.ffs, "dsp": board.dsps, "ramb36": board.bram36, "uram": board.urams}


# ---- RTLIL


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


KEPT_SECONDS = 24 * 3600
"""After which a netlist that nobody used goes from the cache: other configurations and processes use those of the same board."""


def _taken(path: Path) -> bool:
    """Whether a file of the cache is there; it is used from now on."""
    with suppress(FileNotFoundError):
        os.utime(path)
        return True
    return False


def _forget(cache: Path, pattern: str) -> None:
    """Removes what has not been used for `KEPT_SECONDS`."""
    for old in cache.glob(pattern):
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                old.unlink()


def _rtlil(config: AcceleratorConfig, cache: Path) -> str:
    """RTLIL of the top, kept by the hash of the sources: elaboration takes a minute."""
    root = Path(__file__).resolve().parent.parent.parent
    files = [p for folder in ("golden", "hw") for p in sorted((root / folder).rglob("*.py"))]
    sources = [p.read_text() for p in files if p.parent.name != "synth"]
    parameters = repr([(f.name, getattr(config, f.name)) for f in fields(config)])
    path = cache / f"{config.name}-{digest(parameters, *sources)}.il"
    if not _taken(path):
        platform = platform_for(config)
        check_columns(inventory(Accelerator(config), platform).memories)
        text = to_rtlil(Accelerator(config), TOP, platform)
        _forget(cache, f"{config.name}-*.il")
        write(path, text)
    return path.read_text()


def modules_of(text: str) -> dict[str, str]:
    """Texts of the modules by name, without the numbers that Amaranth adds to module names (they change with others)."""
    text = re.sub(rf"\\{TOP}\b[\w.$]*", lambda name: re.sub(r"\$\d+(?=\.|$)", "", name[0]), text)
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^(?=(?:attribute [^\n]*\n)*module )", text):
        match = re.search(r"(?m)^module \\(\S+)", part)
        if match:
            assert match[1] not in found, f"two modules are called {match[1]}"
            found[match[1]] = part
    return found


def blocks_in(modules: dict[str, str], parent: str) -> list[str]:
    """Names of the modules right inside one."""
    prefix = f"{parent}."
    return [m[len(prefix) :] for m in modules if m.startswith(prefix) and "." not in m[len(prefix) :]]


def _black_box(name: str, text: str) -> str:
    """A module with the ports of `text` and no content."""
    ports = [line for line in text.splitlines() if re.match(r"\s*wire .*\b(input|output) \d+", line)]
    return "\n".join(["attribute \\blackbox 1", f"module \\{name}", *ports, "end", ""])


def block_text(modules: dict[str, str], block: str) -> tuple[str, str]:
    """(Name of its top module, RTLIL) of a block."""
    if block == GLUE:
        children = blocks_in(modules, TOP)
        return TOP, modules[TOP] + "".join(_black_box(f"{TOP}.{b}", modules[f"{TOP}.{b}"]) for b in children)
    top = f"{TOP}.{block}"
    return top, "".join(t for m, t in modules.items() if m == top or m.startswith(f"{top}."))


def mapped(
    modules: dict[str, str], block: str, board: str, target: dict[str, str], progress: Progress, cache: Path
) -> Path:
    """The JSON netlist of a block, from the cache or from Yosys."""
    top, text = block_text(modules, block)
    mapping = [command.format(top=f"\\{top}", **target) for command in MAP]
    script = ["read_rtlil block.il", *mapping, "write_json netlist.json"]
    kept = cache / f"{board}-{block}-{digest(yosys.version(), text, *script)}.json"
    if _taken(kept):
        progress(block, "cached")
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{block}-", dir=cache))
    try:
        (folder / "block.il").write_text(text)
        yosys.run(script, folder, progress=lambda step: progress(block, step))
        _forget(cache, f"{board}-{block}-*.json")
        os.replace(folder / "netlist.json", kept)
    except yosys.SynthesisError:
        raise  # the folder stays, with the log that the message names
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    progress(block, "done")
    return kept


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)


def save(report: Report, path: Path) -> None:
    """Writes the JSON of a report."""
    write(path, json.dumps(report.record(), indent=2) + "\n")
