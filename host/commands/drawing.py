"""Drawings as SVG, for reports that are one file: blocks with their widths, roofline, bars, memory, what happened when.

Text and rectangles alone: no font, script or picture comes from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import BUSY, STALLS

if TYPE_CHECKING:
    from tellme.sim.trace import Trace

COLOURS = {
    "beats": "#3b6fb6",
    "memory": "#c44e52",
    "control": "#8c8c8c",
    "elementwise": "#dd8452",
    "attention": "#8172b3",
    "epilogue": "#937860",
    "drain": "#da8bc3",
}
"""Of a cycle with a beat, and of the causes of cycles without."""
_SERIES = ("#3b6fb6", "#55a868", "#dd8452", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#c44e52")
MOST_SPANS = 6000
"""Rectangles of a timeline: shorter ones are joined before a page becomes slow."""

Point = tuple[str, float, float, bool]
"""Of a roofline: name, operations a byte, operations a second, whether it is of this machine."""


def tag(name: str, text: str = "", **attributes: object) -> str:
    """An element; text is escaped."""
    return element(name, escape(text), **attributes)


def element(name: str, inside: str = "", **attributes: object) -> str:
    """An element around what is markup already."""
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for k, v in attributes.items())
    return f"<{name}{given}>{inside}</{name}>"


def svg(width: float, height: float, parts: Iterable[str], title: str) -> str:
    """A drawing, for a page; it grows with it. `alone` makes a file of it."""
    return element(
        "svg",
        tag("title", title) + "".join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        font_family="system-ui, sans-serif",
        font_size=12,
    )


def alone(drawing: str) -> str:
    """A drawing as a file of its own."""
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def number(value: float) -> str:
    """With commas; a fraction only where there is one."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.3g}"


def _text(x: float, y: float, text: str, **attributes: object) -> str:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", **attributes)


def _box(x: float, y: float, w: float, h: float, fill: str, note: str = "", **attributes: object) -> str:
    inside = tag("title", note) if note else ""
    return element(
        "rect", inside, x=f"{x:.2f}", y=f"{y:.2f}", width=f"{max(w, 0):.2f}", height=f"{h:.2f}", fill=fill, **attributes
    )


def si(value: float, unit: str = "") -> str:
    """A number in short: 16.0 G."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def size(count: int) -> str:
    """Bytes in KiB or MiB."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


# ---- architecture ----------------------------------------------------------------------------------------------------


def architecture(c: AcceleratorConfig) -> str:
    """The blocks of an accelerator, with the bits between them."""
    beat, lanes = 8 * c.beat_bytes, c.lanes
    boxes = {
        "DDR": (20, 40, 120, 440, ("model, cache,", "program, logits")),
        "StreamReader": (230, 40, 150, 84, (f"{c.ports} AXI4 masters", f"FIFO {c.fifo_beats:,} beats")),
        "BeatWriter": (230, 396, 150, 84, (f"{c.ports} AXI4 masters", f"{c.outstanding} bursts each")),
        "BeatRouter": (450, 40, 130, 84, ("by the executor",)),
        "TlmmEngine": (450, 180, 130, 96, (f"{c.beat_weights} weights a beat", f"{c.groups} groups of {c.group_size}", f"{lanes} lanes")),
        "Elementwise": (680, 180, 150, 96, (f"word of {c.word} int8", f"{c.max_features:,} features", f"{lanes} lanes")),
        "AttentionUnit": (680, 40, 150, 84, (f"{c.attention_lanes} queries x {c.keys_per_beat} keys", f"x {c.cell} dimensions")),
        "ScreenedHead": (450, 330, 130, 70, (f"{c.screen_entries:,} candidates",)),
        "KvWriter": (680, 396, 150, 84, ("and LogitWriter", f"cache of {'8 or 4' if c.narrow_cache else '8'} bits",)),
        "ControlUnit": (900, 180, 150, 96, ("registers, program", f"{c.max_descriptors} descriptors", "fetcher, executor")),
    }  # fmt: skip
    arrows = [
        ((140, 82), (230, 82), f"{c.ports} x {8 * c.port_bytes}"),
        ((380, 82), (450, 82), f"{beat}"),
        ((580, 82), (680, 82), f"{beat}"),
        ((515, 124), (515, 180), f"{beat}"),
        ((580, 228), (680, 228), f"{lanes} x {c.row_width}"),
        ((680, 256), (580, 256), f"{8 * c.word} int8"),
        ((740, 180), (740, 124), f"{8 * c.word} Q"),
        ((775, 124), (775, 180), "4 x 32"),
        ((515, 276), (515, 330), ""),
        ((755, 276), (755, 396), "K, V"),
        ((680, 438), (380, 438), f"{beat}"),
        ((230, 438), (140, 438), f"{c.ports} x {8 * c.port_bytes}"),
        ((900, 228), (830, 228), "jobs"),
        ((1140, 228), (1050, 228), "AXI4-Lite 32"),
    ]
    marker = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" '
        'markerUnits="userSpaceOnUse"><path d="M0,0L8,4L0,8z" fill="#2b4a6f"/></marker></defs>'
    )
    parts = [marker]
    for (x1, y1), (x2, y2), width in arrows:
        parts.append(
            tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke="#2b4a6f", stroke_width=2, marker_end="url(#arrow)")
        )
        if width:
            vertical = x1 == x2
            up = vertical and y2 < y1
            x, y = (x1 + (-6 if up else 6), (y1 + y2) / 2 + 4) if vertical else ((x1 + x2) / 2, y1 - 7)
            parts.append(
                _text(
                    x,
                    y,
                    width,
                    text_anchor="end" if up else "start" if vertical else "middle",
                    fill="#7a3b00",
                    font_size=11,
                )
            )
    for name, (x, y, w, h, lines) in boxes.items():
        fill = "#f7f1e3" if name == "DDR" else "#eef4fb"
        parts.append(_box(x, y, w, h, fill, rx=5, stroke="#2b4a6f"))
        top = y + h / 2 - 8 * len(lines) + 4
        parts.append(_text(x + w / 2, top, name, text_anchor="middle", font_weight="bold", font_size=13))
        parts += [
            _text(x + w / 2, top + 16 * (i + 1), line, text_anchor="middle", fill="#444", font_size=11)
            for i, line in enumerate(lines)
        ]
    parts.append(_text(20, 510, "Numbers at arrows are bits a cycle.", fill="#666"))
    return svg(1180, 520, parts, f"Architecture of {c.name}")


