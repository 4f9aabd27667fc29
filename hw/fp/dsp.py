"""The multipliers of AMD's UltraScale+ (DSP48E2, user guide UG579), with registers and cascades that inference leaves out.

Each function adds one to a module: as the primitive on UltraScalePlus, else as the same registers in plain logic.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value, signed

from tellme.hw.pipeline import delay_line
from tellme.hw.primitives import UltraScalePlus

CASCADE_BITS = 48
"""Of P, PCIN and PCOUT."""

CASCADE_SHIFT = 17
"""Bits that a cascade input may be shifted by: what one of two multipliers takes of a factor too wide for one."""

A_BITS, B_BITS = 27, 18
"""Of the factors, signed."""

# OPMODE is W (bits 8:7), Z (6:4), Y (3:2), X (1:0); UG579, tables of the OPMODE control bits.
OPMODE_M = 0b00_000_01_01
"""X and Y: the product."""

OPMODE_PCIN, OPMODE_C, OPMODE_PCIN_17 = 0b00_001_00_00, 0b00_011_00_00, 0b00_101_00_00
"""Z: the cascade input, C, or the cascade input shifted right by 17 bits (110 would be P shifted)."""

OPMODE_W_C = 0b11_000_00_00
"""W: C."""

INMODE_A, INMODE_D = 0b00000, 0b00110
"""What the pre-adder passes on: A with D off (bit 2), or D with A off (bit 1); UG579, table of the INMODE functions."""


def _dsp48e2(m: Module, name: str, registers: dict[str, int], options: dict[str, str], ports: dict[str, Any]) -> None:
    """An instance: register counts as named, 0 for the others; clock enables on; what is not connected is 0.

    Inputs that never change are constants of the instance, where `hw.synth.inventory` finds its mode.
    """
    stages = (
        "ACASCREG ADREG ALUMODEREG AREG BCASCREG BREG CARRYINREG CARRYINSELREG CREG DREG INMODEREG MREG OPMODEREG PREG"
    )
    widths = {
        "A": 30, "ACIN": 30, "ALUMODE": 4, "B": 18, "BCIN": 18, "C": 48, "CARRYCASCIN": 1, "CARRYIN": 1, "CARRYINSEL": 3,
        "D": 27, "INMODE": 5, "MULTSIGNIN": 1, "OPMODE": 9, "PCIN": 48,
    }  # fmt: skip
    inputs: dict[str, Value] = {port: C(0, width) for port, width in widths.items()}
    enables = ("A1", "A2", "AD", "ALUMODE", "B1", "B2", "C", "CARRYIN", "CTRL", "D", "INMODE", "M", "P")
    inputs |= {f"CE{e}": C(1, 1) for e in enables}
    inputs |= {f"RST{r}": C(0, 1) for r in "A ALLCARRYIN ALUMODE B C CTRL D INMODE M P".split()}
    outputs = {}
    for port, value in ports.items():
        if port in inputs:
            width = widths.get(port, 1)
            if isinstance(value, Const):
                inputs[port] = C(value.value & (1 << width) - 1, width)
                continue
            v = Signal(signed(width) if value.shape().signed else width, name=f"{name}_{port}")
            m.d.comb += v.eq(value)
            inputs[port] = v.as_unsigned()
        else:
            outputs[port] = value
    m.submodules[name] = Instance(
        "DSP48E2",
        **{f"p_{stage}": registers.get(stage, 0) for stage in stages.split()},
        **{f"p_{option}": value for option, value in options.items()},
        i_CLK=ClockSignal(),
        **{f"i_{port}": value for port, value in inputs.items()},
        **{f"o_{port}": value for port, value in outputs.items()},
    )


def positive(value: Value) -> Value:
    """An unsigned value as a signed one, for the multiplier's ports."""
    return Cat(value, C(0, 1)).as_signed()


def fits(a: Value, b: Value) -> bool:
    """Whether two signed factors are within the multiplier's ports."""
    return len(a) <= A_BITS and len(b) <= B_BITS


MULTIPLY_ADD_DELAY = 3
"""Cycles of `multiply_add` with one register on the factors: they, the product, the sum."""


