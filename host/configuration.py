"""Configurations that are no preset: a board's preset with changes, and boards that are described in a file.

A configuration file is TOML. At its top are `board` and the parameters that differ from the board's preset, by the names of
`golden.config.AcceleratorConfig`:

    board = "kv260"
    lanes = 8
    clock_mhz = 200

`board` is a preset, another file (its path relative to this one), or a table that describes a board (docs/own-board.md).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tellme.golden.boards import BOARDS, MIB, PAGE, PHASE_PERIOD, Board, Dram, add, build_name, check
from tellme.golden.config import PRESETS, AcceleratorConfig, ConfigError
from tellme.golden.registers import build_hash
from tellme.host.errors import UserError

if sys.version_info >= (3, 11):  # noqa: UP036 - boards have 3.10
    import tomllib
else:
    import tomli as tomllib

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints"
LARGEST = 1 << 20
"""Bytes of a configuration file: nobody writes more by hand."""
LEVELS = 4
"""Files that may name another one as their board, one behind the other."""

BUILT_IN = frozenset(PRESETS)
"""Presets that no file describes."""

PARAMETERS = tuple(f.name for f in fields(AcceleratorConfig) if f.name != "name")
"""What may be changed. `name` is the board's: everything finds the board by it, and builds differ by their hash."""

WORDS = ("weight_format",)
"""Parameters that are words."""

DERIVED = (
    "beat_bytes", "beat_weights", "groups", "word", "tile_words", "cell", "keys_per_beat", "key_block", "scale_beats", "row_width",
    "max_rows",
)  # fmt: skip
"""What `tellme config show` says besides the parameters."""

Said = Mapping[str, str]
"""For each name, where it was given."""


