"""Power of a board, from the sensors that Linux shows under /sys/class/hwmon."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

HWMON = Path("/sys/class/hwmon")
INTERVAL_S = 0.02
"""Between two samples; the sensors of the boards average over some 1 to 100 ms."""


@dataclass(frozen=True)
class Rail:
    """A power sensor.

    Attributes
    ----------
    name : of the chip, and of the channel where it has a label.
    paths : one file in microwatts; or two in millivolts and milliamperes.
    """

    name: str
    paths: tuple[Path, ...]

    def watts(self) -> float:
        """Power now.

        Raises
        ------
        OSError : the sensor does not answer.
        """
        values = [int(path.read_text()) for path in self.paths]
        return values[0] / 1e6 if len(values) == 1 else values[0] * values[1] / 1e6


def _text(path: Path, default: str) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return default


def rails() -> list[Rail]:
    """The power sensors that add up to the board's consumption: an input sensor (ina260 on Kria) alone if there is one,
    else every rail that has a sensor."""
    found: list[Rail] = []
    for chip in sorted(HWMON.glob("hwmon*")):
        name = _text(chip / "name", chip.name)
        powers = sorted(chip.glob("power*_input"))
        if powers:
            found += [Rail(f"{name} {_text(p.with_name(p.name[:-5] + 'label'), '')}".strip(), (p,)) for p in powers]
        elif name.startswith("ina") and (chip / "in1_input").exists() and (chip / "curr1_input").exists():
            # Voltage 1 of an ina226 is the rail's own, voltage 0 the shunt's.
            found.append(Rail(name, (chip / "in1_input", chip / "curr1_input")))
    readable = [rail for rail in found if _reads(rail)]
    inputs = [rail for rail in readable if rail.name.startswith("ina260")]
    return inputs or readable


def _reads(rail: Rail) -> bool:
    try:
        rail.watts()
    except (OSError, ValueError):
        return False
    return True


class Meter:
    """Energy over time, sampled by a thread. Without sensors it measures nothing and says so.

    Attributes
    ----------
    rails : what is added up.
    """

    def __init__(self) -> None:
        self.rails = rails()
        self._joules = 0.0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts to add up, from 0."""
        self.stop()
        self._joules = 0.0
        if self.rails:
            self._done.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        before, power = time.monotonic(), self._watts()
        last = False
        while not last:
            last = self._done.wait(INTERVAL_S)
            now, next_power = time.monotonic(), self._watts()
            if power is None or next_power is None:
                self.rails = []  # a sum with holes would be wrong
                return
            self._joules += (power + next_power) / 2 * (now - before)
            before, power = now, next_power

    def _watts(self) -> float | None:
        try:
            return sum(rail.watts() for rail in self.rails)
        except (OSError, ValueError):
            return None

    def stop(self) -> float | None:
        """Joules since the start; None if there is nothing to measure them with."""
        if self._thread is None:
            return None
        self._done.set()
        self._thread.join()
        self._thread = None
        return self._joules if self.rails else None
