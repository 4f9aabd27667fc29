"""Bitstream files for tests: the header of a `.bit`, and a hardware hand-off made from a real UltraScale+ one.

The hand-off starts from `rfsoc_sam.hwh` (RFSoC 4x2, Vivado 2020.2) in the tests of pynqmetadata. Kept as Vivado wrote it:
the processing system with its 1,718 parameters and its ports, the reset block. Taken out: the radio. Put in: the
accelerator as Vivado writes a module reference (AXI-Lite slave on HPM0, an AXI master on each HP port, interrupt).
"""

from __future__ import annotations

import copy
import json
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pynqmetadata

from tellme.golden.boards import CELL, MODULE, VLNV, build_name
from tellme.golden.config import AcceleratorConfig

REGISTERS = 0xA000_0000
PART = "xczu48dr-ffvg1517-2-e"
Element = ElementTree.Element
_LITE = (
    "awaddr awprot awvalid awready wdata wstrb wvalid wready bresp bvalid bready araddr arprot arvalid arready rdata"
)
_LITE += " rresp rvalid rready"
_FULL = _LITE + " awid awlen awsize awburst awlock awcache awqos wlast bid arid arlen arsize arburst arlock arcache"
_FULL += " arqos rid rlast"


def _add(parent: Element, tag: str, **attributes: object) -> Element:
    return ElementTree.SubElement(parent, tag, {k: str(v) for k, v in attributes.items()})


def _parameters(ps: Element) -> dict[str, Element]:
    return {p.attrib["NAME"]: p for p in ps.findall("PARAMETERS/PARAMETER")}


def _accelerator(config: AcceleratorConfig, vlnv: str) -> Element:
    module = Element(
        "MODULE",
        COREREVISION="1",
        FULLNAME=f"/{CELL}",
        HWVERSION="1.0",
        INSTANCE=CELL,
        IPTYPE="PERIPHERAL",
        IS_ENABLE="1",
        MODCLASS="PERIPHERAL",
        MODTYPE=MODULE,
        VLNV=vlnv,
    )
    _add(module, "DOCUMENTS")
    blocks = _add(module, "ADDRESSBLOCKS")
    _add(blocks, "ADDRESSBLOCK", ACCESS="", INTERFACE="s_axi", NAME="reg0", RANGE=4096, USAGE="register")
    parameters = _add(module, "PARAMETERS")
    for name, value in (
        ("Component_Name", f"design_1_{CELL}_0"),
        ("EDK_IPTYPE", "PERIPHERAL"),
        ("C_BASEADDR", f"0x{REGISTERS:08X}"),
        ("C_HIGHADDR", f"0x{REGISTERS + 4095:08X}"),
    ):
        _add(parameters, "PARAMETER", NAME=name, VALUE=value)
    ports = _add(module, "PORTS")
    clock = _add(
        ports, "PORT", CLKFREQUENCY=config.clock_hz, DIR="I", NAME="clk", SIGIS="clk", SIGNAME="zynq_ultra_ps_e_pl_clk0"
    )
    _add(_add(clock, "CONNECTIONS"), "CONNECTION", INSTANCE="zynq_ultra_ps_e", PORT="pl_clk0")
    irq = _add(ports, "PORT", DIR="O", NAME="irq", SENSITIVITY="LEVEL_HIGH", SIGIS="INTERRUPT", SIGNAME=f"{CELL}_irq")
    _add(_add(irq, "CONNECTIONS"), "CONNECTION", INSTANCE="zynq_ultra_ps_e", PORT="pl_ps_irq0")
    buses = _add(module, "BUSINTERFACES")

    def bus(name: str, kind: str, net: str, bits: int, signals: str) -> None:
        interface = _add(
            buses,
            "BUSINTERFACE",
            BUSNAME=net,
            DATAWIDTH=bits,
            NAME=name,
            TYPE=kind,
            VLNV="xilinx.com:interface:aximm:1.0",
        )
        maps = _add(interface, "PORTMAPS")
        for signal in signals.split():
            _add(ports, "PORT", DIR="O", NAME=f"{name}_{signal}", SIGIS="undef", SIGNAME=f"{net}_{signal}")
            _add(maps, "PORTMAP", LOGICAL=signal.upper(), PHYSICAL=f"{name}_{signal}")

    bus("s_axi", "SLAVE", "zynq_ultra_ps_e_M_AXI_HPM0_FPD", 32, _LITE)
    memory = _add(module, "MEMORYMAP")
    for i in range(config.ports):
        bus(f"m_axi_{i}", "MASTER", f"{CELL}_m_axi_{i}", 8 * config.port_bytes, _FULL)
        _add(
            memory,
            "MEMRANGE",
            ADDRESSBLOCK=f"HP{i}_DDR_LOW",
            BASENAME="C_BASEADDR",
            BASEVALUE="0x00000000",
            HIGHNAME="C_HIGHADDR",
            HIGHVALUE="0x7FFFFFFF",
            INSTANCE="zynq_ultra_ps_e",
            IS_DATA="TRUE",
            IS_INSTRUCTION="TRUE",
            MASTERBUSINTERFACE=f"m_axi_{i}",
            MEMTYPE="MEMORY",
            SLAVEBUSINTERFACE=f"S_AXI_HP{i}_FPD",
        )
    return module


