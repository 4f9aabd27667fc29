"""Pairs of models of a primitive in one simulation: the same random inputs, their outputs compared clock by clock.

A pair is our model in a mode, and a reference that somebody else wrote: AMD's model of the same primitive, or what
Yosys's model of its predecessor DSP48E1 does (same codes of INMODE and of OPMODE's X, Y, Z; no W; 25 x 18 bits).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly

from tellme.hw.synth.inventory import Primitive
from tellme.sim.runner import PRIMITIVES, build, parameters, run
from tests.primitives.designs import designs

CYCLES = 6_000
WIDTHS = {
    "A": 30, "ACIN": 30, "B": 18, "BCIN": 18, "C": 48, "D": 27, "PCIN": 48, "OPMODE": 9, "INMODE": 5, "ALUMODE": 4,
    "CARRYINSEL": 3, "CARRYIN": 1, "CARRYCASCIN": 1, "MULTSIGNIN": 1,
    **{f"CE{e}": 1 for e in "A1 A2 AD ALUMODE B1 B2 C CARRYIN CTRL D INMODE M P".split()},
    **{f"RST{r}": 1 for r in "A ALLCARRYIN ALUMODE B C CTRL D INMODE M P".split()},
}  # fmt: skip
"""Inputs of a DSP48E2 but the clock."""

OUTPUTS = {"P": 48, "PCOUT": 48, "ACOUT": 30, "BCOUT": 18}

REGISTERS = {
    "ADREG": 1, "ALUMODEREG": 1, "AREG": 2, "BREG": 2, "CARRYINREG": 1, "CARRYINSELREG": 1, "CREG": 1, "DREG": 1,
    "INMODEREG": 1, "MREG": 1, "OPMODEREG": 1, "PREG": 1,
}  # fmt: skip
"""Most registers of each kind; ACASCREG and BCASCREG besides."""

M, P_Z, P17_Z = 0b0101, 0b010, 0b110
MODES = [w << 7 | z << 4 | xy for w in (0, 3) for z in (0, 1, 2, 3, 5, 6) for xy in (0, M)]
"""Of OPMODE, that our model takes: W is 0 or C; Z is 0, PCIN, P, C, PCIN >> 17 or P >> 17; X and Y are 0 or the product."""

INMODES = [0b00000, 0b00010, 0b00100, 0b00110]
"""Of INMODE, that our model takes: A and D each on or off."""


@dataclass(frozen=True)
class Mode:
    """A mode of a DSP48E2: its parameters, and the inputs that never change. The other inputs get random values."""

    parameters: tuple[tuple[str, int | str], ...]
    constants: tuple[tuple[str, int], ...]

    def parameter(self, name: str) -> int | str:
        default = {"AMULTSEL": "A", "A_INPUT": "DIRECT", "B_INPUT": "DIRECT", "USE_MULT": "MULTIPLY"}
        return dict(self.parameters).get(name, default.get(name, 1))

    def constant(self, name: str) -> int | None:
        return dict(self.constants).get(name)


QUIET = tuple((k, 0) for k in WIDTHS if k.startswith("RST") or k in ("ALUMODE", "CARRYINSEL", "CARRYIN"))
"""Control inputs that our model takes as 0 only."""


def used() -> Counter[Primitive]:
    """Primitives of the accelerators of all presets, and of the bench of the floating-point units."""
    found: Counter[Primitive] = Counter()
    for design in designs().values():
        found += design.primitives
    return found


def used_modes() -> list[Mode]:
    """Modes of their DSP48E2; data that is constant there is random here."""
    data = {"A", "B", "C", "D", "ACIN", "BCIN", "PCIN", "CARRYCASCIN", "MULTSIGNIN"}
    modes = {
        Mode(p.parameters, tuple((k, v) for k, v in p.constants if k not in data))
        for p in used()
        if p.type == "DSP48E2"
    }
    return sorted(modes, key=repr)


def drawn_modes(seed: int, count: int, *, w: bool = False) -> list[Mode]:
    """Modes that our model takes: any registers, OPMODE that changes every cycle or, with `w`, one with W = C."""
    rng = random.Random(seed)
    modes = []
    for n in range(count):
        registers: dict[str, int | str] = {k: rng.randint(0, most) for k, most in REGISTERS.items()}
        for x in "AB":
            stages = int(registers[f"{x}REG"])
            registers[f"{x}CASCREG"] = rng.choice([1, 2]) if stages == 2 else stages
            registers[f"{x}_INPUT"] = rng.choice(["DIRECT", "CASCADE"])
        registers["AMULTSEL"] = ("A", "AD")[n % 2]
        constants = dict(QUIET)
        if w:
            z = [0, 1, 2, 3, 5, 6][n // 2 % 6]
            if z in (P_Z, P17_Z):
                registers["PREG"] = 1
            registers["OPMODEREG"] = 0
            constants["OPMODE"] = 3 << 7 | z << 4 | (M if n % 3 else 0)
        modes.append(Mode(tuple(registers.items()), tuple(constants.items())))
    return modes


def _list(pairs: Sequence[tuple[str, object]]) -> str:
    return ", ".join(f".{k}({v})" for k, v in pairs)


def _parameters(pairs: Sequence[tuple[str, int | str]]) -> str:
    return _list([(k, f'"{v}"' if isinstance(v, str) else v) for k, v in pairs])


def _inputs(mode: Mode) -> dict[str, str]:
    """What drives each input: a constant, or the bench's signal of its name."""
    found = {}
    for name, width in WIDTHS.items():
        value = mode.constant(name)
        found[name] = f"i_{name}" if value is None else f"{width}'d{value}"
    if mode.constant("OPMODE") is None:
        found["OPMODE"] = "(i_OPMODE)" if mode.parameter("PREG") else "(i_OPMODE_no_p)"
    return found


