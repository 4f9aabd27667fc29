"""What documents and messages tell to install is this project: `tellme` among Python's packages is a stranger's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tellme.golden.project import DISTRIBUTION, advice

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("*.py", "*.md", "*.ipynb", "*.toml", "*.yml", "*.yaml", "*.j2", "*.tcl", "Makefile", "run")
LEFT = {".git", ".venv", "build", ".setuptools", "CHANGELOG.md", Path(__file__).name}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

_WRONG = re.compile(
    r"""(?<![\w/.-])tellme\\*\[[a-z]            # an extra of tellme
    | \bpip3?[ ]install\b[^\n`;&#]*?[ \t'"]tellme(?![\w-]|/)  # tellme itself
    """,
    re.X,
)
_RIGHT = re.compile(rf"{DISTRIBUTION}\\*\[([a-z0-9_, -]+)\\*\]|'\.\[([a-z0-9_, -]+)\]'")


def texts() -> list[tuple[Path, str]]:
    found = {p for pattern in TEXTS for p in ROOT.rglob(pattern) if not LEFT & set(p.relative_to(ROOT).parts)}
    return [(p, p.read_text()) for p in sorted(found) if p.is_file()]


@pytest.mark.parametrize(
    "text,wrong",
    [
        ("pip install 'tellme[pynq]'", True),
        ("pip install tellme", True),
        ('"pip install \\"tellme\\""', True),
        (r"install it: tellme\[sim\]", True),
        ("pip3 install --upgrade tellme", True),
        ("pip install 'tellme-fpga[pynq]'", False),
        ("pip install '.[pynq]'", False),
        ("pip install tellme-fpga", False),
        ("tellme run", False),
        ("pip install .   # then tellme run", False),
    ],
)
def test_the_wrong_form_is_known(text: str, wrong: bool) -> None:
    assert bool(_WRONG.search(text)) == wrong


def test_no_text_advises_a_strangers_package() -> None:
    assert PROJECT["name"] == DISTRIBUTION and "tellme" in PROJECT["scripts"]
    found = [f"{p.relative_to(ROOT)}: {m[0]}" for p, text in texts() for m in _WRONG.finditer(text)]
    assert not found, found


def test_every_extra_that_is_advised_exists() -> None:
    extras = set(PROJECT["optional-dependencies"])
    seen = 0
    for path, text in texts():
        for m in _RIGHT.finditer(text):
            names = {n.strip() for n in (m[1] or m[2]).split(",")}
            if names != {"extra"}:
                assert names <= extras, f"{path}: {m[0]}"
                seen += 1
        for m in re.finditer(r"\badvice\('(\w+)'\)", text):
            assert m[1] in extras, f"{path}: {m[0]}"
            seen += 1
    assert seen > 8


def test_messages_make_their_advice_in_one_place() -> None:
    assert advice("sim") == f"pip install '{DISTRIBUTION}[sim]'"
    own = [
        p for p, text in texts() if p.parts[len(ROOT.parts)] in ("golden", "hw", "sim", "host") and DISTRIBUTION in text
    ]
    assert [str(p.relative_to(ROOT)) for p in own] == ["golden/project.py"]
