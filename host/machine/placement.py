"""Which placement of the ports' regions is in use: what `tellme tune` stored for a board, else what its description says.

Stored in `placement.json` in the user's configuration folder (`~/.config/tellme` on Linux, or where XDG_CONFIG_HOME says):
for each board and each back end, which do not mix, `phases_kib`, `gb_s` (all ports together, as measured) and `measured` (when).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from tellme.golden.boards import BOARDS, check_phases
from tellme.golden.boards import phases as board_phases
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.host.errors import UserError
from tellme.host.places import replacing

KIB = 1024


@dataclass(frozen=True)
class Placement:
    """Where the ports' regions begin.

    Attributes
    ----------
    phases : bytes modulo golden.boards.PHASE_PERIOD, of each port; () : one region behind the other.
    rate : bytes/s of all ports together in long reads; None if nobody knows.
    source : who says so.
    """

    phases: tuple[int, ...]
    rate: float | None
    source: str

    @property
    def kib(self) -> list[int]:
        """The phases in KiB."""
        return [x // KIB for x in self.phases]

    def __str__(self) -> str:
        rate = f": {self.rate / 1e9:.2f} GB/s" if self.rate else ""
        return f"{regions(self.kib)}{rate} ({self.source})"


def regions(kib: Sequence[int]) -> str:
    """Where the ports' regions begin, in words."""
    return f"{', '.join(map(str, kib))} KiB modulo 64" if kib else "one behind the other"


def path() -> Path:
    """The file."""
    return platformdirs.user_config_path("tellme", appauthor=False) / "placement.json"


def _read() -> dict[str, Any]:
    where = path()
    try:
        found = json.loads(where.read_text())
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise UserError(f"{where}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{where}: is not JSON ({e}); remove it, or run tellme tune again") from e
    if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
        raise UserError(f"{where}: is not what tellme tune writes; remove it, or run tellme tune again")
    return found


def _key(config: AcceleratorConfig) -> str:
    """Under what a placement is kept: the board's name, and the ports where they are not its preset's."""
    preset = PRESETS.get(config.name, config)
    same = (config.ports, config.port_bytes) == (preset.ports, preset.port_bytes)
    return config.name if same else f"{config.name}:{config.ports}x{8 * config.port_bytes}"


def in_use(config: AcceleratorConfig, backend: str) -> Placement:
    """The placement of a board, real (`board`) or simulated (`sim`).

    Raises
    ------
    UserError : what is stored cannot be read or is no placement.
    """
    stored = _read().get(_key(config), {}).get(backend)
    if stored is not None:
        try:
            phases = tuple(int(KIB * x) for x in stored["phases_kib"])
            check_phases(phases, config.ports)
            return Placement(phases, float(stored["gb_s"]) * 1e9, f"tellme tune, {stored['measured']}")
        except (TypeError, KeyError, ValueError) as e:
            raise UserError(
                f"{path()}: the placement of {config.name!r} cannot be used ({e}); remove it, or run tellme tune again"
            ) from e
    phases = board_phases(config)
    board = BOARDS.get(config.name)
    rate = board.memory_rate if board is not None and phases == board.phases else None
    return Placement(phases, rate, "the board's description, modelled" if phases else "nothing better is known")


def store(config: AcceleratorConfig, backend: str, phases: Sequence[int], rate: float) -> Path:
    """Keeps a placement for a board; gives the file.

    Raises
    ------
    UserError : it cannot be written, or what is there is not ours.
    """
    where = path()
    found = _read()
    found.setdefault(_key(config), {})[backend] = {
        "phases_kib": [x // KIB for x in phases],
        "gb_s": round(rate / 1e9, 3),
        "measured": time.strftime("%Y-%m-%d"),
    }
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{where.parent}: cannot be made ({e.strerror})") from e
    with replacing(where) as whole:
        whole.write_text(json.dumps(found, indent=2) + "\n")
    return where
