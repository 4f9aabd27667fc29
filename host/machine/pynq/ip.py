"""PYNQ itself, and what it takes the accelerator for."""

from __future__ import annotations

from tellme.golden.boards import VLNV
from tellme.golden.project import advice
from tellme.host.errors import UserError

try:
    import pynq
    from pynq.overlay import DefaultIP
except ImportError as e:
    raise UserError(
        f"pynq cannot be loaded ({e}); on a board run in PYNQ's own environment (source /etc/profile.d/pynq_venv.sh), "
        f"elsewhere: {advice('pynq')}"
    ) from e

__all__ = ["AcceleratorIP", "line", "pynq"]


class AcceleratorIP(DefaultIP):
    """What `overlay.tellme_0` is; PYNQ binds it by the type in the hardware hand-off."""

    bindto = [VLNV]


def line(e: BaseException) -> str:
    """What PYNQ, XRT or gRPC say, in one line."""
    return " ".join(str(e).split())[:300] or type(e).__name__
