"""The project as it is installed: its name among Python's packages, and what to say when a part is missing."""

from __future__ import annotations

DISTRIBUTION = "tellme-fpga"
"""Name of the distribution. `tellme` on PyPI is another project; the command and the project are called `tellme`."""


def advice(extra: str) -> str:
    """The command that installs an optional part, `extra` of pyproject.toml."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