# ---- roofline --------------------------------------------------------------------------------------------------------


def roofline(points: Sequence[Point], compute: float, roofs: Mapping[str, float]) -> str:
    """Operations a second over operations a byte, both logarithmic.

    Parameters
    ----------
    compute : most operations a second. roofs : bytes/s, by name.
    """
    left, top, w, h = 70, 20, 560, 320
    xs = [p[1] for p in points]
    low_x, high_x = math.floor(math.log10(min(xs)) - 0.3), math.ceil(math.log10(max(xs)) + 0.7)
    high_y = math.ceil(math.log10(compute))
    low_y = math.floor(min(math.log10(p[2]) for p in points) - 0.2)

    def x(value: float) -> float:
        return left + w * (math.log10(value) - low_x) / (high_x - low_x)

    def y(value: float) -> float:
        return top + h * (high_y - math.log10(value)) / (high_y - low_y)

    parts = []
    for e in range(low_x, high_x + 1):
        parts.append(tag("line", x1=x(10.0**e), x2=x(10.0**e), y1=top, y2=top + h, stroke="#e4e4e4"))
        parts.append(_text(x(10.0**e), top + h + 18, f"{10.0**e:g}", text_anchor="middle", fill="#444"))
    for e in range(low_y, high_y + 1):
        parts.append(tag("line", x1=left, x2=left + w, y1=y(10.0**e), y2=y(10.0**e), stroke="#e4e4e4"))
        parts.append(_text(left - 8, y(10.0**e) + 4, si(10.0**e), text_anchor="end", fill="#444"))
    for number, (name, rate) in enumerate(roofs.items()):
        steps = [10 ** (low_x + i * (high_x - low_x) / 120) for i in range(121)]
        line = " ".join(
            f"{x(s):.1f},{y(min(compute, s * rate)):.1f}" for s in steps if min(compute, s * rate) >= 10.0**low_y
        )
        colour = ("#222222", "#aaaaaa", "#cccccc")[number % 3]
        parts.append(tag("polyline", points=line, fill="none", stroke=colour, stroke_width=2))
        parts.append(tag("line", x1=left + w + 20, x2=left + w + 44, y1=top + 8 + 18 * number, y2=top + 8 + 18 * number, stroke=colour, stroke_width=2))  # fmt: skip
        parts.append(_text(left + w + 52, top + 12 + 18 * number, f"{name}, {rate / 1e9:.1f} GB/s"))
    others = [p[0] for p in points if not p[3]]
    for place, (name, intensity, rate, ours) in enumerate(points):
        colour = _SERIES[0] if ours else "#888888"
        shape = {"cx": f"{x(intensity):.1f}", "cy": f"{y(rate):.1f}", "r": 6 if ours else 4, "fill": colour}
        parts.append(element("circle", tag("title", f"{name}: {si(rate)}op/s at {intensity:.2f} op/byte"), **shape))
        at = top + 20 + 18 * (len(roofs) + place)
        parts.append(tag("circle", cx=left + w + 32, cy=at - 4, r=6 if ours else 4, fill=colour))
        parts.append(_text(left + w + 52, at, name, font_weight="bold" if ours else "normal"))
        if not ours:
            letter = chr(97 + others.index(name))
            parts.append(_text(x(intensity) + 7, y(rate) + 4, letter, font_size=10, fill="#666"))
            parts.append(_text(left + w + 40, at, letter, font_size=10, fill="#666"))
    parts.append(_text(left + w / 2, top + h + 40, "operations a byte read", text_anchor="middle"))
    parts.append(
        tag("text", "operations a second", transform=f"translate(16 {top + h / 2}) rotate(-90)", text_anchor="middle")
    )
    return svg(1000, top + h + 50, parts, "Roofline")


