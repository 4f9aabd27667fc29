"""`tellme synth`: counts and levels of small known circuits, the joined netlist of a whole accelerator, refused input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from amaranth.back import rtlil
from amaranth.hdl import C, Cat, ClockSignal, Elaboratable, Instance, Module, Signal
from amaranth.lib.memory import Memory
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host.cli import app
from tellme.hw.synth import synthesis, yosys
from tellme.hw.synth.levels import LevelError, Levels
from tellme.hw.synth.netlist import Cell, Netlist, Resources, count, flatten
from tellme.hw.synth.synthesis import synthesise


class Circuit(Elaboratable):
    """Paths of known lengths, each between registers of its own."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = Signal(64), Signal(64)
        m.d.sync += [a.eq(Cat(~a[-1], a)), b.eq(Cat(b[-1] ^ a[3], b))]
        one, two, add, long, ram, cut = (
            Signal(n, name=name, attrs={"keep": 1})
            for name, n in (("one", 1), ("two", 1), ("add", 32), ("long", 64), ("ram", 8), ("cut", 27))
        )
        memory = m.submodules.memory = Memory(shape=8, depth=32, init=[], attrs={"ram_style": "distributed"})
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [write.addr.eq(a), write.data.eq(b), write.en.eq(b[9]), read.addr.eq(b)]
        m.d.sync += [
            one.eq(a[:6].xor()),
            two.eq(a[:12].xor()),
            add.eq(a[:32] - b[:32]),
            long.eq(a + b),
            ram.eq(read.data),
        ]
        product = Signal(48)
        registers = dict.fromkeys(("AREG", "ACASCREG", "BREG", "BCASCREG", "PREG"), 0) | {"MREG": 1}
        m.submodules.dsp = Instance(
            "DSP48E2",
            **{f"p_{k}": C(v, 32) for k, v in registers.items()},
            p_USE_MULT="MULTIPLY",
            i_A=a[:27],
            i_B=b[:18],
            i_OPMODE=C(5, 9),
            o_P=product,
        )
        m.d.sync += cut.eq(product)
        return m


@pytest.fixture(scope="module")
def circuit(tmp_path_factory: pytest.TempPathFactory) -> Netlist:
    folder = tmp_path_factory.mktemp("circuit")
    (folder / "c.il").write_text(rtlil.convert(Circuit(), ports=[], emit_src=False))
    yosys.run(
        ["read_rtlil c.il", "synth_xilinx -family xcup -flatten -noiopad -noclkbuf -nosrl", "write_json c.json"], folder
    )
    return flatten([folder / "c.json"], "top")


@pytest.mark.parametrize(
    "register,levels",
    [
        ("one", 1),
        ("two", 2),
        ("add", 1 + 2),  # the LUT in front of the chain, and a chain of at most 32 bits
        ("long", 1 + 4),  # 64 bits: twice that
        ("ram", 1),
        ("cut", 2),  # M register on, P off: the adder of the DSP48E2
    ],
)
def test_levels_of_known_paths(circuit: Netlist, register: str, levels: float) -> None:
    found = [p for p in Levels(circuit).worst(99) if p.nets[-1].startswith(f"-> {register}")]
    assert found and found[0].levels == levels, found
    if register == "cut":
        end = next(p for p in Levels(circuit).worst(99) if p.nets[-1].endswith(".A"))
        assert end.levels == 3  # the multiplier, up to the M register


def test_resources_of_a_known_circuit(circuit: Netlist) -> None:
    total = circuit.resources()["top"]
    assert total.lut_memory == 8 and total.dsp == 1  # 32 x 8 simple dual port: one RAM32M16
    assert total.ff == 64 + 64 + 1 + 1 + 32 + 64 + 8 + 27
    assert total.carry == 32 // 4 + 64 // 4


def test_every_primitive_is_counted_or_refused() -> None:
    types = Counter(LUT6=3, LUT1=1, SRL16E=2, RAM64M8=2, RAM32X1D=1, FDRE=5, FDSE=1, CARRY4=3, CARRY8=1, MUXF7=9)
    types.update({"DSP48E2": 2, "DSP48E1": 1, "RAMB36E2": 1, "RAMB18E2": 3, "RAMB36E1": 1, "RAMB18E1": 1, "URAM288": 4})
    expected = Resources(lut_logic=4, lut_memory=2 + 16 + 2, ff=6, carry=5, dsp=3, ramb36=4, uram=4)
    assert count(types) == expected and count(types).lut == 24
    with pytest.raises(ValueError, match="7 cells of the unknown type FROB"):
        count(Counter(FROB=7))


