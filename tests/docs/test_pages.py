"""The pages: what is made of docstrings and links, and that they build, strictly."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs import pages

ROOT = Path(pages.ROOT)


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "properdocs", "build", "--config-file", str(config), "--site-dir", str(site)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_pages_build_without_a_warning_and_have_every_module(tmp_path: Path) -> None:
    done = build(ROOT / "properdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in pages.modules().values():
        assert (tmp_path / page).with_suffix(".html").is_file(), page
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs")
        html = tmp_path / (name.with_name("index.html") if name.stem == "README" else name.with_suffix(".html"))
        assert html.is_file(), name
    engine = (tmp_path / "api/hw/tlmm/engine.html").read_text()
    assert "Interface attributes" in engine and "<code>bad_weight</code>" in engine
    assert 'href="api/hw/tlmm/engine.html"' in (tmp_path / "architecture.html").read_text()
    assert 'href="formats.html#image-files"' in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("link", ("nowhere.md", "index.md#nowhere", "../hw/nowhere.py"))
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# A page\n\n[link]({link})\n")
    config = tmp_path / "properdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'properdocs.yml'}\ndocs_dir: docs\nhooks: []\nplugins: []\nextra_css: []\n")
    done = build(config, tmp_path / "site")
    assert done.returncode != 0 and link.partition("#")[0] in done.stderr, done.stderr


def test_sections_of_docstrings_become_lists_and_text_stays_text() -> None:
    made = pages.markdown(
        "Takes `x[0]`, a*b*c and [query][key] <part>.\n\nParameters\n----------\nfirst : of\n    two lines.\n"
        "a, b -> c : ports, `c` late.\n\nWhat follows.\n\nRaises\n------\nValueError : always."
    )
    assert made.splitlines() == [
        r"Takes `x[0]`, a\*b\*c and \[query\]\[key\] &lt;part>.",
        "",
        "**Parameters**",
        "",
        "- `first`: of two lines.",
        "- `a, b -> c`: ports, `c` late.",
        "",
        "What follows.",
        "",
        "**Raises**",
        "",
        "- `ValueError`: always.",
    ]


def test_modules_are_called_as_they_are_imported() -> None:
    assert pages.identifier("hw/tlmm/engine.py") == "tellme.hw.tlmm.engine"
    assert pages.identifier("hw/tlmm/__init__.py") == "tellme.hw.tlmm"


@pytest.mark.parametrize(
    ("source", "link", "there"),
    (
        ("README.md", "[a](docs/formats.md#image-files)", "[a](formats.md#image-files)"),
        ("README.md", "[a](docs/images/architecture.svg)", "[a](images/architecture.svg)"),
        ("docs/architecture.md", "[a](../hw/tlmm/tree.py)", "[a](api/hw/tlmm/tree.md)"),
        ("docs/architecture.md", "[a](../README.md)", "[a](index.md)"),
        ("docs/architecture.md", "[a](formats.md#x)", "[a](formats.md#x)"),
        ("docs/architecture.md", "[a](#x)", "[a](#x)"),
        ("docs/architecture.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("docs/architecture.md", "[a](../hw/nowhere.py)", "[a](../hw/nowhere.py)"),
        ("docs/measurements/synth.md", "[a](../../hw/synth/levels.py)", "[a](../api/hw/synth/levels.md)"),
        ("docs/measurements/synth.md", "[a](../../Makefile)", "a"),
    ),
)
def test_links_lead_to_pages(source: str, link: str, there: str) -> None:
    assert pages.relinked(link, source) == there
