"""What the accelerators are built of, elaborated once for all tests that look at it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tellme.golden.config import PRESETS
from tellme.hw.platforms import platform_of
from tellme.hw.primitives import UltraScalePlus
from tellme.hw.synth.inventory import Inventory, inventory
from tellme.hw.top import Accelerator


@cache
def designs() -> dict[str, Inventory]:
    """By preset (one of those that differ in name alone); and "fp", the bench of the floating-point units."""
    from tests.fp.test_units import Bench

    distinct = {replace(c, name="any"): name for name, c in reversed(PRESETS.items())}
    found = {}
    for name in distinct.values():
        platform = platform_of(PRESETS[name]) or UltraScalePlus()
        found[name] = inventory(Accelerator(PRESETS[name]), platform)
    return found | {"fp": inventory(Bench(), UltraScalePlus())}
