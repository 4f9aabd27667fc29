"""Simulations are built in the user's cache, wherever a test changes the working directory or the home folder to."""

from __future__ import annotations

import os
import tempfile

from tellme.hw import cache

# Nothing that a user has tuned counts here.
os.environ["XDG_CONFIG_HOME"] = os.path.join(tempfile.gettempdir(), f"tellme-no-configuration-{os.getpid()}")
os.environ.setdefault(cache.VARIABLE, str(cache.root()))
