"""The reader of hand-offs and bitstreams, on files as Vivado wrote them: what pynqmetadata and PYNQ 3.0.1's source ship."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynq.pl_server.embedded_device as embedded
import pynqmetadata
import pytest

from tellme.golden.boards import BOARDS, PYNQ_Z2, RFSOC4X2, ZCU104, Board, build_name
from tellme.golden.config import TINY
from tellme.host.errors import DeviceError, UserError
from tellme.host.machine.pynq.handoff import (
    accelerator_name,
    bit_part,
    check_widths,
    design_mhz,
    device_name,
    open_bitstream,
    port_widths,
)
from tests.pynq import old
from tests.pynq.files import bit

HWHS = Path(pynqmetadata.__file__).parent / "tests" / "hwhs"


@pytest.fixture(scope="session")
def overlays() -> Path:
    """Files of PYNQ 3.0.1's overlays."""
    old.make()
    return old.OVERLAYS


def lay(folder: Path, board: Board, hand_off: Path | str, bitstream: Path | bytes) -> Path:
    """A build's two files under the names that the board's preset wants."""
    path = folder / f"{build_name(board.config)}.bit"
    if isinstance(bitstream, Path):
        shutil.copyfile(bitstream, path)
    else:
        path.write_bytes(bitstream)
    if isinstance(hand_off, Path):
        shutil.copyfile(hand_off, path.with_suffix(".hwh"))
    else:
        path.with_suffix(".hwh").write_text(hand_off)
    return path


@pytest.mark.parametrize(
    "name,board,part",
    [
        ("Pynq-Z2-base", PYNQ_Z2, "7z020clg400"),
        ("ZCU104-base", ZCU104, "xczu7ev-ffvc1156-2-e"),
    ],
)
def test_vivado_s_own_files_are_read(name: str, board: Board, part: str, overlays: Path, tmp_path: Path) -> None:
    """The chip of both files, whatever way Vivado spells it; and that they are another board's, on each other board."""
    source = overlays / f"{name}.bit"
    assert bit_part(source) == part == embedded.parse_bit_header(source.read_bytes())["part"]
    opened = open_bitstream(lay(tmp_path, board, source.with_suffix(".hwh"), source), board.config)
    assert (opened.device, opened.package, opened.part) == (board.device, board.package, part)
    for other in (PYNQ_Z2, ZCU104, BOARDS["kv260"]):
        if other.device != board.device:
            path = lay(tmp_path, other, source.with_suffix(".hwh"), source)
            with pytest.raises(UserError, match=f"is for {board.device}-{board.package}, board '{other.name}' has"):
                open_bitstream(path, other.config)


@pytest.mark.parametrize("name,board", [("resizer", PYNQ_Z2), ("rfsoc_sam", RFSOC4X2)])
def test_pynqmetadata_s_hand_offs_are_read(name: str, board: Board, tmp_path: Path) -> None:
    part = f"{board.device.removeprefix('xc')}{board.package}" if board is PYNQ_Z2 else board.part
    opened = open_bitstream(lay(tmp_path, board, HWHS / f"{name}.hwh", bit({}, part=part)), board.config)
    assert (opened.device, opened.package) == (board.device, board.package)


def parsed(path: Path) -> Any:
    """What PYNQ makes of a hand-off, as an overlay shows it."""
    parser = embedded.RuntimeMetadataParser(embedded.Metadata(input=path))
    return SimpleNamespace(ip_dict=parser.ip_dict)


@pytest.mark.parametrize(
    "name,widths,mhz",
    [
        ("Pynq-Z2-base", {"S_AXI_HP0": 64, "S_AXI_HP2": 64}, 100.0),
        ("ZCU104-base", {"S_AXI_HP0_FPD": 128, "S_AXI_HP2_FPD": 128}, 99.999001),
        ("resizer", {"S_AXI_HP0": 64}, 100.0),
        ("rfsoc_sam", {"S_AXI_HP2_FPD": 128}, 99.999985),
    ],
)
def test_port_widths_and_clocks_are_found_in_real_designs(
    name: str, widths: dict[str, int], mhz: float, overlays: Path
) -> None:
    path = HWHS / f"{name}.hwh"
    overlay = parsed(path if path.is_file() else overlays / path.name)
    assert port_widths(overlay) == widths and design_mhz(overlay) == mhz
    with pytest.raises(DeviceError, match="the design has 0 accelerators"):
        accelerator_name(overlay, path)
    if name == "Pynq-Z2-base":
        assert check_widths(overlay, PYNQ_Z2.config, path) == "S_AXI_HP0 64, S_AXI_HP2 64 bits"


