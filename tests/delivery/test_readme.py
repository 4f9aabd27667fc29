"""The README of the Verilog says what the Verilog has."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from amaranth.hdl import Value
from amaranth.lib.wiring import Out

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.hw.delivery.readme import readme
from tellme.hw.top import Accelerator


def table(text: str, title: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    rows = re.search(rf"(?ms)^## {title}\n.*?^\|---.*?\n(.*?)\n\n", text)
    assert rows is not None, title
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


@pytest.mark.parametrize("name", PRESETS)
def test_ports_and_parameters_are_those_of_the_verilog(name: str) -> None:
    config = PRESETS[name]
    text = readme(config, {"tellme.v": "the accelerator"}, project=name in BOARDS)
    assert text.startswith(f"# {build_name(config)}\n") and "None" not in text
    assert all(word not in text for word in ("{{", "{%", "/work", "/tmp", "/home", "/root"))
    wanted = {("clk", "input", 1), ("rst", "input", 1)}
    for path, member, value in Accelerator(config).signature.flatten(Accelerator(config)):
        direction = "output" if member.flow is Out else "input"
        wanted.add(("_".join("<i>" if isinstance(p, int) else p for p in path), direction, len(Value.cast(value))))
    said = table(text, "Ports of module `tellme`")
    assert {(port, direction, int(bits)) for port, direction, bits, _ in said} == wanted and len(said) == len(wanted)
    parameters = {name: (value, meaning) for name, value, meaning in table(text, "Parameters")}
    assert list(parameters) == [f.name for f in fields(AcceleratorConfig)]
    assert all(parameters[n] == (str(getattr(config, n)), parameters[n][1]) and parameters[n][1] for n in parameters)
    assert f"{config.clock_hz / 1e6:g} MHz" in text