def _dsp48e1(name: str, mode: Mode, inputs: dict[str, str], outputs: dict[str, str], **registers: int) -> str:
    """Yosys's DSP48E1 with the parameters of a mode and these registers."""
    values = {k: mode.parameter(k) for k in (*REGISTERS, "ACASCREG", "BCASCREG", "A_INPUT", "B_INPUT", "USE_MULT")}
    values |= registers
    values["USE_DPORT"] = "TRUE" if mode.parameter("AMULTSEL") == "AD" else "FALSE"
    ports = [(k, v) for k, v in (inputs | outputs).items()]
    return f"  DSP48E1 #({_parameters(list(values.items()))}) {name} (.CLK(clk), {_list(ports)});\n"


def yosys_reference(n: int, mode: Mode) -> str:
    """What a DSP48E2 does, by Yosys's DSP48E1; W = C by another one in front, whose sum comes in as PCIN."""
    inputs = _inputs(mode)
    inputs["D"] = f"25'({inputs['D']})"
    opmode = mode.constant("OPMODE")
    outputs = {k: f"ref_{k}[{n}]" for k in OUTPUTS}
    if opmode is None or opmode >> 7 == 0:
        inputs["OPMODE"] = f"7'({inputs['OPMODE']})" if opmode is None else f"7'd{opmode}"
        return _dsp48e1(f"reference_{n}", mode, inputs, outputs)
    assert opmode >> 7 == 3 and not mode.parameter("OPMODEREG")
    z = opmode >> 4 & 7
    # C in Y; what would be P here, in the other one, comes in as PCIN.
    own = {P_Z: 0b001, P17_Z: 0b101}.get(z, z)
    zeros = dict.fromkeys((*REGISTERS, "ACASCREG", "BCASCREG"), 0)
    first = inputs | {
        "OPMODE": f"7'd{own << 4 | 0b1100}",
        "PCIN": f"ref_P[{n}]" if z in (P_Z, P17_Z) else inputs["PCIN"],
    }
    second = inputs | {"OPMODE": f"7'd{0b001 << 4 | opmode & 15}", "PCIN": f"sum_{n}"}
    return (
        f"  wire [47:0] sum_{n};\n"
        + _dsp48e1(f"first_{n}", mode, first, {"PCOUT": f"sum_{n}"}, **(zeros | {"CREG": int(mode.parameter("CREG"))}))
        + _dsp48e1(f"reference_{n}", mode, second, outputs)
    )


