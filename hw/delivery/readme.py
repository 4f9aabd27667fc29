"""The README of a folder of Verilog: what is in it, for an engineer who has nothing but the folder."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from amaranth.lib.wiring import Out
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tellme.golden.boards import BOARDS, MODULE, build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ADDRESS_BITS, PORT_ADDRESS_BITS
from tellme.hw.delivery import header
from tellme.hw.memory.axi import ID_WIDTH, Axi, AxiLite

NAME = "README.md"
TEMPLATES = Path(__file__).resolve().parent / "templates"

_PARAMETER = re.compile(r"^(\w+(?:, \w+)*) : (.*?)(?=^\w[\w, ]* : |^\s*$)", re.M | re.S)


def _meanings() -> dict[str, str]:
    """What the docstring of the configuration says of each parameter."""
    section = inspect.cleandoc(AcceleratorConfig.__doc__ or "").split("----------\n", 1)[1]
    return {
        name: " ".join(text.split()).rstrip(".")
        for names, text in _PARAMETER.findall(section)
        for name in names.split(", ")
    }


def _channels(signature: Axi | AxiLite, prefix: str, *, master: bool) -> list[tuple[str, str, int]]:
    """(port, direction, bits) of a bus."""
    rows = []
    for name, member in signature.members.items():
        width = member.shape if isinstance(member.shape, int) else member.shape.width
        rows.append((f"{prefix}_{name}", "output" if (member.flow is Out) == master else "input", width))
    return rows


def readme(config: AcceleratorConfig, files: Mapping[str, str], *, project: bool) -> str:
    """Text of the README.

    Parameters
    ----------
    files : path of every other file, and what it is.
    project : it is a board's project, not the Verilog alone.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    meanings = _meanings()
    return (
        environment.get_template("README.md.j2").render(
            build=build_name(config),
            board=BOARDS.get(config.name),
            config=config,
            module=MODULE,
            header=header.NAME,
            files=files,
            project=project,
            primitives=any("primitives" in name for name in files),
            parameters=[(name, value, meanings[name]) for name, value in asdict(config).items()],
            slave=_channels(AxiLite(address_width=ADDRESS_BITS), "s_axi", master=False),
            master=_channels(Axi(data_bytes=config.port_bytes), "m_axi_<i>", master=True),
            register_bytes=1 << ADDRESS_BITS,
            address_bits=PORT_ADDRESS_BITS,
            ids=ID_WIDTH,
        )
        + "\n"
    )