def test_every_memory_port_is_found_by_its_number() -> None:
    """UG1085, table "PS-PL AXI interfaces": S_AXI_GP0 and 1 are HPC0 and 1, GP2 to 5 are HP0 to 3."""
    names = ["S_AXI_HPC0_FPD", "S_AXI_HPC1_FPD", *(f"S_AXI_HP{i}_FPD" for i in range(4))]
    for i, name in enumerate(names):
        parameters = {f"PSU__USE__S_AXI_GP{i}": "1", f"PSU__SAXIGP{i}__DATA_WIDTH": "64"}
        ps = {"type": "xilinx.com:ip:zynq_ultra_ps_e:3.5", "parameters": parameters}
        assert port_widths(SimpleNamespace(ip_dict={"ps": ps})) == {name: 64}
    for i in range(4):
        parameters = {f"PCW_USE_S_AXI_HP{i}": "1", f"PCW_S_AXI_HP{i}_DATA_WIDTH": "32"}
        ps = {"type": "xilinx.com:ip:processing_system7:5.5", "parameters": parameters}
        assert port_widths(SimpleNamespace(ip_dict={"ps": ps})) == {f"S_AXI_HP{i}": 32}


@pytest.mark.parametrize(
    "said,name",
    [
        ("7z020", "xc7z020"),
        ("7Z020", "xc7z020"),
        ("xc7z020", "xc7z020"),
        ("7a35t", "xc7a35t"),
        ("xck26", "xck26"),
        ("XCK26", "xck26"),
        (" xczu7ev ", "xczu7ev"),
        ("xczu48dr", "xczu48dr"),
        ("xczu3eg", "xczu3eg"),
        ("", ""),
    ],
)
def test_a_chip_has_one_name(said: str, name: str) -> None:
    assert device_name(said) == name


SYSTEM = '<?xml version="1.0"?><EDKSYSTEM VIVADOVERSION="2024.1"><SYSTEMINFO {}/></EDKSYSTEM>'


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
@pytest.mark.parametrize("spell", [str, str.upper, lambda s: s.removeprefix("xc")], ids=["as is", "upper", "short"])
def test_every_board_s_chip_is_known_however_it_is_spelt(
    board: Board, spell: Callable[[str], str], tmp_path: Path
) -> None:
    if spell(board.device) == board.device.removeprefix("xc") and not board.device.startswith("xc7"):
        spell = str.title
    text = SYSTEM.format(f'DEVICE="{spell(board.device)}" PACKAGE="{board.package.upper()}" SPEEDGRADE="-1"')
    part = spell(board.part)
    opened = open_bitstream(lay(tmp_path, board, text, bit({}, part=part)), board.config)
    assert (opened.device, opened.package) == (board.device, board.package)


@pytest.mark.parametrize("attributes", ['DEVICE="xck26"', 'PACKAGE="sfvc784"', "", 'DEVICE="" PACKAGE=""'])
def test_a_hand_off_that_does_not_name_its_chip_is_refused_by_name(attributes: str, tmp_path: Path) -> None:
    board = BOARDS["kv260"]
    path = lay(tmp_path, board, SYSTEM.format(attributes), bit({}, part=board.part))
    with pytest.raises(UserError, match=r"\.hwh: does not say which chip it is for .* tellme build --board kv260 made"):
        open_bitstream(path, board.config)


def test_a_bitstream_of_the_same_chip_in_another_package_is_not_this_hand_off_s(tmp_path: Path) -> None:
    text = SYSTEM.format('DEVICE="7z020" PACKAGE="clg400"')
    with pytest.raises(UserError, match="is for 7z020clg484, but .* is for xc7z020-clg400; copy both"):
        open_bitstream(lay(tmp_path, PYNQ_Z2, text, bit({}, part="7z020clg484")), PYNQ_Z2.config)


def test_a_hand_off_in_an_encoding_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{build_name(TINY)}.bit"
    path.write_bytes(bit({}))
    for text in (b'<?xml version="1.0" encoding="no-such"?><EDKSYSTEM/>', b"\xff\xfe<\0E\0", b""):
        path.with_suffix(".hwh").write_bytes(text)
        with pytest.raises(UserError, match="cannot be read as a hardware hand-off"):
            open_bitstream(path, TINY)
    root = ElementTree.parse(HWHS / "resizer.hwh").getroot()
    assert root.find("SYSTEMINFO") is not None  # Vivado writes a byte order mark, which is no fault
    assert (HWHS / "resizer.hwh").read_bytes().startswith(b"\xef\xbb\xbf")
