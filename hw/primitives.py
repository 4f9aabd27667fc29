"""What a block may be built of: passed as `platform` to elaboration.

Without one, blocks are plain logic and inferred memory, UltraRAM among it, which every tool reads and which simulates
faster.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Inferred:
    """Plain logic and inferred memory.

    Parameters
    ----------
    ultra_ram : deep memories may ask for UltraRAM.
    """

    ultra_ram: bool


class UltraScalePlus:
    """AMD UltraScale+: blocks that have one use their form of vendor primitives (RAM32M16, DSP48E2) instead of inference."""

    @property
    def ultra_ram(self) -> bool:
        """Deep memories may ask for UltraRAM."""
        return True


def deep_ram(platform: object) -> dict[str, str]:
    """Attributes of a memory of several thousand words: UltraRAM, or block RAM on a platform that says it has none.

    Parameters
    ----------
    platform : what `elaborate` was given; its attribute `ultra_ram` counts, and None stands for a chip that has it.
    """
    return {"ram_style": "ultra" if getattr(platform, "ultra_ram", True) else "block"}
