"""Pictures of a measurement: roofline with the published systems, where the time goes, level of the FIFO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tellme.golden.boards import BOARDS, KV260
from tellme.golden.config import AcceleratorConfig
from tellme.golden.model import ModelSpec
from tellme.golden.project import advice
from tellme.golden.registers import STALLS
from tellme.golden.shapes import SHAPES
from tellme.host.commands import traces
from tellme.host.commands.drawing import COLOURS
from tellme.host.errors import UserError
from tellme.host.machine.measurement import Measurement
from tellme.host.places import check_new_folder, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED = (
    ("TeLLMe v1, decode", "bitnet-0.7b", 9.0),
    ("TeLLMe v2, decode", "bitnet-0.7b", 25.0),
    ("PD-Swap, decode", "bitnet-0.7b", 27.0),
    ("TeLLMe v2, 128 tokens", "bitnet-0.7b", 128 / 0.96),
    ("bitnet-kv260, decode", "bitnet-0.7b", 44.2),
    ("bitnet-kv260, decode", "bitnet-2b", 18.57),
    ("bitnet-kv260, prefill", "bitnet-2b", 28.8),
)
"""Tokens/s measured by others on a KV260: arXiv 2504.16266, 2510.15926, 2512.11550, the public repository bitnet-kv260."""


def operations(spec: ModelSpec) -> int:
    """Operations of a token, a multiply-add counted as two: linear layers and output head, without attention."""
    return 2 * (spec.layers * spec.layer_weights + spec.vocab * spec.hidden)


def weight_bytes(spec: ModelSpec) -> float:
    """Bytes of a token's weights: 1.6 bits a ternary weight, 8 an element of the head."""
    return spec.layers * spec.layer_weights / 5 + spec.vocab * spec.hidden


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as e:
        raise UserError(f"pictures need matplotlib ({e}); install it: {advice('sim')}") from e
    matplotlib.use("svg")
    # The same picture from the same figures.
    matplotlib.rcParams |= {
        "svg.hashsalt": "tellme",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot

    return pyplot


def _roofline(ax: Axes, measured: Measurement, beside: Sequence[Measurement] = ()) -> None:
    c: AcceleratorConfig = measured.config
    spec = SHAPES[measured.model]
    compute = 2.0 * c.lanes * c.beat_weights * c.clock_hz
    beat_rate = float(c.beat_bytes * c.clock_hz)
    peak = float(BOARDS.get(c.name, KV260).ddr_peak)
    x = [10 ** (i / 50 - 0.5) for i in range(176)]  # 0.3 to 1,000
    ax.plot(x, [min(compute, i * peak) for i in x], color="#bbbbbb", label=f"DDR peak {peak / 1e9:.1f} GB/s")
    ax.plot(x, [min(compute, i * beat_rate) for i in x], color="black", label=f"beat rate {beat_rate / 1e9:.1f} GB/s")
    for name, model, rate in PUBLISHED:
        s = SHAPES[model]
        # Prefill reads the weights once for several tokens; how many is not published: drawn as decode's intensity.
        ax.plot(
            operations(s) / weight_bytes(s),
            rate * operations(s),
            "x",
            markersize=6,
            label=f"{name}, {rate:.0f} tok/s (board)",
        )
    for m in (measured, *beside):
        ax.plot(
            operations(spec) / (m.decode.beats * c.beat_bytes),
            m.tokens_per_s * operations(spec),
            "o",
            label=f"this, decode, {m.context:,} keys{_choice(m)}, {m.tokens_per_s:.0f} tok/s (simulated)",
        )
    if measured.prefill:
        tokens = sum(p.lanes for p in measured.prefill)
        linear = 2 * spec.layers * spec.layer_weights * tokens + 2 * spec.vocab * spec.hidden
        seconds = sum(p.cost.cycles for p in measured.prefill) / c.clock_hz
        read = sum(p.cost.beats for p in measured.prefill) * c.beat_bytes
        ax.plot(linear / read, linear / seconds, "s", label=f"this, prefill, {tokens / seconds:.0f} tok/s (simulated)")
    ax.set(xscale="log", yscale="log", xlabel="operations a byte read", ylabel="operations a second")
    ax.set_title(f"Roofline: {measured.model} on {c.name}")
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def _choice(m: Measurement) -> str:
    """Head and cache, where they are not the usual ones."""
    return ", screened head" * bool(m.candidates) + f", KV {m.kv.name}" * (m.kv.name != "8")


def _breakdown(ax: Axes, measured: Measurement) -> None:
    trace = measured.trace
    assert trace is not None
    parts = [
        s for s in trace.spans if s.track == "descriptor" and not s.name.startswith("layer 0") and s.end - s.start > 100
    ]
    found = traces.causes(trace)
    causes = [found[p.name] for p in parts]
    names = [p.name.removeprefix("layer 1 ") for p in parts]
    left = [0.0] * len(parts)
    for cause in ("beats", *STALLS):
        widths = [c[cause] for c in causes]
        if any(widths):
            ax.barh(names, widths, left=left, color=COLOURS[cause], label=cause)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.invert_yaxis()
    ax.set(xlabel="cycles", xscale="symlog" if max(left) > 50 * min(left) else "linear")
    ax.set_title(f"Where the cycles go: load, one layer and head, decode, {measured.context} keys")
    ax.legend(fontsize=7, frameon=False)


def _level(ax: Axes, measured: Measurement) -> None:
    trace = measured.trace
    assert trace is not None
    head = next(s for s in trace.spans if s.track == "descriptor" and s.name == "head")
    end = min(trace.cycles, head.start + 20_000)
    shown = trace.level_cycles < end
    ax.plot(trace.level_cycles[shown], trace.levels[shown], linewidth=0.8, color=COLOURS["beats"])
    top = measured.config.fifo_beats
    for i, s in enumerate(s for s in trace.spans if s.track == "descriptor"):
        if s.end - s.start > 2000 and s.start < end:
            ax.axvspan(s.start, min(s.end, end), color="#eeeeee" if i % 2 else "white", zorder=0)
            ax.text((s.start + min(s.end, end)) / 2, top * 1.02, s.name, fontsize=6, rotation=60, ha="left")
    ax.set(xlabel="cycle", ylabel="beats in the emptiest port's FIFO", ylim=(0, top))
    ax.set_title(f"Level of the weight buffer: two layers, decode, {measured.context} keys", pad=48)


def prepare(folder: Path) -> None:
    """Looks at the place of the pictures, so that a long measurement is not begun in vain.

    Raises
    ------
    UserError : matplotlib is not installed, or the folder cannot be written.
    """
    _pyplot()
    check_new_folder(folder)


def draw(measured: Measurement, folder: Path, beside: Sequence[Measurement] = ()) -> list[Path]:
    """Writes `<model>-roofline.svg`, `<model>-breakdown.svg`, `<model>-fifo.svg`; the measurement must hold a trace.

    Parameters
    ----------
    beside : decode passes of the same model on the same accelerator, for the roofline.

    Raises
    ------
    UserError : as `prepare`.
    """
    prepare(folder)
    plt = _pyplot()
    out = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        roofline = partial(_roofline, beside=beside)
        for name, paint in (("roofline", roofline), ("breakdown", _breakdown), ("fifo", _level)):
            figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
            paint(ax, measured)
            path = folder / f"{measured.model}-{name}.svg"
            with replacing(path) as whole:
                figure.savefig(whole, format="svg", metadata={"Date": None})
            plt.close(figure)
            out.append(path)
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror})") from e
    return out