def hand_off(config: AcceleratorConfig, *, vlnv: str = VLNV, width: int | None = None, mhz: float | None = None) -> str:
    """Text of the hand-off. `width`: of the memory ports, bits; `mhz`: of the PL clock; the configuration's if None."""
    source = Path(pynqmetadata.__file__).parent / "tests" / "hwhs" / "rfsoc_sam.hwh"
    root = ElementTree.parse(source).getroot()
    for tag in ("EXTERNALPORTS", "EXTERNALINTERFACES"):
        for child in list(root.find(tag) or ()):
            root.find(tag).remove(child)  # type: ignore[union-attr]
    modules = root.find("MODULES")
    assert modules is not None
    for module in list(modules):
        if module.get("MODTYPE") not in ("zynq_ultra_ps_e", "proc_sys_reset") or "/" in module.attrib["FULLNAME"][1:]:
            modules.remove(module)
        elif module.get("INSTANCE") == "proc_sys_reset_307_2M":
            modules.remove(module)
    ps = next(m for m in modules if m.get("MODTYPE") == "zynq_ultra_ps_e")
    parameters = _parameters(ps)
    bits = 8 * config.port_bytes if width is None else width
    for gp in range(7):
        used = 2 <= gp < 2 + config.ports
        parameters[f"PSU__USE__S_AXI_GP{gp}"].set("VALUE", str(int(used)))
        for name in (f"PSU__SAXIGP{gp}__DATA_WIDTH", f"C_SAXIGP{gp}_DATA_WIDTH"):
            parameters[name].set("VALUE", str(bits if used else 128))
    clock = config.clock_hz / 1e6 if mhz is None else mhz
    parameters["PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"].set("VALUE", f"{clock:g}")
    parameters["PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ"].set("VALUE", f"{clock:.6f}")
    parameters["PSU__USE__IRQ0"].set("VALUE", "1")
    buses = ps.find("BUSINTERFACES")
    assert buses is not None
    hp = next(b for b in buses if b.get("NAME") == "S_AXI_HP2_FPD")
    buses.remove(hp)
    pins = ps.find("PORTS")
    assert pins is not None
    templates = [p for p in pins if p.attrib["NAME"].startswith("saxi")]
    for pin in templates:
        pins.remove(pin)
    irq = _add(
        pins, "PORT", DIR="I", NAME="pl_ps_irq0", SENSITIVITY="LEVEL_HIGH", SIGIS="INTERRUPT", SIGNAME=f"{CELL}_irq"
    )
    _add(_add(irq, "CONNECTIONS"), "CONNECTION", INSTANCE=CELL, PORT="irq")
    for i in range(config.ports):
        bus = copy.deepcopy(hp)
        bus.attrib |= {"NAME": f"S_AXI_HP{i}_FPD", "BUSNAME": f"{CELL}_m_axi_{i}", "DATAWIDTH": str(bits)}
        for port in bus.iter("PORTMAP"):
            port.set("PHYSICAL", port.attrib["PHYSICAL"].replace("saxigp4", f"saxigp{2 + i}"))
        buses.append(bus)
        for pin in copy.deepcopy(templates):
            pin.set("NAME", pin.attrib["NAME"].replace("saxigp4", f"saxigp{2 + i}").replace("hp2", f"hp{i}"))
            pin.set("SIGNAME", f"{CELL}_m_axi_{i}_{pin.attrib['NAME'].rpartition('_')[2]}")
            for connections in pin.findall("CONNECTIONS"):
                pin.remove(connections)
            pins.append(pin)
    memory, peripherals = ps.find("MEMORYMAP"), ps.find("PERIPHERALS")
    assert memory is not None and peripherals is not None
    for child in list(memory):
        memory.remove(child)
    for child in list(peripherals):
        peripherals.remove(child)
    _add(
        memory,
        "MEMRANGE",
        ADDRESSBLOCK="reg0",
        BASENAME="C_BASEADDR",
        BASEVALUE=f"0x{REGISTERS:08X}",
        HIGHNAME="C_HIGHADDR",
        HIGHVALUE=f"0x{REGISTERS + 4095:08X}",
        INSTANCE=CELL,
        IS_DATA="TRUE",
        IS_INSTRUCTION="TRUE",
        MASTERBUSINTERFACE="M_AXI_HPM0_FPD",
        MEMTYPE="REGISTER",
        SLAVEBUSINTERFACE="s_axi",
    )
    _add(peripherals, "PERIPHERAL", INSTANCE=CELL)
    # What went out may not stay connected.
    kept = {m.get("INSTANCE") for m in modules} | {CELL}
    for port in modules.iter("PORT"):
        for connections in port.findall("CONNECTIONS"):
            for c in list(connections):
                if c.get("INSTANCE") not in kept:
                    connections.remove(c)
            if not len(connections):
                port.remove(connections)
    modules.append(_accelerator(config, vlnv))
    return ElementTree.tostring(root, encoding="unicode")


def bit(payload: dict[str, Any], part: str = PART) -> bytes:
    """A `.bit` file whose configuration data is JSON, padded to words: what the simulated chip is configured with."""
    text = json.dumps(payload).encode()
    data = text + b" " * (-len(text) % 4)
    fields = [(b"a", b"tellme;UserID=0XFFFFFFFF;Version=2024.1"), (b"b", part.encode()), (b"c", b"2026/01/01")]
    out = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
    for key, value in [*fields, (b"d", b"12:00:00")]:
        out += key + struct.pack(">H", len(value) + 1) + value + b"\0"
    return out + b"e" + struct.pack(">I", len(data)) + data


def write_build(folder: Path, config: AcceleratorConfig, **payload: Any) -> Path:
    """The files of a build; returns the bitstream. `payload`: what the chip then holds, if not what it should."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{build_name(config)}.bit"
    path.write_bytes(bit({"preset": config.name, **payload}))
    path.with_suffix(".hwh").write_text(hand_off(config))
    return path