def amd_reference(n: int, mode: Mode) -> str:
    ports = list((_inputs(mode) | {k: f"ref_{k}[{n}]" for k in OUTPUTS}).items())
    return f"  reference_DSP48E2 #({_parameters(mode.parameters)}) reference_{n} (.CLK(clk), {_list(ports)});\n"


@dataclass(frozen=True)
class Part:
    """A module of pairs: its `wrong` tells which of them have ever differed."""

    name: str
    pairs: int
    text: str


def _head(name: str, pairs: int) -> str:
    return f"module part_{name} (input clk, output logic [{pairs - 1}:0] wrong = 0);\n"


STIMULI = """
  // An operand is random, or near the ends of its range, or small.
  function automatic [47:0] operand(input int bits);
    logic [63:0] r, s;
    r = {$urandom, $urandom};
    s = {$urandom, $urandom};
    case (s[3:0])
      0: operand = 48'(1) << (bits - 1);
      1: operand = (48'(1) << (bits - 1)) - 1;
      2: operand = ~48'(0);
      3: operand = 0;
      4: operand = r[1:0];
      5: operand = ~48'(r[1:0]);
      default: operand = r[47:0];
    endcase
    // Signed, of so many bits.
    operand = 48'($signed(operand << (48 - bits)) >>> (48 - bits));
  endfunction
"""


def dsp_bench(name: str, modes: Sequence[Mode], reference: str) -> Part:
    """Pairs of DSP48E2. reference: yosys or amd."""
    bits = 27 if reference == "amd" else 24  # of A and D; one less than DSP48E1's, for their sum
    wide = 30 if reference == "amd" else 24
    # DSP48E1 has no W.
    opmodes = [o for o in MODES if reference == "amd" or o >> 7 == 0]
    no_p = [o if o >> 4 & 7 not in (P_Z, P17_Z) else o & 15 for o in opmodes]
    operands = {"A": wide, "ACIN": wide, "B": 18, "BCIN": 18, "C": 48, "D": bits, "PCIN": 48}
    lines = [_head(name, len(modes)), STIMULI]
    lines += [f"  logic [{w - 1}:0] i_{k} = 0;" for k, w in WIDTHS.items()]
    lines += ["  logic [8:0] i_OPMODE_no_p = 0;"]
    lines += [f"  logic [{w - 1}:0] our_{k} [{len(modes)}], ref_{k} [{len(modes)}];" for k, w in OUTPUTS.items()]
    for table, codes in (("MODES", opmodes), ("NO_P", no_p)):
        values = ", ".join(f"9'd{o}" for o in codes)
        lines += [f"  localparam [8:0] {table} [{len(codes)}] = '{{{values}}};"]
    lines += ["  int choice, cycles = 0;", "  always @(posedge clk) begin", "    cycles <= cycles + 1;"]
    lines += [f"    i_{k} <= {WIDTHS[k]}'(operand({w}));" for k, w in operands.items()]
    lines += [f"    i_{k} <= $urandom % 4 != 0;" for k in WIDTHS if k.startswith("CE")]
    lines += [f"    choice = $urandom % {len(opmodes)};"]
    lines += ["    i_OPMODE <= MODES[choice];", "    i_OPMODE_no_p <= NO_P[choice];"]
    lines += ["    i_INMODE <= {2'b00, 2'($urandom), 1'b0};"]
    for n in range(len(modes)):
        same = " && ".join(f"our_{k}[{n}] == ref_{k}[{n}]" for k in OUTPUTS)
        shown = " ".join(f"{k} %h %h" for k in OUTPUTS)
        values = ", ".join(f"our_{k}[{n}], ref_{k}[{n}]" for k in OUTPUTS)
        lines += [
            f"    if (!({same})) begin",
            f'      if (!wrong[{n}]) $display("pair {n}, cycle %0d, ours and reference: {shown}", cycles, {values});',
            f"      wrong[{n}] <= 1;",
            "    end",
        ]
    lines += ["  end"]
    make = {"yosys": yosys_reference, "amd": amd_reference}[reference]
    for n, mode in enumerate(modes):
        ports = list((_inputs(mode) | {k: f"our_{k}[{n}]" for k in OUTPUTS}).items())
        lines += [f"  DSP48E2 #({_parameters(mode.parameters)}) ours_{n} (.CLK(clk), {_list(ports)});", make(n, mode)]
    return Part(name, len(modes), "\n".join([*lines, "endmodule", ""]))