def multiply_add(
    m: Module,
    platform: object,
    name: str,
    a: Value,
    b: Value,
    *,
    registers: int = 1,
    c: Value | None = None,
    c_registers: int = 1,
    cascade: Value | None = None,
    shift: int = CASCADE_SHIFT,
    width: int,
) -> tuple[Value, Value]:
    """a * b + c + (cascade >> shift).

    Cycles: `registers` (0..2) on a and b, one behind the multiplier, one behind the adder; `c_registers` (0 or 1) and
    one on c; one from the cascade.

    Parameters
    ----------
    a, b : signed, at most A_BITS and B_BITS. c : signed, at most 48 bits.
    cascade : second result of another call. shift : 17 or 0.
    width : bits of the sum, at most 48.

    Returns
    -------
    (sum, cascade for another call)

    Raises
    ------
    ValueError : for factors that are too wide or unsigned.
    """
    if not fits(a, b) or not a.shape().signed or not b.shape().signed:
        raise ValueError(
            f"{name}: factors must be signed, at most {A_BITS} and {B_BITS} bits, not {a.shape()}, {b.shape()}"
        )
    if isinstance(platform, UltraScalePlus):
        p, link = Signal(CASCADE_BITS, name=f"{name}_p"), Signal(CASCADE_BITS, name=f"{name}_cascade")
        ports: dict[str, Any] = {"A": a, "B": b, "P": p, "PCOUT": link}
        mode = OPMODE_M
        if c is not None:
            ports["C"], mode = c, mode | (OPMODE_C if cascade is None else OPMODE_W_C)
        if cascade is not None:
            ports["PCIN"], mode = cascade, mode | (OPMODE_PCIN_17 if shift else OPMODE_PCIN)
        ports["OPMODE"] = C(mode, 9)
        stages = dict.fromkeys(("AREG", "ACASCREG", "BREG", "BCASCREG"), registers) | {"MREG": 1, "PREG": 1}
        _dsp48e2(m, name, stages | {"CREG": c_registers}, {"USE_MULT": "MULTIPLY"}, ports)
        return p[:width].as_signed(), link
    a, b = delay_line(m, a, registers, f"{name}_a"), delay_line(m, b, registers, f"{name}_b")
    product = Signal(signed(len(a) + len(b)), name=f"{name}_m", reset_less=True)
    total = Signal(signed(width), name=f"{name}_p", reset_less=True)
    addend: Value = C(0, 1)
    if c is not None:
        addend = delay_line(m, c, c_registers, f"{name}_c")
    if cascade is not None:
        addend = addend + (cascade >> shift)
    m.d.sync += [product.eq(a * b), total.eq(product + addend)]
    return total, total


def multiply_chosen(
    m: Module,
    platform: object,
    name: str,
    *,
    a: Value,
    a_en: Value,
    d: Value,
    d_en: Value,
    use_d: Value,
    b: Value,
    cascade: Value | None,
    width: int,
) -> tuple[Value, Value]:
    """A link of a chain: one of two kept factors times a streamed one, plus the link before.

    a and d (signed, at most A_BITS) are kept when enabled, and chosen from in the cycle behind `use_d`; b (signed, at
    most B_BITS) is registered in that cycle, too. Then a cycle for the product and one for the sum.

    Parameters
    ----------
    cascade : the link before (second result of its call), of one cycle later; None at the start of a chain.
    width : bits of the sum in plain logic (48 in the primitive).

    Returns
    -------
    (sum, cascade for the next link)
    """
    if isinstance(platform, UltraScalePlus):
        p, link = Signal(CASCADE_BITS, name=f"{name}_p"), Signal(CASCADE_BITS, name=f"{name}_cascade")
        ports = {"A": a, "CEA2": a_en, "D": d, "CED": d_en, "B": b, "P": p, "PCOUT": link}
        ports |= {"INMODE": Mux(use_d, C(INMODE_D, 5), C(INMODE_A, 5))}
        ports |= {"OPMODE": C(OPMODE_M | (0 if cascade is None else OPMODE_PCIN), 9)}
        if cascade is not None:
            ports["PCIN"] = cascade
        registers = dict.fromkeys("ACASCREG ADREG AREG BCASCREG BREG DREG INMODEREG MREG PREG".split(), 1)
        _dsp48e2(m, name, registers, {"AMULTSEL": "AD", "USE_MULT": "MULTIPLY"}, ports)
        return p[:width].as_signed(), link
    kept_a = Signal(signed(len(a)), name=f"{name}_a", reset_less=True)
    kept_d = Signal(signed(len(d)), name=f"{name}_d", reset_less=True)
    factor = Signal(signed(max(len(a), len(d))), name=f"{name}_factor", reset_less=True)
    using_d = Signal(name=f"{name}_using_d", reset_less=True)
    operand = Signal(signed(len(b)), name=f"{name}_b", reset_less=True)
    product = Signal(signed(len(factor) + len(b)), name=f"{name}_m", reset_less=True)
    total = Signal(signed(width), name=f"{name}_p", reset_less=True)
    with m.If(a_en):
        m.d.sync += kept_a.eq(a)
    with m.If(d_en):
        m.d.sync += kept_d.eq(d)
    m.d.sync += [
        using_d.eq(use_d),
        factor.eq(Mux(using_d, kept_d, kept_a)),
        operand.eq(b),
        product.eq(factor * operand),
        total.eq(product if cascade is None else cascade + product),
    ]
    return total, total
