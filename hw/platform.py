"""What a block may be built of: passed as `platform` to elaboration."""

from __future__ import annotations

from golden.config import AcceleratorConfig


class UltraScalePlus:
    """AMD UltraScale+: blocks that have one use their form of vendor primitives (RAM32M16, DSP48E2) instead of inference.

    Without a platform everything is plain logic and inferred memory, which every tool reads and which simulates faster.
    """


def platform(config: AcceleratorConfig) -> UltraScalePlus | None:
    """The platform of a preset's board; None for tiny, which is no board's."""
    return UltraScalePlus() if config.name == "kv260" else None
