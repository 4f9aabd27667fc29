"""Verilog of a whole accelerator, as every tool reads it."""

from __future__ import annotations

from tellme.golden.config import AcceleratorConfig
from tellme.hw import emit
from tellme.hw.platforms import platform_of
from tellme.hw.primitives import Inferred
from tellme.hw.top import Accelerator

_STYLE = ("CASEINCOMPLETE", "CASEOVERLAP", "WIDTHEXPAND", "WIDTHTRUNC")
"""Lint classes that Amaranth's Verilog trips without an error in function: it extends and cuts as its own rules say."""


def accelerator_verilog(
    config: AcceleratorConfig, name: str = "tellme", *, primitives: bool = False, sources: bool = False
) -> str:
    """Verilog of the accelerator `name`; ports `s_axi_*`, `m_axi_<port>_*`, `irq`, `clk`, `rst`.

    Parameters
    ----------
    primitives : instantiate vendor primitives (DSP48E2, RAM32M16) where the preset's board has them, for its vendor's
        tools: smaller and faster. Otherwise plain logic and inferred memory, which every tool reads.
    sources : of every signal and process the file and line that it comes from, in attributes `src`.
    """
    board = platform_of(config)
    platform = board if primitives else Inferred(ultra_ram=board is None or board.ultra_ram)
    quiet = "".join(f"/* verilator lint_off {name} */\n" for name in _STYLE)
    return quiet + emit.to_readable_verilog(Accelerator(config), name, platform, separator="_", sources=sources)