def wide_bench() -> Part:
    """27 x 18 bits without registers: a product of two DSP48E1, A's 17 low bits in one, its 10 high bits in the other."""
    mode = Mode((("AMULTSEL", "A"),), ())
    off = dict.fromkeys((*REGISTERS, "ACASCREG", "BCASCREG"), 0)
    quiet = {k: f"{w}'d0" for k, w in WIDTHS.items()} | {"D": "25'd0", "B": "b"}
    low = quiet | {"A": "{13'd0, a[16:0]}", "OPMODE": "7'b000_01_01"}
    high = quiet | {"A": "{{20{a[26]}}, a[26:17]}", "OPMODE": "7'b101_01_01", "PCIN": "low"}
    ours = {k: f"{w}'d0" for k, w in WIDTHS.items()} | {"A": "{{3{a[26]}}, a}", "B": "b", "OPMODE": f"9'd{M}", "P": "p"}
    text = (
        _head("wide", 1)
        + STIMULI
        + """
  logic [26:0] a = 0;
  logic [17:0] b = 0;
  wire [47:0] p, low, high;
  int cycles = 0;
  always @(posedge clk) begin
    cycles <= cycles + 1;
    a <= 27'(operand(27));
    b <= 18'(operand(18));
    if (p[44:0] != {high[27:0], low[16:0]} || p[47:45] != {3{p[44]}}) begin
      if (!wrong) $display("cycle %0d: %h * %h is %h, not %h %h", cycles, a, b, p, high, low);
      wrong <= 1;
    end
  end
"""
        + f"  DSP48E2 #({_parameters([*off.items(), ('AMULTSEL', 'A')])}) ours (.CLK(clk), {_list(list(ours.items()))});\n"
        + _dsp48e1("reference_low", mode, low, {"PCOUT": "low"}, **off)
        + _dsp48e1("reference_high", mode, high, {"P": "high"}, **off)
        + "endmodule\n"
    )
    return Part("wide", 1, text)


def ram_bench() -> Part:
    """RAM32M16 of ours and `reference_RAM32M16`."""
    letters = "ABCDEFGH"
    text = _head("ram", 1)
    text += "".join(f"  logic [4:0] a{x} = 0; logic [1:0] d{x} = 0; wire [1:0] our{x}, ref{x};\n" for x in letters)
    text += "  logic we = 0; int cycles = 0;\n  always @(posedge clk) begin\n    cycles <= cycles + 1;\n    we <= 1'($urandom);\n"
    text += "".join(f"    a{x} <= 5'($urandom); d{x} <= 2'($urandom);\n" for x in letters)
    same = " || ".join(f"our{x} != ref{x}" for x in letters)
    text += f'    if ({same}) begin if (!wrong) $display("cycle %0d differs", cycles); wrong <= 1; end\n  end\n'
    for module, prefix in (("RAM32M16", "our"), ("reference_RAM32M16", "ref")):
        ports = [(f"ADDR{x}", f"a{x}") for x in letters] + [(f"DI{x}", f"d{x}") for x in letters]
        ports += [(f"DO{x}", f"{prefix}{x}") for x in letters]
        text += f"  {module} {prefix}_ram (.WCLK(clk), .WE(we), {_list(ports)});\n"
    return Part("ram", 1, text + "endmodule\n")


