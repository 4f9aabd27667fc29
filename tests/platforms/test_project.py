"""The Tcl of every board's project, executed whole: the design it draws is whole, and a failure stops it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynqmetadata
import pytest

from tellme.golden.boards import BOARDS, CELL, VLNV, ZYNQMP, Board, build_name
from tellme.golden.config import PRESETS, AcceleratorConfig, ConfigError
from tellme.golden.registers import build_hash
from tellme.host.configuration import resolve
from tellme.host.errors import DeviceError
from tellme.host.machine.pynq.handoff import check_widths, design_mhz, port_widths
from tellme.hw.platforms import PLATFORMS, platform_of
from tellme.hw.platforms.vivado import (
    CONSTRAINTS,
    STRATEGIES,
    constraints,
    manifest,
    ps_parameters,
    script,
    wrapper,
)
from tests.own_boards import EXAMPLES, forgotten
from tests.platforms.vivado import CATALOG, Refused, Vivado
from tests.pynq import old

Edit = Callable[[str], str]


def lay(
    folder: Path,
    board: Board,
    *,
    tcl: Edit = str,
    verilog: Edit = str,
    config: AcceleratorConfig | None = None,
    **flow: Any,
) -> Path:
    """A project but for the accelerator's own Verilog, which no Tcl reads."""
    config = config or board.config
    for name, text in {
        "rtl/tellme.v": "module tellme; endmodule\n",
        "rtl/tellme_axi.v": verilog(wrapper(config, board)),
        f"constraints/{board.name}.xdc": constraints(board),
        "build.tcl": tcl(script(config, board, 2, **flow)),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "build.tcl"


def links_of(v: Vivado, pin: str) -> str:
    """The other end of a net of two."""
    (net,) = [n for n in v.nets if pin in n]
    (other,) = net - {pin}
    return other


@pytest.mark.parametrize("board_files", [True, False])
@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_the_whole_script_draws_a_whole_design(board: Board, board_files: bool, tmp_path: Path) -> None:
    draws_a_whole_design(board.config, board, board_files, tmp_path)


@pytest.mark.parametrize("board_files", [True, False])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_board_of_a_file_draws_a_whole_design(path: Path, board_files: bool, tmp_path: Path) -> None:
    with forgotten():
        config = resolve(None, path, ()).config
        board = BOARDS[path.stem]
        draws_a_whole_design(config, board, board_files, tmp_path)
        platform = platform_of(config)
        assert platform is not None and platform._part == board.part and platform.ultra_ram == (board.urams > 0)
        m = json.loads(json.dumps(manifest(config, board)))
        assert m["build"] == f"{build_hash(config):08x}" and m["part"] == board.part


@pytest.mark.parametrize(
    "name,settings",
    [
        ("kv260", ("ports=2", "score_words=4096")),
        ("kv260", ("port_bytes=8", "score_words=4096")),
        ("kv260", ("ports=1", "score_words=4096", "clock_mhz=125")),
        ("pynq_z2", ("ports=2", "lanes=1", "clock_mhz=125")),
        ("ultra96v2", ("ports=1", "score_words=4096")),
    ],
)
def test_fewer_and_narrower_ports_draw_a_whole_design(name: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    board, config = BOARDS[name], resolve(name, None, settings).config
    draws_a_whole_design(config, board, True, tmp_path)
    overlay = SimpleNamespace(
        ip_dict={"ps": {"type": f"xilinx.com:ip:{board.ps}:1.0", "parameters": ps_parameters(config, board)}}
    )
    assert set(port_widths(overlay).values()) == {8 * config.port_bytes}
    assert len(port_widths(overlay)) == config.ports
    check_widths(overlay, config, Path("x.bit"))


def draws_a_whole_design(c: AcceleratorConfig, board: Board, board_files: bool, tmp_path: Path) -> None:
    v = Vivado(board_files=board_files)
    assert v.run(lay(tmp_path, board, config=c)) == 0, v.log
    name = build_name(c)
    for ending in ("bit", "hwh", "xsa"):
        assert (tmp_path / f"{name}.{ending}").is_file()
    for report in ("utilization", "timing", "power"):
        assert (tmp_path / "reports" / f"{report}.rpt").is_file()
    assert v.part == board.part
    assert v.properties.get(("design", "BITSTREAM.GENERAL.COMPRESS")) == "TRUE", "the constraints were read"
    # Beyond what every graph must satisfy (tests.platforms.vivado.check), this one is the board's.
    links = dict(v.links)
    assert [links[f"{CELL}/m_axi_{i}"] for i in range(c.ports)] == [f"ps/{p}" for p in board.memory_ports[: c.ports]]
    assert {v.width(f"{CELL}/m_axi_{i}") for i in range(c.ports)} == {8 * c.port_bytes}
    assert links_of(v, f"{CELL}/irq") in ("ps/pl_ps_irq0", "ps/IRQ_F2P"), "the line that the UIO driver takes"
    (registers,) = [a for a in v.addresses if a.segment == f"{CELL}/s_axi/reg0"]
    assert (registers.base, registers.size) == (board.register_base, board.register_bytes)
    covered = sum(a.size for a in v.addresses if a.space == f"{CELL}/m_axi_0")
    # Without a board file, Vivado takes the least for the memory; ports reach all of it anyhow.
    assert covered >= min(board.ddr_bytes, 2 << 30 if board.ps == ZYNQMP else 512 << 20)
    if board_files:
        assert covered >= board.ddr_bytes
    assert abs(v.frequency(v.driver(f"{CELL}/clk")) - c.clock_hz) < 0.001 * c.clock_hz
    assert any("no board file" in line for line in v.log) == (not board_files)
    assert f"xilinx.com:module_ref:{v.cells[CELL].type}:1.0" == VLNV


def test_the_newest_processing_system_is_taken(tmp_path: Path) -> None:
    board = BOARDS["kv260"]
    for versions in (("3.3",), ("3.4", "3.5"), ("3.9", "3.10")):
        ip = replace(CATALOG["zynq_ultra_ps_e"], versions=versions)
        folder = tmp_path / versions[-1]
        folder.mkdir()
        v = Vivado(ips={**CATALOG, "zynq_ultra_ps_e": ip})
        assert v.run(lay(folder, board)) == 0


FIRST, SECOND, THIRD, FOURTH = STRATEGIES


@pytest.mark.parametrize(
    ("setup", "hold", "taken", "ran", "clock"),
    [
        ({FIRST: "0.000"}, {}, FIRST, 1, 250),
        ({FIRST: "-0.001", SECOND: "0.2"}, {}, SECOND, 2, 250),
        ({FIRST: "-0.5", SECOND: "-0.1", THIRD: "-0.2", FOURTH: "-0.9"}, {}, SECOND, 4, 200),
        # The best of those that meet hold: it is not met at any clock otherwise.
        ({FIRST: "-0.5", SECOND: "0.3", THIRD: "-0.2", FOURTH: "-0.9"}, {SECOND: "-0.01"}, THIRD, 4, 200),
        ({FIRST: "-1.5", SECOND: "-1.0", THIRD: "-1.2", FOURTH: "-3"}, {}, SECOND, 4, 200),
    ],
)
def test_strategies_are_tried_and_the_build_runs_at_what_it_routed_at(
    setup: dict[str, str], hold: dict[str, str], taken: str, ran: int, clock: int, tmp_path: Path
) -> None:
    board = BOARDS["kv260"]
    v = Vivado(setup=setup, hold=dict.fromkeys(STRATEGIES, "0.01") | hold)
    assert v.run(lay(tmp_path, board)) == 0, v.log
    name = build_name(board.config)
    assert len(v.runs) == 1 + ran
    assert (tmp_path / f"{name}.bit").read_text() == f"bits of impl_{STRATEGIES.index(taken) + 1}"
    record = json.loads((tmp_path / f"{name}.routed.json").read_text())
    assert (record["strategy"], record["clock_hz"]) == (taken, clock * 1_000_000)
    assert record["routed_hz"] == pytest.approx(1e9 / (4 - float(setup[taken])), abs=1)
    said = dict(re.findall(r'NAME="(\w+)" VALUE="([^"]*)"', (tmp_path / f"{name}.hwh").read_text()))
    overlay = SimpleNamespace(ip_dict={"ps": {"type": "xilinx.com:ip:zynq_ultra_ps_e:3.5", "parameters": said}})
    assert design_mhz(overlay) == pytest.approx(clock, abs=0.01)
    dividers = [int(said[f"PSU__CRL_APB__PL0_REF_CTRL__DIVISOR{i}"]) for i in range(2)]
    assert dividers == [board.pl_reference_hz // (clock * 1_000_000), 1]


def test_the_strategies_that_are_asked_for_are_tried_in_their_order(tmp_path: Path) -> None:
    board = BOARDS["kv260"]
    wanted = ("Congestion_SpreadLogic_low", "Performance_Retiming")
    v = Vivado(setup={wanted[0]: "-0.2", wanted[1]: "0.1"})
    assert v.run(lay(tmp_path, board, strategies=wanted)) == 0, v.log
    assert [v.properties[(f"impl_{i}", "strategy")] for i in (1, 2)] == list(wanted) and len(v.runs) == 3
    assert json.loads((tmp_path / f"{build_name(board.config)}.routed.json").read_text())["strategy"] == wanted[1]


def test_a_strategy_that_vivado_has_not_is_known_before_synthesis(tmp_path: Path) -> None:
    v = Vivado()
    assert v.run(lay(tmp_path, BOARDS["kv260"], strategies=(FIRST, "Performance_Explorer"))) == 1
    assert v.log[-1].startswith(
        "TELLME ERROR: this Vivado has no strategy Performance_Explorer; it has Performance_Explore,"
    )
    assert v.runs["synth_1"] == "0%"


@pytest.mark.parametrize("name", BOARDS)
def test_synthesis_alone_ends_with_its_reports(name: str, tmp_path: Path) -> None:
    v = Vivado()
    assert v.run(lay(tmp_path, BOARDS[name], synthesis_only=True)) == 0, v.log
    assert v.runs == {"synth_1": "100%", "impl_1": "0%"} and v.log[-1].startswith("TELLME: done, synthesis only")
    made = {p.name for p in tmp_path.rglob("*.rpt")}
    assert made == {"utilization_synthesis.rpt", "timing_synthesis.rpt"}
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bit", ".hwh", ".xsa")]


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_has_a_clock_to_fall_to(name: str, tmp_path: Path) -> None:
    """A little too slow for the preset's clock; the next that the PS makes, and the driver reads it."""
    board = BOARDS[name]
    first, second = board.clocks(board.config.clock_hz, board.clock_floor)[:2]
    slack = 1e9 / first - 1e9 / second
    v = Vivado(setup=f"{slack + 0.001:.4f}")
    assert v.run(lay(tmp_path, board)) == 0, v.log
    text = (tmp_path / f"{build_name(board.config)}.hwh").read_text()
    overlay = SimpleNamespace(
        ip_dict={
            "ps": {
                "type": f"xilinx.com:ip:{board.ps}:1",
                "parameters": dict(re.findall(r'NAME="(\w+)" VALUE="([^"]*)"', text)),
            }
        }
    )
    assert design_mhz(overlay) == pytest.approx(second / 1e6, abs=1e-3)


@pytest.mark.parametrize(
    "fault,message",
    [
        (
            {"setup": "-1.050"},
            "timing is not met: worst slack of set-up -1.050 ns, .* routes at 198.0 MHz, .* is 200 MHz",
        ),
        ({"hold": "-0.001"}, "timing is not met: worst slack of set-up 0.123 ns, of hold -0.001 ns"),
        ({"setup": ""}, "implementation reports no slack"),
        ({"fail": "synth_1"}, "synthesis failed; see vivado/tellme-kv260-\\w+.runs/synth_1/runme.log"),
        ({"fail": "impl_1"}, "implementation failed"),
        ({"parts": False}, "does not know part xck26-sfvc784-2LV-c; install its device family"),
        ({"ips": {k: v for k, v in CATALOG.items() if k != "zynq_ultra_ps_e"}}, "has no IP zynq_ultra_ps_e; install"),
    ],
)
def test_what_fails_ends_the_run_with_words_and_without_a_bitstream(
    fault: dict[str, object], message: str, tmp_path: Path
) -> None:
    v = Vivado(**fault)  # type: ignore[arg-type]
    assert v.run(lay(tmp_path, BOARDS["kv260"])) == 1
    assert re.search(message, v.log[-1]) and v.log[-1].startswith("TELLME ERROR: "), v.log
    assert not list(tmp_path.glob("*.bit")) and not list(tmp_path.glob("*.hwh"))


def swap(old: str, new: str, count: int = 1) -> Edit:
    def edit(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, count)

    return edit


@pytest.mark.parametrize(
    "board,edit,message",
    [
        ("kv260", swap("PSU__SAXIGP3__DATA_WIDTH {128}", "PSU__SAXIGP3__DATA_WIDTH {64}"), "AXI4 of 128 bits"),
        ("kv260", swap("CONFIG.PSU__USE__M_AXI_GP1 {0}", "CONFIG.PSU__USE__M_AXI_GP1 {1}"), "dangles"),
        ("kv260", swap("PSU__USE__S_AXI_GP4 {1}", "PSU__USE__SAXI_GP4 {1}"), "no parameter"),
        ("kv260", swap("PSU__USE__S_AXI_GP4 {1}", "PSU__USE__S_AXI_GP4 {yes}"), "cannot be 'yes'"),
        ("kv260", swap("  [get_bd_pins ps/saxihp1_fpd_aclk] \\\n", ""), "ps/saxihp1_fpd_aclk dangles"),
        ("kv260", swap("ps/S_AXI_HP3_FPD]", "ps/S_AXI_HP2_FPD]"), "connected already"),
        ("kv260", swap("ps/SAXIGP5/HP3_DDR_LOW]", "ps/SAXIGP4/HP2_DDR_LOW]"), "no DDR of its own port"),
        ("kv260", swap("-offset 0xA0000000", "-offset 0xB0000000"), "not in the window"),
        ("kv260", swap("[get_bd_pins tellme_0/irq] ", "[get_bd_pins tellme_0/resetn] "), "kinds"),
        ("kv260", swap("[get_bd_pins reset/ext_reset_in]", "[get_bd_pins reset/aux_reset_in]"), "no pin"),
        ("kv260", swap("$here/constraints/kv260.xdc", "$here/constraints/kv206.xdc"), "no file"),
        ("kv260", swap("validate_bd_design", "validate_design"), "invalid command name"),
        ("kv260", lambda text: text.replace("tellme_step", "step"), "shadow commands of Vivado: step"),
        ("pynq_z2", swap("PCW_USE_S_AXI_HP2 {1}", "PCW_USE_S_AXI_HP2 {0}"), "no pin ps/S_AXI_HP2_ACLK"),
        ("pynq_z2", swap('make_external "FIXED_IO, DDR"', 'make_external "FIXED_IO"'), "ps/DDR is not made external"),
        ("pynq_z2", swap("PCW_S_AXI_HP0_DATA_WIDTH {64}", "PCW_S_AXI_HP0_DATA_WIDTH {32}"), "AXI3 of 64 bits"),
    ],
)
def test_a_mistake_in_the_script_is_found(board: str, edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=message):
        Vivado().run(lay(tmp_path, BOARDS[board], tcl=edit))


@pytest.mark.parametrize(
    "said,notes",
    [
        ({}, 0),
        ({"ps/pl_clk0": "249999985", "tellme_0/m_axi_.": "249997500.0"}, 0),
        ({"ps/pl_clk0": "200000000"}, 1),
        ({"tellme_0/m_axi_[12]": "100000000"}, 2),
        ({"ps/pl_clk0": "", "tellme_0/m_axi_.": ""}, 5),
    ],
)
def test_a_clock_that_vivado_gives_otherwise_is_said_and_the_build_goes_on(
    said: dict[str, str], notes: int, tmp_path: Path
) -> None:
    v = Vivado(clocks=said)
    assert v.run(lay(tmp_path, BOARDS["kv260"])) == 0
    assert len([line for line in v.log if line.startswith("TELLME NOTE: ")]) == notes, v.log
    assert list(tmp_path.glob("*.bit"))


@pytest.mark.parametrize(
    "board,files,taken",
    [
        ("pynq_z2", ["TUL.com.tw:PYNQ-Z2:part0:1.0"], "TUL.com.tw:PYNQ-Z2:part0:1.0"),
        ("pynq_z2", ["www.digilentinc.com:pynq-z1:part0:1.0"], None),
        (
            "kv260",
            ["xilinx.com:KV260_SOM:part0:1.9", "xilinx.com:kv260_som:part0:1.10"],
            "xilinx.com:kv260_som:part0:1.10",
        ),
        (
            "kv260",
            ["xilinx.com:kv260_som:part0:2.0", "xilinx.com:kv260_som_som240_1_connector:part0:9.0"],
            "xilinx.com:kv260_som:part0:2.0",
        ),
        ("rfsoc4x2", ["xilinx.com:rfsoc4x2:part0:1.0"], "xilinx.com:rfsoc4x2:part0:1.0"),
        ("ultra96v2", ["em.avnet.com:Ultra96v2:Part0:1.0"], "em.avnet.com:Ultra96v2:Part0:1.0"),
        ("ultra96v2", ["avnet.com:ultra96v1:part0:1.2"], None),
    ],
)
def test_the_board_s_newest_file_is_taken_however_it_is_spelt(
    board: str, files: list[str], taken: str | None, tmp_path: Path
) -> None:
    v = Vivado(board_files=files)
    assert v.run(lay(tmp_path, BOARDS[board])) == 0
    assert v.properties.get(("project", "board_part")) == taken
    assert any("no board file" in line for line in v.log) == (taken is None)


def test_the_design_runs_as_boot_firmware_leaves_the_ports() -> None:
    """Loaded without PYNQ, nobody sets the width of the register port (afi_fs); 128 bits is what reset leaves."""
    for board in BOARDS.values():
        parameters = ps_parameters(board.config, board)
        assert parameters.get("PSU__MAXIGP0__DATA_WIDTH") == ("128" if board.port_bits == 128 else None)


@pytest.mark.parametrize(
    "edit,message",
    [
        (swap("m_axi_2 ARADDR", "m_axi_2 ARADDRESS"), "other signals"),
        (swap("s_axi:m_axi_0:m_axi_1", "s_axi:m_axi_0"), "m_axi_1: no clock is associated"),
        (swap("PROTOCOL AXI4,", "PROTOCOL AXI3,"), "ARLEN: 8 bits instead of 4"),
        (swap("output wire [127:0] m_axi_3_wdata", "output wire [63:0] m_axi_3_wdata"), "64 bits instead of 128"),
        (swap("POLARITY ACTIVE_LOW", "POLARITY ACTIVE_HIGH"), "no active-low reset"),
        (swap("input  wire m_axi_0_awready", "output wire m_axi_0_awready"), "wrong direction"),
    ],
)
def test_a_mistake_in_the_wrapper_is_found(edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=message):
        Vivado().run(lay(tmp_path, BOARDS["kv260"], verilog=edit))


def test_every_board_has_a_preset_a_platform_and_constraints() -> None:
    assert set(PRESETS) == {*BOARDS, "tiny"} and set(PLATFORMS) == set(BOARDS)
    assert {p.stem for p in CONSTRAINTS.glob("*.xdc")} == set(BOARDS)
    for name, board in BOARDS.items():
        platform = PLATFORMS[name]()
        assert platform._part == board.part, "amaranth spells the part as golden.boards does"
        assert platform.ultra_ram == (board.urams > 0)
        c = board.config
        assert (c.ports, 8 * c.port_bytes) == (len(board.memory_ports), board.port_bits)
        assert abs(board.pl_reference_hz / round(board.pl_reference_hz / c.clock_hz) / c.clock_hz - 1) < 1e-3


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_the_driver_reads_the_port_widths_and_the_clock_that_the_build_sets(name: str) -> None:
    """The parameters in the Tcl of `tellme build` are the ones the checks look at, on each board."""
    board = BOARDS[name]
    parameters = ps_parameters(board.config, board)
    overlay = SimpleNamespace(ip_dict={"ps": {"type": f"xilinx.com:ip:{board.ps}:1.0", "parameters": parameters}})
    assert set(port_widths(overlay)) == set(board.memory_ports)
    said = check_widths(overlay, board.config, Path("x.bit"))
    assert all(f"{port} {board.port_bits}" in said for port in board.memory_ports)
    assert abs(design_mhz(overlay) - board.config.clock_hz / 1e6) < 0.1
    for key, value in parameters.items():
        if key.startswith(("PSU__USE__S_AXI_GP", "PCW_USE_S_AXI_HP")) and value == "1":
            parameters[key] = "0"
            with pytest.raises(DeviceError, match=f"tellme build --board {name}"):
                check_widths(overlay, board.config, Path("x.bit"))
            break


def test_boards_that_share_a_design_differ_in_name_alone() -> None:
    """What is linted and synthesised for the KV260 holds for them."""
    for name in ("kr260", "zcu104", "rfsoc4x2"):
        assert replace(PRESETS[name], name="kv260") == PRESETS["kv260"]
        b, k = BOARDS[name], BOARDS["kv260"]
        assert all(getattr(b, r) >= getattr(k, r) for r in ("luts", "ffs", "bram36", "urams", "dsps"))


def test_the_manifest_names_the_build_register() -> None:
    for board in BOARDS.values():
        m = json.loads(json.dumps(manifest(board.config, board)))
        assert m["build"] == f"{build_hash(board.config):08x}" and m["name"].endswith(m["build"])
        assert m["name"] == build_name(board.config)


def test_a_configuration_that_is_not_the_board_s_is_refused() -> None:
    b = BOARDS["pynq_z2"]
    with pytest.raises(ConfigError, match="kv260 has 4 ports of 128 bits, board 'pynq_z2' has 2 of 64"):
        wrapper(PRESETS["kv260"], b)
    with pytest.raises(ConfigError, match="burst_beats must be at most 16 on Zynq-7000 .AXI3., not 32"):
        script(replace(b.config, burst_beats=32), b, 1)


FACTS = {
    # chip, transfers a second (MT/s) x bits of the memory, I/O PLL (MHz): board files of XilinxBoardStore and RealDigital,
    # PYNQ's base overlays; each is named in golden/boards.py.
    "kv260": ("xck26-sfvc784-2LV-c", 2133, 64, 1000),
    "kr260": ("xck26-sfvc784-2LV-c", 2133, 64, 1000),
    "zcu104": ("xczu7ev-ffvc1156-2-e", 2133, 64, 1500),
    "rfsoc4x2": ("xczu48dr-ffvg1517-2-e", 2400, 64, 1500),
    "ultra96v2": ("xczu3eg-sbva484-1-i", 1066, 32, 1500),
    "pynq_z2": ("xc7z020clg400-1", 1050, 16, 1000),
}


def test_boards_are_what_their_board_files_say() -> None:
    assert set(FACTS) == set(BOARDS)
    for name, (part, transfers, bits, pll) in FACTS.items():
        board = BOARDS[name]
        assert board.part == part and board.pl_reference_hz == pll * 1_000_000
        assert board.ddr_peak == transfers * 1_000_000 * bits // 8
    assert [f"{BOARDS[n].ddr_peak / 1e9:.2f}" for n in ("kv260", "ultra96v2", "pynq_z2")] == ["17.06", "4.26", "2.10"]


def parameters_of(path: Path) -> dict[str, str]:
    """Parameters of the processing system in a hand-off."""
    root = ElementTree.parse(path).getroot()
    (ps,) = (m for m in root.iter("MODULE") if m.get("MODTYPE") in ("zynq_ultra_ps_e", "processing_system7"))
    return {p.attrib["NAME"]: p.get("VALUE", "") for p in ps.findall("PARAMETERS/PARAMETER")}


def test_memory_and_pll_are_those_of_vivado_s_hand_offs() -> None:
    """Of the boards whose hand-offs packages ship: ZCU104, PYNQ-Z2 and RFSoC 4x2."""
    old.make()
    radio = Path(pynqmetadata.__file__).parent / "tests" / "hwhs" / "rfsoc_sam.hwh"
    for name, path in (("zcu104", old.OVERLAYS / "ZCU104-base.hwh"), ("rfsoc4x2", radio)):
        board, p = BOARDS[name], parameters_of(path)
        width = int(p["PSU__DDRC__BUS_WIDTH"].split()[0])
        assert abs(2e6 * float(p["PSU__ACT_DDR_FREQ_MHZ"]) * width / 8 / board.ddr_peak - 1) < 1e-3
        half = 1 + int(p["PSU__CRL_APB__IOPLL_CTRL__DIV2"])
        pll = float(p["PSU__PSS_REF_CLK__FREQMHZ"]) * int(p["PSU__CRL_APB__IOPLL_CTRL__FBDIV"]) / half
        assert abs(pll * 1e6 / board.pl_reference_hz - 1) < 1e-3
    board, p = BOARDS["pynq_z2"], parameters_of(old.OVERLAYS / "Pynq-Z2-base.hwh")
    width = int(p["PCW_UIPARAM_DDR_BUS_WIDTH"].split()[0])
    assert 2e6 * float(p["PCW_UIPARAM_ACT_DDR_FREQ_MHZ"]) * width / 8 == board.ddr_peak
