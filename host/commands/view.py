"""`tellme view`: a layer's trace as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tellme.host.commands import drawing, traces
from tellme.host.commands.page import page
from tellme.host.errors import UserError
from tellme.host.places import check_new_file, replacing
from tellme.host.provenance import json_line


def command(
    trace: Annotated[Path, typer.Argument(help="What tellme bench --trace wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Picture: .svg, or .html with the figures below it.")],
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="A layer's number, load, 'screened head', head or end; everything if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Draw what every unit did in a layer, cycle by cycle: descriptors, units, cycles without a beat, level of the FIFO."""
    if out.suffix not in (".svg", ".html"):
        raise UserError(f"--out must end in .svg or .html, not {out.name!r}")
    check_new_file(out)
    found, title = traces.read(trace)
    parts = traces.layers(found)
    if layer is not None and layer not in parts:
        raise UserError(f"--layer: the trace has no {layer!r}; there are {', '.join(parts)}")
    start, end = (0, found.cycles) if layer is None else parts[layer]
    name = title if layer is None else f"{title}: {'layer ' if layer.isdigit() else ''}{layer}"
    deepest = max((int(v) for v in found.levels), default=1)
    picture = drawing.timeline(found, start, end, fifo=deepest, title=name)
    within = {k: v for k, v in traces.causes(found).items() if layer is None or traces.layer_of(k) == layer}
    if out.suffix == ".html":
        chart = drawing.bars(within, drawing.COLOURS, "cycles", "Where the cycles go")
        picture = page(name, [("When", "", picture), ("Where the cycles go", "", chart)])
    with replacing(out) as whole:
        whole.write_text(picture if out.suffix == ".html" else drawing.alone(picture))
    cycles = {"beats": 0.0}
    for counts in within.values():
        for cause, n in counts.items():
            cycles[cause] = cycles.get(cause, 0.0) + n
    if as_json:
        print(
            json_line(
                {
                    "out": str(out),
                    "layer": layer,
                    "start": start,
                    "end": end,
                    "layers": list(parts),
                    "cycles": {k: int(v) for k, v in cycles.items()},
                }
            )
        )
        return
    said = ", ".join(f"{k} {int(v):,}" for k, v in cycles.items() if v)
    print(f"{out}: {name}, cycles {start:,} to {end:,} ({said})")
