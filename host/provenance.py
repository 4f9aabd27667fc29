"""Which tellme made a figure: the version and the commit that go into every JSON object."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tellme.golden.project import DISTRIBUTION

_ROOT = Path(__file__).resolve().parents[1]

_given: list[str] = []


@cache
def version() -> str:
    """Version of the installed package; "unknown" in a checkout that is not installed."""
    for name in (DISTRIBUTION, "tellme"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


@cache
def commit() -> str | None:
    """Commit of the checkout that runs, with `-dirty` where files differ from it; of an installed package the one that
    pip was given; None if neither is known."""
    if (_ROOT / "pyproject.toml").is_file() and (_ROOT / ".git").exists():
        try:
            done = subprocess.run(
                ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    found = json.loads(record or "{}").get("vcs_info", {}).get("commit_id")
    return found if isinstance(found, str) else None


def given(arguments: Sequence[str]) -> None:
    """Keeps what the `tellme` command was given, for `command_line`."""
    _given[:] = arguments


def command_line() -> str:
    """The command that runs, as it is typed in a shell."""
    return shlex.join(["tellme", *_given])


def json_line(result: Mapping[str, Any]) -> str:
    """A command's result as one line of JSON, with `version` and `commit` of what made it behind its own values."""
    return json.dumps({**result, "version": version(), "commit": commit()}, ensure_ascii=False)
