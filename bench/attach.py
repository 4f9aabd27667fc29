"""Proves a ready-made set of AXI properties of a design: `python -m bench.attach --side slave --module faxil_slave faxil_slave.v`. See docs/verilog.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.formal import said
from tellme.hw.synth.yosys import SynthesisError
from tests.formal.attach import prove_attached


def main() -> None:
    """Prints what the model checker says; ends with an error unless the properties hold."""
    parser = argparse.ArgumentParser(description="Proves a ready-made set of AXI properties of a design.")
    parser.add_argument(
        "--side",
        choices=["master", "slave"],
        required=True,
        help="the memory port (AXI4), or the registers (AXI4-Lite)",
    )
    parser.add_argument(
        "--module", required=True, help="the properties' module, with ports as ZipCPU's wb2axip names them"
    )
    parser.add_argument(
        "--parameters", default="", help='of the module, as in "#(...)": ".F_AXI_MAXWAIT(0), .F_LGDEPTH(6)"'
    )
    parser.add_argument("--depth", type=int, help="cycles from the start (without: a proof without bound)")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("sources", type=Path, nargs="+", help="Verilog files of the properties")
    a = parser.parse_args()
    if missing := [str(s) for s in a.sources if not s.is_file()]:
        raise SystemExit(f"{', '.join(missing)}: no such file; name the Verilog files that hold module {a.module}")
    try:
        r = prove_attached(
            a.side == "master", a.module, a.sources, parameters=a.parameters, depth=a.depth, seconds=a.seconds
        )
    except SynthesisError as e:
        raise SystemExit(f"Yosys does not take the properties: {str(e).split(' | ')[-1]}") from None
    print(f"{a.module}: {said(r)}, {r.registers} registers, {r.inputs} inputs, {r.seconds:.0f} s")
    if not r.proved:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