def uram_bench() -> Part:
    """URAM288 of ours and `reference_URAM288` in both ways of byte enables, few addresses, both ports read and write."""
    text = _head("uram", 4)
    ports = []
    for x in "AB":
        text += f"  logic [22:0] addr_{x} = 0; logic [8:0] bwe_{x} = 0; logic [71:0] din_{x} = 0; logic en_{x} = 0, wr_{x} = 0;\n"
        ports += [
            (f"ADDR_{x}", f"addr_{x}"),
            (f"BWE_{x}", f"bwe_{x}"),
            (f"DIN_{x}", f"din_{x}"),
            (f"EN_{x}", f"en_{x}"),
        ]
        ports += [(f"RDB_WR_{x}", f"wr_{x}"), (f"RST_{x}", "1'b0")]
        ports += [(f"INJECT_DBITERR_{x}", "1'b0"), (f"INJECT_SBITERR_{x}", "1'b0")]
    text += "  int cycles = 0;\n  always @(posedge clk) begin\n    cycles <= cycles + 1;\n"
    for x in "AB":
        text += f"    addr_{x} <= $urandom % 4 ? 23'($urandom % 8) : 23'($urandom % 4096);\n"
        text += (
            f"    bwe_{x} <= $urandom % 4 ? 9'($urandom) : 9'h1ff; din_{x} <= 72'({{$urandom, $urandom, $urandom}});\n"
        )
        text += f"    en_{x} <= $urandom % 8 != 0; wr_{x} <= 1'($urandom);\n"
    pairs = [(i, way, x) for i, way in enumerate(("PARITY_INTERLEAVED", "PARITY_INDEPENDENT")) for x in "AB"]
    for n, (i, _, x) in enumerate(pairs):
        text += f"    if (our{i}_{x} != ref{i}_{x}) begin\n"
        text += f'      if (!wrong[{n}]) $display("pair {n}, cycle %0d: ours %h, reference %h", cycles, our{i}_{x}, ref{i}_{x});\n'
        text += f"      wrong[{n}] <= 1;\n    end\n"
    text += "  end\n"
    for i, way in enumerate(("PARITY_INTERLEAVED", "PARITY_INDEPENDENT")):
        for module, prefix in (("URAM288", "our"), ("reference_URAM288", "ref")):
            outputs = [(f"DOUT_{x}", f"{prefix}{i}_{x}") for x in "AB"]
            text += "".join(f"  wire [71:0] {name};\n" for _, name in outputs)
            text += f'  {module} #(.BWE_MODE_A("{way}"), .BWE_MODE_B("{way}")) {prefix}{i} '
            text += f"(.CLK(clk), .SLEEP(1'b0), {_list([*ports, *outputs])});\n"
    return Part("uram", 4, text + "endmodule\n")


@cocotb.test()
async def check_pairs(dut) -> None:
    p = parameters()
    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    for name, value in p["trap"].items():
        getattr(dut.trap, name).value = value
    await ClockCycles(dut.clk, p["cycles"])
    await ReadOnly()
    for name in p["parts"]:
        wrong = getattr(dut, f"wrong_{name}").value.to_unsigned()
        assert not wrong, f"{name}: pairs {[n for n in range(wrong.bit_length()) if wrong >> n & 1]} differ"


def build_bench(parts: Sequence[Part], references: str) -> Path:
    """Builds all parts side by side, with our models and the reference's text."""
    outputs = "".join(f", output [{p.pairs - 1}:0] wrong_{p.name}" for p in parts)
    inside = "".join(f"  part_{p.name} {p.name} (.clk(clk), .wrong(wrong_{p.name}));\n" for p in parts)
    text = "".join(p.text for p in parts) + references + f"module bench (input clk{outputs});\n{inside}endmodule\n"
    args = ("-Wno-fatal", "-Wno-lint", "-Wno-style")
    return build(text, top="bench", sources=PRIMITIVES, public=("bench", "part_trap"), args=args)


def compare(folder: Path, *parts: str, cycles: int = CYCLES, trap: dict[str, int] | None = None) -> None:
    """Runs a bench for some cycles; `parts` must not differ. trap: inputs of the part of that name.

    Raises
    ------
    sim.runner.SimulationError : a pair differs, or our model refused a mode.
    """
    given = {"parts": parts, "cycles": cycles, "trap": trap or {}}
    run(folder, __name__, top="bench", testcase="check_pairs", parameters=given, name="-".join(parts) or "trap")


