"""The registers as a C header, from `golden.registers`: for drivers that are not ours, and test benches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from tellme.golden import registers
from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import BUSY, REGISTERS, STALLS, ErrorCode

NAME = "tellme_registers.h"

_HEAD = """\
/* Registers of {build}: AXI4-Lite, 32-bit words, little endian. C99 and C++. Made by tellme from golden/registers.py.
 *
 * TELLME_REG_x          byte offset of register x; TELLME_REG_x_AT(i): of the i-th, where TELLME_REG_x_COUNT of them follow one another
 * TELLME_x_MAX          largest value of a register that is one number
 * TELLME_x_y_SHIFT      lowest bit of field y of register x; _MASK: its bits, in place; _WIDTH: how many
 * TELLME_GET(x_y, w)    field y of word w of register x
 * TELLME_PUT(x_y, v)    value v in place, to be or-ed with other fields
 * TELLME_CONFIG_x       parameter x of the configuration
 */
#ifndef TELLME_REGISTERS_H
#define TELLME_REGISTERS_H

#include <stdint.h>

#define TELLME_GET(field, word) (((uint32_t)(word) & TELLME_##field##_MASK) >> TELLME_##field##_SHIFT)
#define TELLME_PUT(field, value) (((uint32_t)(value) << TELLME_##field##_SHIFT) & TELLME_##field##_MASK)

/* `base` is where the registers are mapped. */
static inline uint32_t tellme_read(const volatile void *base, uint32_t offset) {{
  return *(const volatile uint32_t *)((const volatile char *)base + offset);
}}
static inline void tellme_write(volatile void *base, uint32_t offset, uint32_t value) {{
  *(volatile uint32_t *)((volatile char *)base + offset) = value;
}}
"""


def constants(config: AcceleratorConfig) -> dict[str, int]:
    """Every macro that is a number and every enumerator, by name."""
    out = {
        "TELLME_IDENTITY": registers.IDENTITY,
        "TELLME_VERSION": registers.VERSION,
        "TELLME_BUILD": registers.build_hash(config),
        "TELLME_GEOMETRY": registers.geometry(config),
        "TELLME_REGISTER_BYTES": 1 << registers.ADDRESS_BITS,
        "TELLME_BASE_ALIGNMENT": registers.BASE_ALIGNMENT,
        "TELLME_PORT_ADDRESS_BITS": registers.PORT_ADDRESS_BITS,
    }
    if config.name in BOARDS:
        out["TELLME_REGISTER_BASE"] = BOARDS[config.name].register_base
    for r in REGISTERS:
        name = r.name.upper()
        out[f"TELLME_REG_{name}"] = r.offset
        if r.count > 1:
            out[f"TELLME_REG_{name}_COUNT"] = r.count
        if r.access == "rw" and not r.fields:
            out[f"TELLME_{name}_MAX"] = r.most
        for f in r.fields:
            field = f"TELLME_{name}_{f.name.upper()}"
            out |= {f"{field}_SHIFT": f.start, f"{field}_WIDTH": f.width, f"{field}_MASK": f.top << f.start}
    for name, (_, numbers) in _enumerations().items():
        out |= {f"TELLME_{name.upper()}_{key}": value for key, value in numbers.items()}
    for key, value in asdict(config).items():
        if isinstance(value, int):
            out[f"TELLME_CONFIG_{key.upper()}"] = int(value)
    return out


def _enumerations() -> dict[str, tuple[str, dict[str, int]]]:
    """Of each: what it is about, and its numbers."""
    return {
        "error": ("why a pass stopped: STATUS_ERROR", {e.name: e.value for e in ErrorCode}),
        "stall": ("order of the words of STALL", {s.upper(): i for i, s in enumerate(STALLS)}),
        "busy": ("order of the words of BUSY", {b.upper(): i for i, b in enumerate(BUSY)}),
    }


def header(config: AcceleratorConfig) -> str:
    """Text of the header."""
    numbers = constants(config)

    def define(name: str) -> str:
        return f"#define {name} 0x{numbers[name]:X}u"

    def lines() -> Iterator[str]:
        yield _HEAD.format(build=build_name(config))
        yield "/* ---- what was built ---- */"
        for name in list(numbers)[: list(numbers).index("TELLME_REG_IDENTITY")]:
            yield define(name)
        for key, value in asdict(config).items():
            name = f"TELLME_CONFIG_{key.upper()}"
            yield f"#define {name} {numbers[name]}u" if name in numbers else f'#define {name} "{value}"'
        yield "\n/* ---- registers ---- */"
        for r in REGISTERS:
            name = r.name.upper()
            live = ", taken while a pass runs" if r.live else ""
            yield f"\n/* {r.access}{live}: {r.doc} */"
            yield define(f"TELLME_REG_{name}")
            if r.count > 1:
                yield define(f"TELLME_REG_{name}_COUNT")
                yield f"#define TELLME_REG_{name}_AT(i) (TELLME_REG_{name} + 4u * (uint32_t)(i))"
            if f"TELLME_{name}_MAX" in numbers:
                yield define(f"TELLME_{name}_MAX")
            for f in r.fields:
                yield f"/* {f.doc} */"
                yield from (define(f"TELLME_{name}_{f.name.upper()}_{part}") for part in ("SHIFT", "WIDTH", "MASK"))
        for kind, (about, values) in _enumerations().items():
            yield f"\n/* {about} */"
            yield f"enum tellme_{kind} {{"
            yield ",\n".join(f"  TELLME_{kind.upper()}_{key} = {value}" for key, value in values.items())
            yield "};"
        yield "\n#endif"

    return "\n".join(lines()) + "\n"
