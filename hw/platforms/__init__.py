"""Boards as Amaranth platforms, in the manner of amaranth-boards."""

from __future__ import annotations

from tellme.hw.platforms.zynq import PLATFORMS, ZynqPlatform, platform_of

__all__ = ["PLATFORMS", "ZynqPlatform", "platform_of"]
