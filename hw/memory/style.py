"""Which RAM of a chip a deep memory goes into."""

from __future__ import annotations


def deep_ram(platform: object) -> dict[str, str]:
    """Attributes of a memory of several thousand words: UltraRAM, or block RAM on a platform that says it has none.

    Parameters
    ----------
    platform : what `elaborate` was given; its attribute `ultra_ram` counts, and None stands for a chip that has it.
    """
    return {"ram_style": "ultra" if getattr(platform, "ultra_ram", True) else "block"}