BAD = [
    {"AREG": 1, "ACASCREG": 0}, {"AREG": 2, "ACASCREG": 0}, {"AREG": 0, "ACASCREG": 1}, {"AREG": 3, "ACASCREG": 3},
    {"BREG": 1, "BCASCREG": 0}, {"BREG": 2, "BCASCREG": 0}, {"BREG": 0, "BCASCREG": 1}, {"CREG": 2}, {"DREG": 2},
    {"ADREG": 2}, {"INMODEREG": 2}, {"MREG": 2}, {"OPMODEREG": 2}, {"PREG": 2}, {"AMULTSEL": "B"}, {"BMULTSEL": "AD"},
    {"PREADDINSEL": "B"}, {"USE_MULT": "NONE"}, {"USE_MULT": "DYNAMIC"}, {"USE_SIMD": "TWO24"}, {"USE_SIMD": "FOUR12"},
    {"A_INPUT": "NONE"}, {"B_INPUT": "CASC"},
]  # fmt: skip
"""Parameters that our model refuses."""


def refusal_bench() -> Part:
    """All codes of each control input, and parameters: our model's flag `refused` against what its modes are."""
    off: dict[str, int | str] = dict.fromkeys((*REGISTERS, "ACASCREG", "BCASCREG"), 0)
    sweeps = {
        "OPMODE": [o not in MODES for o in range(512)],
        "INMODE": [i not in INMODES for i in range(32)],
        "ALUMODE": [a != 0 for a in range(16)],
        "CARRYINSEL": [c != 0 for c in range(8)],
        **{name: [False, True] for name in ("CARRYIN", *(w for w in WIDTHS if w.startswith("RST")))},
        **{name: [False, False] for name in ("CARRYCASCIN", "MULTSIGNIN")},
    }
    instances = [(off | {"PREG": 1}, name, codes) for name, codes in sweeps.items()]
    no_p = [o not in MODES or o >> 4 & 7 in (P_Z, P17_Z) for o in range(512)]
    instances += [
        (off, "OPMODE", no_p),
        ({"AREG": 2, "ACASCREG": 1, "BREG": 2, "BCASCREG": 1}, "CARRYIN", [False, True]),
    ]
    instances += [(off | bad, "CARRYIN", [True]) for bad in BAD]
    lines = [_head("refusals", len(instances)), "  int cycles = 0;", "  always @(posedge clk) cycles <= cycles + 1;"]
    for n, (values, name, codes) in enumerate(instances):
        width, bits = WIDTHS[name], "".join("01"[c] for c in reversed(codes))
        inputs = {k: f"{w}'d0" for k, w in WIDTHS.items()} | {name: f"code_{n}"}
        lines += [
            f"  wire [{width - 1}:0] code_{n} = {width}'(cycles % {len(codes)});",
            f"  wire [{len(codes) - 1}:0] wanted_{n} = {len(codes)}'b{bits};",
            f"  DSP48E2 #({_parameters(list(values.items()))}) ours_{n} (.CLK(1'b0), {_list(list(inputs.items()))});",
            f"  always @(posedge clk) if (ours_{n}.refused != wanted_{n}[cycles % {len(codes)}]) begin",
            f'    if (!wrong[{n}]) $display("instance {n}: {name} %0d, refused %0d", code_{n}, ours_{n}.refused);',
            f"    wrong[{n}] <= 1;",
            "  end",
        ]
    return Part("refusals", len(instances), "\n".join([*lines, "endmodule", ""]))


def trap() -> Part:
    """Our model with an OPMODE and INMODE that the test sets: it never differs, but it may stop the simulation."""
    inputs = {k: f"{w}'d0" for k, w in WIDTHS.items()} | {"OPMODE": "opmode", "INMODE": "inmode"}
    off: dict[str, int | str] = dict.fromkeys((*REGISTERS, "ACASCREG", "BCASCREG"), 0)
    text = _head("trap", 1) + f"  logic [8:0] opmode = {M}; logic [4:0] inmode = 0;\n"
    text += (
        f"  DSP48E2 #({_parameters(list(off.items()))}) ours (.CLK(clk), {_list(list(inputs.items()))});\nendmodule\n"
    )
    return Part("trap", 1, text)