# ---- bars ------------------------------------------------------------------------------------------------------------


def bars(rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], unit: str, title: str) -> str:
    """A stacked bar for each row; its parts by name, in the order of `colours`.

    unit : of the numbers; stands behind a row's sum.
    """
    left, w, height = 210, 620, 24
    most = max((sum(parts.values()) for parts in rows.values()), default=0) or 1
    parts = []
    shown = [n for n in colours if any(row.get(n) for row in rows.values())]
    for i, name in enumerate(shown):
        parts.append(_box(left + 105 * (i % 6), 4 + 18 * (i // 6), 12, 12, colours[name]))
        parts.append(_text(left + 105 * (i % 6) + 17, 14 + 18 * (i // 6), name, font_size=11))
    top = 14 + 18 * -(len(shown) // -6) if shown else 10
    for i, (row, values) in enumerate(rows.items()):
        at, y = float(left), top + height * i
        parts.append(_text(left - 8, y + 15, row, text_anchor="end"))
        for name in shown:
            width = w * values.get(name, 0) / most
            if width > 0:
                parts.append(
                    _box(at, y + 3, width, height - 7, colours[name], f"{row}, {name}: {number(values[name])} {unit}")
                )
                at += width
        parts.append(_text(at + 6, y + 15, f"{number(sum(values.values()))} {unit}", fill="#444", font_size=11))
    return svg(1000, top + height * len(rows) + 8, parts, title)


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name."""
    return {name: _SERIES[i % len(_SERIES)] for i, name in enumerate(names)}


def gauges(used: Mapping[str, tuple[float, float]]) -> str:
    """How much is used of how much there is, by name."""
    parts = []
    for i, (name, (value, limit)) in enumerate(used.items()):
        y, share = 8 + 28 * i, value / limit if limit else 0.0
        parts.append(_text(92, y + 15, name, text_anchor="end"))
        parts.append(_box(100, y, 560, 20, "#eeeeee"))
        parts.append(_box(100, y, 560 * min(share, 1), 20, "#c44e52" if share > 0.9 else "#3b6fb6", f"{share:.1%}"))
        parts.append(_text(670, y + 15, f"{value:,g} of {limit:,g} ({share:.1%})"))
    return svg(1000, 12 + 28 * len(used), parts, "Use of the chip")


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(regions: Sequence[tuple[str, int, int]], beat_bytes: int) -> str:
    """Regions of the buffer (name, first beat, beats) along one line, to scale but for the least that can be seen."""
    left, w = 20, 960
    total = sum(n for _, _, n in regions) or 1
    colours = palette(name for name, _, _ in regions)
    least = 6.0
    free = w - least * len(regions)
    parts, at = [], float(left)
    for i, (name, start, beats) in enumerate(regions):
        width = least + free * beats / total
        note = f"{name}: beats {start:,} to {start + beats - 1:,}, {beats * beat_bytes:,} bytes"
        parts.append(_box(at, 30, width, 46, colours[name], note, stroke="white"))
        if width > 70:
            parts.append(_text(at + width / 2, 58, name, text_anchor="middle", fill="white", font_weight="bold"))
        column, row = i % 3, i // 3
        parts.append(_box(left + 325 * column, 96 + 22 * row, 12, 12, colours[name]))
        parts.append(
            _text(
                left + 325 * column + 18,
                106 + 22 * row,
                f"{name}: beat {start:,}, {size(beats * beat_bytes)}",
            )
        )
        at += width
    parts.append(_text(left, 20, f"one buffer of {size(total * beat_bytes)}"))
    return svg(1000, 104 + 22 * -(len(regions) // -3), parts, "Memory")


def phases(kib: Sequence[int], period: int = 64) -> str:
    """Where the ports' regions begin, modulo the period of the memory's banks (KiB)."""
    parts = [_box(60, 20, 900, 16, "#eeeeee")]
    for i in range(0, period + 1, 8):
        x = 60 + 900 * i / period
        parts.append(tag("line", x1=x, x2=x, y1=16, y2=40, stroke="#cccccc"))
        parts.append(_text(x, 54, f"{i}", text_anchor="middle", fill="#444", font_size=11))
    for i, start in enumerate(kib):
        x = 60 + 900 * (start % period) / period
        parts.append(_box(x - 2, 12, 4, 32, _SERIES[i % len(_SERIES)], f"port {i}: {start} KiB"))
        parts.append(_text(x + 5, 12, f"port {i}", font_size=11))
    return svg(1000, 60, parts, "Regions of the ports, KiB modulo 64")


# ---- what happened when ----------------------------------------------------------------------------------------------


def _joined(spans: Sequence[tuple[int, int, str]], least: float) -> list[tuple[int, int, str]]:
    """Spans of a track, with those of one name joined whose gap cannot be seen."""
    out: list[tuple[int, int, str]] = []
    for start, end, name in spans:
        if out and out[-1][2] == name and start - out[-1][1] <= least:
            out[-1] = (out[-1][0], end, name)
        else:
            out.append((start, end, name))
    return out


def timeline(trace: Trace, start: int, end: int, *, fifo: int, title: str) -> str:
    """Units, descriptors, cycles without a beat and the FIFO's level in cycles [start, end) of a pass.

    fifo : its depth, beats.
    """
    left, w, height = 110, 870, 24
    length = max(end - start, 1)
    tracks = ["descriptor", *BUSY, "no beat"]
    short = palette({s.name.split()[-1]: None for s in trace.spans if s.track == "descriptor"})
    parts = []

    def x(cycle: float) -> float:
        return left + w * (min(max(cycle, start), end) - start) / length

    for i, track in enumerate(tracks):
        y = 26 + height * i
        parts.append(_text(left - 8, y + 15, track, text_anchor="end"))
        parts.append(_box(left, y + 2, w, height - 5, "#f5f5f5"))
        spans = sorted(
            (s.start, s.end, s.name) for s in trace.spans if s.track == track and s.end > start and s.start < end
        )
        found = _joined(spans, length / 2000)
        if len(found) > MOST_SPANS // len(tracks):
            found = _joined(found, length / 300)
        for first, last, name in found:
            colour = {"descriptor": short.get(name.split()[-1], "#888"), "no beat": COLOURS.get(name, "#888")}
            note = f"{name}: cycles {first:,} to {last:,} ({last - first:,})"
            width = max(x(last) - x(first), 0.4)
            parts.append(_box(x(first), y + 2, width, height - 5, colour.get(track, "#3b6fb6"), note))
            if track == "descriptor" and width > 7 * len(name):
                parts.append(
                    _text((x(first) + x(last)) / 2, y + 16, name, text_anchor="middle", fill="white", font_size=11)
                )
    top, tall = 34 + height * len(tracks), 80
    parts.append(_text(left - 8, top + 12, f"FIFO {fifo:,}", text_anchor="end"))
    parts.append(_text(left - 8, top + tall, "0", text_anchor="end"))
    parts.append(_box(left, top, w, tall, "#f5f5f5"))
    parts.append(tag("polygon", points=_level(trace, start, end, x, top, tall, fifo), fill="#9db9dd"))
    for i in range(6):
        cycle = start + length * i // 5
        parts.append(tag("line", x1=x(cycle), x2=x(cycle), y1=22, y2=top + tall, stroke="#00000022"))
        parts.append(_text(x(cycle), 14, f"{cycle:,}", text_anchor="middle", fill="#444", font_size=11))
    causes = [s for s in STALLS if any(t.track == "no beat" and t.name == s for t in trace.spans)]
    for i, cause in enumerate(causes):
        parts.append(_box(left + 150 * i, top + tall + 14, 12, 12, COLOURS[cause]))
        parts.append(_text(left + 150 * i + 17, top + tall + 24, f"no beat: {cause}", font_size=11))
    return svg(1000, top + tall + 34, parts, title)


def _level(trace: Trace, start: int, end: int, x: object, top: float, tall: float, fifo: int) -> str:
    """Corners of the FIFO's level, at most a thousand."""
    assert callable(x)
    shown = [(int(c), int(v)) for c, v in zip(trace.level_cycles, trace.levels, strict=True) if start <= c < end]
    shown = shown[:: max(1, len(shown) // 1000)] or [(start, 0)]
    corners = [f"{x(c):.1f},{top + tall * (1 - min(v / max(fifo, 1), 1)):.1f}" for c, v in shown]
    return " ".join([f"{x(shown[0][0]):.1f},{top + tall}", *corners, f"{x(shown[-1][0]):.1f},{top + tall}"])
