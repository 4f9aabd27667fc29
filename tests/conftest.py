"""Simulations are built in one place, wherever a test changes the working directory to."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TELLME_BUILD", str(Path(__file__).parent.parent / "build" / "sim"))
