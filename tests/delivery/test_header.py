"""The C header says what golden/registers.py says: compiled by a C and a C++ compiler, and asked."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tellme.golden import registers
from tellme.golden.boards import BOARDS
from tellme.golden.config import PRESETS
from tellme.golden.registers import BUSY, REGISTERS, STALLS, ErrorCode
from tellme.hw.delivery.header import NAME, constants, header

CONFIG = replace(PRESETS["kv260"], lanes=8)
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wcast-qual", "-Werror")
COMPILERS = {"c99": ("cc", "-std=c99", "main.c"), "c++": ("c++", "-std=c++11", "main.cpp")}


def asked(folder: Path, language: str, body: str) -> list[str]:
    """What a program with that body of `main` prints, line by line."""
    compiler, standard, name = COMPILERS[language]
    if shutil.which(compiler) is None:
        pytest.fail(f"{compiler} is needed here, as for the simulator")
    (folder / NAME).write_text(header(CONFIG))
    (folder / name).write_text(
        f'#include "{NAME}"\n#include "{NAME}"\n#include <stdio.h>\nint main(void) {{\n{body}\nreturn 0;\n}}\n'
    )
    subprocess.run([compiler, standard, *STRICT, "-o", "main", name], cwd=folder, check=True)
    return subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("language", COMPILERS)
def test_every_number_is_golden_s(language: str, tmp_path: Path) -> None:
    defined = re.findall(r"(?m)^(?:#define |  )(TELLME_\w+)(?: |$)", header(CONFIG))
    assert len(defined) == len(set(defined)), "a name is defined twice"
    guard = {"TELLME_REGISTERS_H"}
    strings = {"TELLME_CONFIG_NAME", "TELLME_CONFIG_WEIGHT_FORMAT"}
    assert set(defined) - strings - guard == set(constants(CONFIG))
    body = "\n".join(
        f'printf("{n} %llu\\n", (unsigned long long)({n}));' for n in sorted(set(defined) - strings - guard)
    )
    said = {name: int(value) for name, value in (line.split() for line in asked(tmp_path, language, body))}
    # Not by way of `constants`: by what the driver and the hardware use.
    for r in REGISTERS:
        name = r.name.upper()
        assert said[f"TELLME_REG_{name}"] == registers.offset(r.name)
        assert said.get(f"TELLME_REG_{name}_COUNT", 1) == r.count
        for f in r.fields:
            field = f"TELLME_{name}_{f.name.upper()}"
            assert said[f"{field}_MASK"] == registers.pack(r.name, **{f.name: f.top})
            assert 1 << said[f"{field}_SHIFT"] == registers.pack(r.name, **{f.name: 1})
            assert said[f"{field}_WIDTH"] == f.width
        if r.access == "rw" and not r.fields:
            most = said[f"TELLME_{name}_MAX"]
            assert registers.pack(r.name, most) == most
            with pytest.raises(ValueError):
                registers.pack(r.name, most + 1)
    assert {n: said[f"TELLME_ERROR_{n}"] for n in ErrorCode.__members__} == {e.name: e.value for e in ErrorCode}
    assert [said[f"TELLME_STALL_{s.upper()}"] for s in STALLS] == list(range(len(STALLS)))
    assert [said[f"TELLME_BUSY_{b.upper()}"] for b in BUSY] == list(range(len(BUSY)))
    assert said["TELLME_GEOMETRY"] == registers.geometry(CONFIG) and said["TELLME_BUILD"] == registers.build_hash(
        CONFIG
    )
    assert said["TELLME_CONFIG_LANES"] == 8 and said["TELLME_CONFIG_NARROW_CACHE"] == 1
    assert said["TELLME_REGISTER_BASE"] == BOARDS["kv260"].register_base
    assert said["TELLME_IDENTITY"] == int.from_bytes(b"eMlT", "little")


@pytest.mark.parametrize("language", COMPILERS)
def test_words_are_made_and_read_as_golden_does(language: str, tmp_path: Path) -> None:
    """Macros of fields and of arrays, and the functions on memory that stands for the registers."""
    body = """
  static uint32_t words[TELLME_REGISTER_BYTES / 4];
  tellme_write(words, TELLME_REG_HEAD_LANES, TELLME_PUT(HEAD_LANES_FIRST, 3) | TELLME_PUT(HEAD_LANES_COUNT, 5));
  tellme_write(words, TELLME_REG_POSITION_AT(31), TELLME_POSITION_MAX);
  tellme_write(words, TELLME_REG_STATUS, 0x00000a02u);
  const uint32_t status = tellme_read(words, TELLME_REG_STATUS);
  printf("%u\\n%u\\n", (unsigned)words[TELLME_REG_HEAD_LANES / 4], (unsigned)words[(TELLME_REG_POSITION + 124) / 4]);
  printf("%u\\n%u\\n", (unsigned)TELLME_GET(STATUS_ERROR, status), (unsigned)TELLME_GET(STATUS_DONE, status));
  printf("%u\\n%s\\n", (unsigned)TELLME_PUT(HEAD_LANES_FIRST, 0x1ff), TELLME_CONFIG_NAME);"""
    head = registers.pack("head_lanes", first=3, count=5)
    status = registers.unpack("status", 0xA02)
    assert asked(tmp_path, language, body) == [
        str(head), str(registers.pack("position", 65535)), str(status["error"]), str(status["done"]), "255", "kv260",
    ]  # fmt: skip
    assert ErrorCode(status["error"]) is ErrorCode.BAD_LANES


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_one_and_boards_say_where_it_is(name: str) -> None:
    text = header(PRESETS[name])
    assert f"#define TELLME_BUILD 0x{registers.build_hash(PRESETS[name]):X}u\n" in text
    assert ("TELLME_REGISTER_BASE" in text) == (name in BOARDS)
