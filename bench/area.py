"""`python -m bench.area`: synthesises the points that the area model is fitted to, and writes hw/synth/points.json.

A point is a preset with changes; each of its blocks is mapped as `tellme synth` maps it. Blocks of the same RTLIL are mapped once, and
what is found is kept beside the cache of syntheses, so that a run goes on where the last one stopped. All of it costs hours on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.hw import cache as user_cache
from tellme.hw.emit import to_rtlil
from tellme.hw.synth import synthesis, yosys
from tellme.hw.synth.estimate import POINTS, counts
from tellme.hw.synth.netlist import Resources, flatten
from tellme.hw.top import Accelerator

TLMM, ATTENTION, ELEMENTWISE = ("tlmm",), ("attention",), ("elementwise",)
MIDDLE = ("registers", "kv_writer", "reader", "fetcher", "screened_head", "writer", "executor")
LARGE = (*TLMM, *ATTENTION, *ELEMENTWISE)
Place = tuple[str, dict[str, Any], tuple[str, ...]]
ONE = {"lanes": 1, "attention_lanes": 1, "narrow_cache": False}

PLACES: list[Place] = [
    ("tiny", {}, TLMM),
    ("tiny", {"ports": 4, "lanes": 2, "group_size": 4}, TLMM),
    ("tiny", {"lanes": 2, "group_size": 2}, TLMM),
    ("tiny", {**ONE, "group_size": 5}, TLMM),
    ("tiny", {}, ATTENTION),
    ("tiny", {}, ELEMENTWISE),
    ("tiny", {"ports": 2, "lanes": 4, "group_size": 5}, TLMM),
    ("tiny", {"lanes": 16, "group_size": 3, "block_rows": 512}, TLMM),
    ("tiny", {**ONE, "ports": 2, "max_hidden": 1024, "max_features": 4096}, ELEMENTWISE),
    ("tiny", {"ports": 2, "lanes": 2, "attention_lanes": 4, "max_context": 1024}, ATTENTION),
    ("tiny", {}, ()),
    ("tiny", {"ports": 4, "lanes": 4, "group_size": 2}, TLMM),
    ("tiny", {"lanes": 8, "group_size": 4}, TLMM),
    ("tiny", {**ONE}, ATTENTION),
    ("tiny", {"lanes": 8}, ELEMENTWISE),
    ("tiny", {"ports": 2, "lanes": 2, "fifo_beats": 1024, "outstanding": 4}, MIDDLE),
    ("tiny", {**ONE, "ports": 4, "group_size": 3}, TLMM),
    ("tiny", {"ports": 4, "lanes": 8, "attention_lanes": 2}, ATTENTION),
    ("tiny", {"ports": 4, "lanes": 4}, ELEMENTWISE),
    ("tiny", {"ports": 4, "lanes": 16, "fifo_beats": 4096}, MIDDLE),
    ("tiny", {"lanes": 8, "attention_lanes": 8}, ATTENTION),
    ("kv260", {}, LARGE),
    ("kv260", {}, ()),
    ("tiny", {**ONE, "group_size": 3}, TLMM),
    ("tiny", {"ports": 2, "lanes": 2, "group_size": 4}, TLMM),
    ("tiny", {"ports": 2, "lanes": 8, "group_size": 3}, TLMM),
    ("tiny", {"ports": 4, "lanes": 4, "group_size": 3}, TLMM),
    ("tiny", {**ONE, "ports": 2, "group_size": 5}, TLMM),
    ("tiny", {"lanes": 4, "group_size": 5}, TLMM),
    ("tiny", {"ports": 4, "lanes": 2, "group_size": 5}, TLMM),
    ("tiny", {"ports": 2, "lanes": 4, "group_size": 2}, TLMM),
    ("tiny", {"ports": 4, "lanes": 8, "group_size": 3, "block_rows": 512}, TLMM),
    ("tiny", {**ONE, "group_size": 4}, TLMM),
    ("tiny", {"ports": 2, "lanes": 16, "group_size": 4}, TLMM),
    ("tiny", {"lanes": 2, "group_size": 5}, TLMM),
    ("tiny", {**ONE, "ports": 4, "group_size": 5}, TLMM),
    ("tiny", {"ports": 2, "fifo_beats": 8192, "max_hidden": 512}, ("reader", "registers")),
]
"""Presets with changes, and which blocks; (): all but the largest three. In the order of what they tell."""


def place(preset: str, changes: dict[str, Any]) -> AcceleratorConfig:
    """All are without `ternary_head`, which the presets of boards are."""
    return replace(PRESETS[preset], **{"ternary_head": False, **changes})


def measure(config: AcceleratorConfig, only: tuple[str, ...], store: Path, cache: Path) -> dict[str, dict[str, float]]:
    """Resources of blocks of a configuration: `only` these, or all but the largest."""
    known: dict[str, dict[str, float]] = json.loads(store.read_text()) if store.exists() else {}
    target = synthesis.target_of(config)
    modules = synthesis.modules_of(to_rtlil(Accelerator(config), synthesis.TOP, synthesis.platform_for(config)))
    blocks: dict[str, dict[str, float]] = {}
    every = [synthesis.GLUE, *synthesis.blocks_in(modules, synthesis.TOP)]
    for block in only or [b for b in every if b not in LARGE]:
        key = synthesis.digest(yosys.version(), synthesis.block_text(modules, block)[1], json.dumps(target))
        if key not in known:
            began = time.monotonic(), os.times().children_user
            path = synthesis.mapped(modules, block, config.name, target, lambda *_: None, cache)
            top = synthesis.TOP if block == synthesis.GLUE else f"{synthesis.TOP}.{block}"
            netlist = flatten([path], top, glue=synthesis.GLUE)
            found = reduce(Resources.__add__, netlist.resources().values(), Resources()).record()
            known[key] = {m: found[m] for m in ("lut", "ff", "dsp", "ramb36", "uram")}
            synthesis.write(store, json.dumps(known))
            took = time.monotonic() - began[0], os.times().children_user - began[1]
            print(f"  {block}: {known[key]}, {took[0]:.0f} s, {took[1]:.0f} CPU s", file=sys.stderr, flush=True)
        blocks[block] = known[key]
    return blocks


def save(points: list[dict[str, Any]], path: Path) -> None:
    """Writes points, one a line."""
    synthesis.write(path, "[\n" + ",\n".join(json.dumps(p) for p in points) + "\n]\n")


SAME = ("add", "dsp", "ramb36", "uram")
"""Counts that say whether a block is still the one that was synthesised."""


def recount(point: dict[str, Any]) -> None:
    """Counts the blocks of a point anew, as far as they are what was synthesised: after a change of what is counted."""
    found = counts(AcceleratorConfig(**point["config"]), point["counts"])
    for name, old in point["counts"].items():
        new = {k: round(v, 2) for k, v in found[name].items()}
        off = [k for k in SAME if abs(new[k] - old[k]) > 0.001 * old[k]]
        if off:
            print(f"{name}: kept as it was, since the block has changed ({', '.join(off)})", file=sys.stderr)
        else:
            point["counts"][name] = new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", action="store_true", help="synthesise nothing; count the points anew")
    parser.add_argument("--only", help="places of the list, as 0,3")
    parser.add_argument("--out", type=Path, default=POINTS)
    given = parser.parse_args()
    cache = user_cache.prepare() / user_cache.syntheses().name
    chosen = [int(n) for n in given.only.split(",")] if given.only else range(len(PLACES))
    points = json.loads(given.out.read_text()) if given.out.exists() else []
    if given.count:
        for point in points:
            recount(point)
        save(points, given.out)
        return
    for n in chosen:
        config = place(*PLACES[n][:2])
        print(f"{n}: {PLACES[n]}", file=sys.stderr, flush=True)
        blocks = measure(config, PLACES[n][2], cache / "area.json", cache)
        mine = next((p for p in points if AcceleratorConfig(**p["config"]) == config), None)
        if mine is None:
            points.append(mine := {"config": asdict(config), "counts": {}, "blocks": {}})
        mine["blocks"].update(blocks)
        for name, found in counts(config, blocks).items():
            mine["counts"][name] = {k: round(v, 2) for k, v in found.items()}
        save(points, given.out)


if __name__ == "__main__":
    main()