@dataclass(frozen=True)
class Configuration:
    """A configuration and where it is from.

    Attributes
    ----------
    config : the accelerator. base : the preset that it began as. changes : parameters that differ from it.
    files : the configuration file, and those it names.
    """

    config: AcceleratorConfig
    base: AcceleratorConfig
    files: tuple[Path, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        return changes(self.config, self.base)

    @property
    def board(self) -> str:
        """What names the board in a file: its preset, or the path of the file that describes it."""
        return self.base.name if self.base.name in BUILT_IN else str(self.files[-1].resolve())

    @property
    def sha256(self) -> str:
        """Of the parameters (the build register holds 32 bits of a hash of the same)."""
        return sha256(self.config)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        board = BOARDS.get(self.config.name)
        return {
            "board": self.config.name,
            "part": None if board is None else board.part,
            "build": f"{build_hash(self.config):08x}",
            "name": build_name(self.config),
            "sha256": self.sha256,
            "files": [str(f) for f in self.files],
            "changes": self.changes,
            "parameters": {name: getattr(self.config, name) for name in PARAMETERS},
            "derived": derived(self.config),
        }


def sha256(config: AcceleratorConfig) -> str:
    """Hash of all parameters."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()


def changes(config: AcceleratorConfig, base: AcceleratorConfig) -> dict[str, Any]:
    """The parameters of `config` that are not those of `base`."""
    return {n: getattr(config, n) for n in PARAMETERS if getattr(config, n) != getattr(base, n)}


def derived(config: AcceleratorConfig) -> dict[str, Any]:
    """What follows from the parameters: `DERIVED`, and bytes/s that the ports carry."""
    return {**{n: getattr(config, n) for n in DERIVED}, "beat_rate": config.beat_bytes * config.clock_hz}


def text(config: AcceleratorConfig, board: str, base: AcceleratorConfig, comment: str = "") -> str:
    """A configuration file.

    Parameters
    ----------
    board : preset, or path of a board's file as the file will name it. base : its preset.
    comment : first lines.
    """
    lines = [f"# {line}" for line in comment.splitlines()] + [f"board = {json.dumps(board)}"]
    return "\n".join([*lines, *(f"{n} = {json.dumps(v)}" for n, v in changes(config, base).items()), ""])


# ---- reading ---------------------------------------------------------------------------------------------------------


def resolve(name: str | None, file: Path | None, settings: Sequence[str], *, default: str = "tiny") -> Configuration:
    """The configuration that `--board`, `--config` and `--set` mean: the file's, with the settings on top; of two settings
    of a parameter the later one.

    Parameters
    ----------
    name : preset of --board; it may be given with a file only if it is the file's.
    settings : name=value of each --set. default : preset where neither says any.

    Raises
    ------
    UserError : what is given cannot be used; says where, the limit, and what follows from it.
    """
    files: tuple[Path, ...] = ()
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    if file is not None:
        found, values, files = _read(file, ())
        if name is not None and name != found:
            raise UserError(f"{file}: is for board {found!r}, not {name!r}; leave --board out")
        where = dict.fromkeys(values, str(file))
        name = found
    base = preset(name or default)
    for setting in settings:
        key, value = parse(setting)
        values = _over(values, {key: value})
        where[key] = f"--set {setting}"
    return Configuration(_changed(base, values, where, BOARDS.get(base.name)), base, files)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Changes on top of others: clock_hz and clock_mhz are one."""
    same = {"clock_hz": "clock_mhz", "clock_mhz": "clock_hz"}
    return {k: v for k, v in below.items() if same.get(k) not in above} | dict(above)


def preset(name: str) -> AcceleratorConfig:
    """The preset of a board.

    Raises
    ------
    UserError : there is none.
    """
    if name not in PRESETS:
        raise UserError(f"board {name!r} is unknown; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def parse(setting: str) -> tuple[str, Any]:
    """Name and value of a `--set`.

    Raises
    ------
    UserError : it is not name=value, or the value is none of TOML.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise UserError(f"--set {setting}: must be name=value, for instance --set lanes=8")
    if key.strip() in WORDS and value.strip().isalpha():
        return key.strip(), value.strip()  # a shell takes the quotation marks away
    try:
        found = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        found = {}
    if found.keys() != {"value"}:
        raise UserError(f"--set {setting}: {value.strip()!r} is no value; numbers are written 8 or 250_000_000")
    return key.strip(), found["value"]


def _changed(base: AcceleratorConfig, values: Mapping[str, Any], where: Said, board: Board | None) -> AcceleratorConfig:
    """A preset with changes, checked against its board."""
    known = (*PARAMETERS, "clock_mhz")
    for key in values:
        if key == "name":
            raise UserError(f"{where[key]}: name is the board's and cannot be set; builds differ by their hash")
        if key not in known:
            raise UserError(f"{where[key]}: {_unknown('parameter', key, known)}")
    values = dict(values)
    said = ", ".join(dict.fromkeys(where[key] for key in values))
    try:
        clock = _clock(base, values, board)
        config = replace(base, **{**values, **clock})
        if board is not None:
            check(config, board)
    except ConfigError as e:
        raise UserError(f"{said}: {e}") from e
    return config


def _unknown(what: str, key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"there is no {what} {key!r}{f', did you mean {near[0]}?' if near else ''}; there are {', '.join(known)}"


def _clock(base: AcceleratorConfig, values: dict[str, Any], board: Board | None) -> dict[str, int]:
    """Takes the clock out of `values`: as what the board's PLL makes, which is its frequency by a whole number."""
    if "clock_mhz" in values:
        if "clock_hz" in values:
            raise ConfigError("clock_hz and clock_mhz say the same; give one")
        mhz = values.pop("clock_mhz")
        if type(mhz) not in (int, float) or not 1 <= mhz <= 1000:
            raise ConfigError(f"clock_mhz must be a number from 1 to 1,000, not {mhz!r}")
        hz = round(mhz * 1e6)
    elif "clock_hz" in values:
        hz = values.pop("clock_hz")
    else:
        return {}
    replace(base, clock_hz=hz)  # its own limits
    if board is None or hz == base.clock_hz:
        return {"clock_hz": hz}
    try:
        return {"clock_hz": board.clock(hz / 1e6)}
    except ValueError as e:
        raise ConfigError(str(e)) from e


def _read(file: Path, above: tuple[Path, ...]) -> tuple[str, dict[str, Any], tuple[Path, ...]]:
    """Board, changes, and all files of a configuration file. A board that is described is made known."""
    if len(above) >= LEVELS or file.resolve() in [f.resolve() for f in above]:
        raise UserError(f"{file}: files name each other as their board; at most {LEVELS} one behind the other")
    try:
        if file.is_file() and file.stat().st_size > LARGEST:
            raise UserError(f"{file}: has more than {LARGEST:,} bytes; it is no configuration file")
        values = tomllib.loads(file.read_bytes().decode())
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: is not UTF-8 text (byte {e.start})") from e
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise UserError(f"{file}: is no TOML ({e})") from e
    board = values.pop("board", None)
    files = (*above, file)
    if isinstance(board, dict):
        described = describe(board, file)
        base = replace(PRESETS[board["like"]], name=described.name)
        where = dict.fromkeys(values, str(file))
        try:
            add(described, _changed(base, values, where, described))
        except ValueError as e:
            raise UserError(f"{file}: {e}") from e
        return described.name, {}, files
    if not isinstance(board, str):
        raise UserError(
            f"{file}: board must name the preset that is changed, or describe a board, not {board!r}; there are {', '.join(sorted(PRESETS))}"
        )
    if board.endswith(".toml") and "\0" not in board:
        name, more, files = _read(file.parent / board, files)
        return name, _over(more, values), files
    if board not in PRESETS:
        raise UserError(
            f"{file}: board {board!r} is unknown; there are {', '.join(sorted(PRESETS))}, or a file (.toml)"
        )
    return board, values, files


# ---- boards ----------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
_TITLE = re.compile(r"[\w .,:;()/+-]{1,80}")
_PART = re.compile(r"[A-Za-z0-9-]{1,32}")
_BOARD_PART = re.compile(r"[\w.-]+:[\w.-]+:part\d+")
_PORT = {
    "zynq_ultra_ps_e": re.compile(r"S_AXI_HP[0-3]_FPD"),
    "processing_system7": re.compile(r"S_AXI_HP[0-3]"),
}
_DDR = re.compile(r"[A-Z0-9]+-(\d{3,5}), (16|32|64) bit( \(PS\))?")

OWN = (
    "name", "title", "device", "package", "speed", "board_part", "ddr", "ddr_bytes", "luts", "ffs", "bram36", "urams", "dsps",
    "pl_reference_hz",
)  # fmt: skip
"""Facts that no two boards share: a board's file must give them."""
LIKE = ("ps", "memory_ports", "register_base", "cma_default", "vivado", "manual")
"""Facts that are those of the board that it is like, unless the file gives them."""
MEMORY = ("memory_rate", "dram", "phases_kib")
"""Likewise, if its memory is the same (`ddr`)."""
NUMBERS: dict[str, tuple[int, int]] = {
    "ddr_bytes": (16 * MIB, 1 << 40),
    "luts": (1000, 10_000_000),
    "ffs": (1000, 20_000_000),
    "bram36": (1, 20_000),
    "urams": (0, 10_000),
    "dsps": (0, 50_000),
    "pl_reference_hz": (10_000_000, 4_000_000_000),
    "memory_rate": (1_000_000, 1_000_000_000_000),
    "register_base": (0, (1 << 40) - 1),
    "cma_default": (0, 1 << 40),
}


def describe(values: Mapping[str, Any], file: Path) -> Board:
    """A board from the table of a file.

    Raises
    ------
    UserError : a fact is missing, unknown or out of its limits.
    """

    def refuse(message: str) -> UserError:
        return UserError(f"{file}: board: {message}")

    known = ("like", *OWN, *LIKE, *MEMORY, "constraints")
    unknown = [k for k in values if k not in known]
    if unknown:
        raise refuse(_unknown("fact", unknown[0], known))
    if not isinstance(values.get("like"), str) or values["like"] not in BOARDS:
        raise refuse(
            f"like must be a board whose family it has, not {values.get('like')!r}; there are {', '.join(BOARDS)}"
        )
    like = BOARDS[values["like"]]
    missing = [k for k in OWN if k not in values]
    if missing:
        raise refuse(f"{', '.join(missing)} must be given: no other board's are right")
    facts: dict[str, Any] = {k: getattr(like, k) for k in LIKE} | {k: values[k] for k in (*OWN, *LIKE) if k in values}
    if not isinstance(facts["name"], str) or not _WORD.fullmatch(facts["name"]):
        raise refuse(f"name must be up to 32 small letters, digits and '_', not {facts['name']!r}")
    patterns = {
        "title": _TITLE,
        "device": _PART,
        "package": _PART,
        "speed": _PART,
        "board_part": _BOARD_PART,
        "ddr": _DDR,
    }
    shapes = {"board_part": "vendor:board:part0, as the board file says", "ddr": "as 'DDR4-2400, 64 bit'"}
    for key, pattern in patterns.items():
        if not isinstance(facts[key], str) or not pattern.fullmatch(facts[key]):
            raise refuse(f"{key} must be {shapes.get(key, f'of the characters {pattern.pattern}')}, not {facts[key]!r}")
    for key in ("vivado", "manual"):
        if not isinstance(facts[key], str) or not _TITLE.fullmatch(facts[key]):
            raise refuse(f"{key} must be a short line, not {facts[key]!r}")
    if facts["ps"] != like.ps:
        raise refuse(f"ps must be {like.ps}, that of {like.name}; take a board of the other family for like")
    ports = facts["memory_ports"] = _texts(facts["memory_ports"])
    if not ports or len(set(ports)) != len(ports) or not all(_PORT[like.ps].fullmatch(p) for p in ports):
        raise refuse(f"memory_ports must be some of {_PORT[like.ps].pattern}, each once, not {list(ports)}")
    same = facts["ddr"] == like.ddr and ports == like.memory_ports
    if not same and ("dram" not in values or "memory_rate" not in values):
        raise refuse(
            f"memory {facts['ddr']!r} on {len(ports)} ports is not that of {like.name} ({like.ddr!r} on {len(like.memory_ports)}): "
            "give its timing (table dram) and memory_rate"
        )
    facts["memory_rate"] = values.get("memory_rate", like.memory_rate)
    facts["dram"] = _dram(values["dram"], ports, like, refuse) if "dram" in values else like.dram
    facts["phases"] = (
        _phases(values["phases_kib"], ports, refuse) if "phases_kib" in values else like.phases if same else ()
    )
    for key, (low, high) in NUMBERS.items():
        if type(facts[key]) is not int or not low <= facts[key] <= high:
            raise refuse(f"{key} must be a whole number from {low:,} to {high:,}, not {facts[key]!r}")
    if facts["register_base"] % PAGE:
        raise refuse(f"register_base must be a multiple of {PAGE}, not {facts['register_base']:#x}")
    facts["constraints"] = _constraints(values.get("constraints"), like, file, refuse)
    return Board(**facts)


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(values) if isinstance(values, (list, tuple)) and all(isinstance(v, str) for v in values) else ()


def _dram(values: Any, ports: tuple[str, ...], like: Board, refuse: Any) -> Dram:
    names = {f.name for f in fields(Dram)}
    if not isinstance(values, dict):
        raise refuse(f"dram must be a table of timings, not {values!r}")
    unknown = [k for k in values if k not in names]
    if unknown:
        raise refuse(_unknown("timing in dram", unknown[0], sorted(names)))
    for key, value in values.items():
        if key != "ports" and (type(value) is not int or not 0 <= value <= 10_000_000):
            raise refuse(f"dram: {key} must be a whole number of clocks or bits from 0 to 10,000,000, not {value!r}")
    found = values.get("ports", list(like.dram.ports))
    if not isinstance(found, list) or len(found) != len(ports) or not all(type(p) is int and 0 <= p < 8 for p in found):
        raise refuse(f"dram: ports must be the controller's port of each of {len(ports)} memory ports, not {found!r}")
    dram = replace(like.dram, **{**values, "ports": tuple(found)})
    if dram.block & (dram.block - 1) or not 16 <= dram.block <= 128 or not 10_000 <= dram.clock_khz or not dram.ccd_s:
        raise refuse("dram: block must be 16, 32, 64 or 128 bytes, clock_khz at least 10,000 and ccd_s at least 1")
    if (
        not 4 <= dram.row_low <= 24
        or max(dram.bank_low + dram.bank_bits, dram.group_low + dram.group_bits) > dram.row_low
    ):
        raise refuse("dram: bits of bank and bank group must lie below row_low, which is from 4 to 24")
    return dram


def _phases(values: Any, ports: tuple[str, ...], refuse: Any) -> tuple[int, ...]:
    good = isinstance(values, list) and len(values) in (0, len(ports))
    if not good or not all(type(v) is int and 0 <= v < PHASE_PERIOD // 1024 and v * 1024 % PAGE == 0 for v in values):
        raise refuse(f"phases_kib must be a multiple of 4 below 64 for each of {len(ports)} ports, not {values!r}")
    return tuple(1024 * v for v in values)


def _constraints(value: Any, like: Board, file: Path, refuse: Any) -> str:
    if value is None:
        return like.constraints or (CONSTRAINTS / f"{like.name}.xdc").read_text()
    if not isinstance(value, str):
        raise refuse(f"constraints must be the name of an XDC file, not {value!r}")
    path = file.parent / value
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST):
            raise refuse(f"constraints {value!r} is no file of up to {LARGEST:,} bytes")
        found = path.read_text()
    except (OSError, ValueError) as e:  # no text, or no name of a file
        raise refuse(f"constraints {value!r} cannot be read ({getattr(e, 'strerror', None) or e})") from e
    if not found.strip():
        raise refuse(f"constraints {value!r} is empty")
    return found
