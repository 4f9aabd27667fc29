"""Simulations are built in the user's cache, wherever a test changes the working directory or the home folder to."""

from __future__ import annotations

import os

from hw import cache

os.environ.setdefault(cache.VARIABLE, str(cache.root()))