@pytest.mark.parametrize(
    "type,port,parameters,levels",
    [
        ("URAM288", "DOUT_A", {"OREG_A": "FALSE", "OREG_B": "TRUE"}, 4),
        ("URAM288", "DOUT_B", {"OREG_A": "FALSE", "OREG_B": "TRUE"}, 1),
        ("URAM288", "CAS_OUT_DOUT_B", {"OREG_B": "TRUE"}, 1),
        ("URAM288", "DOUT_B", {}, 4),
        ("URAM288_BASE", "DOUT_A", {"OREG_A": "TRUE"}, 1),
        ("RAMB36E2", "DOUTADOUT", {"DOA_REG": f"{0:032b}", "DOB_REG": f"{1:032b}"}, 3),
        ("RAMB36E2", "DOUTBDOUT", {"DOA_REG": f"{0:032b}", "DOB_REG": f"{1:032b}"}, 1),
        ("RAMB36E2", "DOUTPBDOUTP", {"DOB_REG": f"{0:032b}"}, 3),
        ("RAMB18E2", "DOUTPADOUTP", {"DOA_REG": f"{1:032b}"}, 1),
        ("RAMB18E2", "DOUTADOUT", {}, 1),  # the default of the E2
        ("RAMB18E1", "DOBDO", {}, 3),  # and of the E1
        ("RAMB36E1", "DOPBDOP", {"DOA_REG": f"{1:032b}", "DOB_REG": f"{0:032b}"}, 3),
        ("RAMB36E1", "DOADO", {"DOA_REG": f"{1:032b}"}, 1),
        ("RAMB36SDP", "DO", {"DO_REG": f"{1:032b}"}, 1),
        ("FDRE", "Q", {}, 0),
    ],
)
def test_clock_to_out_is_counted(type: str, port: str, parameters: dict[str, str], levels: float) -> None:
    """What a RAM takes to its output stands in front of the LUTs behind it, and is the whole path to a register."""
    cells = [
        Cell("ram", type, "top", parameters, {"CLK": [0]}, {port: [1]}),
        Cell("lut", "LUT2", "top", {}, {"I0": [1], "I1": [2]}, {"O": [3]}),
        Cell("one", "FDRE", "top", {}, {"C": [0], "D": [3]}, {"Q": [4]}),
        Cell("direct", "FDRE", "top", {}, {"C": [0], "D": [1]}, {"Q": [5]}),
        Cell("other", "FDRE", "top", {}, {"C": [0], "D": [4]}, {"Q": [2]}),
    ]
    netlist = Netlist(nets=6, cells=cells, inputs={0: "clk"}, names={4: "one", 5: "direct", 2: "other"})
    found = {p.nets[-1]: p.levels for p in Levels(netlist).worst(9)}
    assert found == {"-> one.D": levels + 1, "-> direct.D": levels, "-> other.D": 0}
    assert Levels(netlist).longest()["top"].levels == levels + 1


class Memories(Elaboratable):
    """Inferred RAMs with one LUT behind each, with a register behind each, and an UltraRAM with its output register."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = Signal(64)
        m.d.sync += a.eq(Cat(~a[-1], a))
        for style in ("ultra", "block"):
            memory = Memory(shape=64, depth=4096, init=[], attrs={"ram_style": style})
            m.submodules[style] = memory
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [write.addr.eq(a), write.data.eq(a), write.en.eq(a[9]), read.addr.eq(a[12:])]
            for name, value in (("gated", read.data[0] & a[0]), ("plain", read.data[1])):
                register = Signal(name=f"{style}_{name}", attrs={"keep": 1})
                m.d.sync += register.eq(value)
        data, registered = Signal(72), Signal(attrs={"keep": 1})
        m.submodules.instance = Instance(
            "URAM288",
            p_OREG_A="TRUE",
            i_CLK=ClockSignal(),
            i_ADDR_A=Cat(C(0, 11), a[:12]),
            i_EN_A=C(1),
            i_OREG_CE_A=C(1),
            o_DOUT_A=data,
        )
        m.d.sync += registered.eq(data[5] ^ a[0])
        return m


def test_clock_to_out_of_inferred_memories(tmp_path: Path) -> None:
    """Yosys leaves the output registers unused: a register behind a RAM is the fabric's."""
    (tmp_path / "c.il").write_text(rtlil.convert(Memories(), ports=[], emit_src=False))
    mapped = "synth_xilinx -family xcup -uram -flatten -noiopad -noclkbuf -nosrl"
    yosys.run(["read_rtlil c.il", mapped, "write_json c.json"], tmp_path)
    netlist = flatten([tmp_path / "c.json"], "top")
    types = Counter(c.type for c in netlist.cells)
    assert types["URAM288"] == 2 and types["RAMB36E2"]
    found = {p.nets[-1].removeprefix("-> "): p.levels for p in Levels(netlist).worst(99)}
    assert {n: found[f"{n}.D"] for n in ("ultra_gated", "ultra_plain", "block_gated", "block_plain", "registered")} == {
        "ultra_gated": 5,
        "ultra_plain": 4,
        "block_gated": 4,
        "block_plain": 3,
        "registered": 2,
    }


def test_a_combinational_loop_is_found() -> None:
    loop = Netlist(nets=2)
    loop.cells = [Cell(f"c{i}", "LUT1", "top", {}, {"I0": [i]}, {"O": [1 - i]}) for i in range(2)]
    with pytest.raises(LevelError, match="combinational loop through c"):
        Levels(loop)


def test_netlists_of_other_configurations_of_a_board_stay_until_they_are_old(tmp_path: Path) -> None:
    """Two syntheses at once must not take each other's files away."""

    def run(script: Sequence[str], folder: Path, **_: Any) -> None:
        (folder / "netlist.json").write_text("{}")

    def mapped(module: str) -> Path:
        return synthesis.mapped(
            {"tellme.a": module}, "a", "kv260", {"family": "xcup", "options": ""}, lambda *_: None, tmp_path
        )

    with (
        mock.patch.object(synthesis, "block_text", lambda modules, block: ("a", modules["tellme.a"])),
        mock.patch.object(synthesis.yosys, "run", run),
    ):
        first, second = mapped("one"), mapped("two")
        assert first.exists() and second.exists() and first != second
        for path in (first, second):
            os.utime(path, (0, 0))
        assert mapped("one") == first  # used again: it is new
        third = mapped("three")
    assert sorted(tmp_path.iterdir()) == sorted([first, third])


def test_a_block_alone_is_the_block_of_the_whole_and_the_second_run_is_cached(tmp_path: Path) -> None:
    steps: list[tuple[str, str]] = []
    names = ("counters", "executor")
    report = synthesise(TINY, blocks=names, progress=lambda *s: steps.append(s), cache=tmp_path)
    assert list(report.blocks) == list(names) and report.total is None
    assert all(r.lut_logic and r.ff for r in report.blocks.values()) and min(report.levels.values()) >= 1
    assert ("executor", "done") in steps
    steps.clear()
    assert synthesise(TINY, blocks=names, progress=lambda *s: steps.append(s), cache=tmp_path).blocks == report.blocks
    assert ("executor", "cached") in steps
    # Parts, one of them with two names that Amaranth numbers.
    part = synthesise(TINY, blocks=["tlmm.fifo", "elementwise.scales.inv"], cache=tmp_path).blocks
    assert part["tlmm.fifo"].ramb36 + part["tlmm.fifo"].lut_memory > 0 and part["elementwise.scales.inv"].dsp > 0


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--board", "nothing"], "board 'nothing' is unknown"),
        (["--board", "tiny", "--block", "nothing"], "block 'nothing' is unknown; there are top, supervisor, "),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--paths", "0"], "--paths must be at least 1, not 0"),
    ],
)
def test_refused_input(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["synth", *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_a_failing_yosys_is_one_line_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(yosys.SynthesisError, match="(?s)yosys.log.*frobnicate"):
        yosys.run(["frobnicate"], tmp_path)


def test_json_has_what_is_promised() -> None:
    result = CliRunner().invoke(app, ["synth", "--board", "tiny", "--block", "counters", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["total"] is None
    keys = {"lut_logic", "lut_memory", "lut", "ff", "carry", "dsp", "ramb36", "uram", "levels"}
    assert set(report["blocks"]["counters"]) == keys


@pytest.mark.parametrize(
    "block,message",
    [
        ("nothing", "block 'nothing' is unknown; there are top, supervisor, registers"),
        ("attention.nothing", "block 'attention.nothing' is unknown; parts of attention are "),
        ("tlmm.fifo.", "block 'tlmm.fifo.' is unknown"),
        ("", "block '' is unknown; there are top, "),
    ],
)
def test_an_unknown_block_is_refused_before_anything_is_elaborated(
    block: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> str:
        raise AssertionError("the accelerator was elaborated")

    monkeypatch.setattr("tellme.hw.synth.synthesis.to_rtlil", work)
    for board in ("kv260", "tiny"):
        result = CliRunner().invoke(app, ["synth", "--board", board, "--block", "counters", "--block", block])
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


_ENDLESS = """
import sys
from pathlib import Path
from tellme.golden.config import TINY
from tellme.hw.synth import synthesis, yosys
synthesis._rtlil = lambda config, cache: ""
synthesis.modules_of = lambda text: {"tellme": "", "tellme.counters": "", "tellme.executor": ""}
yosys.run = lambda script, folder, progress: yosys.follow(
    ["sh", "-c", "sleep 100 & echo $!; wait"], folder, "yosys.log", lambda line: print(line, end="", flush=True)
)
synthesis.synthesise(TINY, blocks=["counters", "executor"], jobs=2, cache=Path(sys.argv[1]))
"""


def test_an_interrupt_ends_every_yosys_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    assert process.stdout is not None
    children = [int(process.stdout.readline()) for _ in range(2)]
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert time.monotonic() - begun < 5
    for child in children:
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"
    assert not list(tmp_path.iterdir())
