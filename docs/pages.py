"""What `make docs` adds to the hand-written pages: the front page from README.md, a page for each module, and their order.

Loaded twice, as properdocs.yml says: by ProperDocs as hooks, and by griffe as an extension that reads docstrings.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from properdocs.structure.files import File, Files

FOLDERS = ("golden", "hw", "sim", "host")

PAGES = {
    "Start": "index.md",
    "How a token travels": "token.md",
    "Architecture": "architecture.md",
    "Formats": "formats.md",
    "Numerics": "numerics.md",
    "Glossary": "glossary.md",
    "Boards": "boards.md",
    "A board, step by step": "board.md",
    "Configurations, own boards": "own-board.md",
    "Exploring configurations": "explore.md",
    "The Verilog folder": "verilog.md",
    "Decisions": "decisions.md",
    "Where things went": "moved.md",
}
"""Order of the hand-written pages; those that are not named here follow."""

ROOT = Path(__file__).resolve().parent.parent

FRONT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside docs/ that are pages, too."""


# ---- docstrings ------------------------------------------------------------------------------------------------------

_CODE = re.compile(r"(`[^`]*`)")
_SECTION = re.compile(r"^(\S.*)\n-{3,}$", re.M)
_ITEM = re.compile(r"^(\S.*?) : (.*(?:\n[ ]+\S.*)*)$")


def _plain(text: str) -> str:
    """Text whose brackets, stars and angles are what they are; code stays code."""
    parts = _CODE.split(text)
    return "".join(
        p if i % 2 else re.sub(r"([\\*\[\]_])", r"\\\1", p).replace("<", "&lt;") for i, p in enumerate(parts)
    )


def markdown(docstring: str) -> str:
    """Markdown of a docstring: titles of sections become bold lines, their `name : text` items a list."""
    first, *rest = _SECTION.split(docstring)
    blocks = [_plain(first.strip("\n"))]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        blocks.append(f"**{title}**")
        items: list[str] = []
        for entry in re.split(r"\n+(?=\S)", body.strip("\n")):
            if match := _ITEM.match(entry):
                items.append(f"- `{match[1].replace('`', '')}`: " + _plain(" ".join(match[2].split())))
            else:
                blocks += ["\n".join(items), _plain(entry)]
                items = []
        blocks.append("\n".join(items))
    return "\n\n".join(filter(None, blocks))


class Docstrings(griffe.Extension):
    """Makes Markdown of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


# ---- pages -----------------------------------------------------------------------------------------------------------


@cache
def modules() -> dict[str, str]:
    """Page of each module: `hw/tlmm/tree.py` is at `api/hw/tlmm/tree.md`."""
    pages = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if path.name != "__init__.py":
                pages[name] = "api/" + name.removesuffix(".py") + ".md"
            elif path.read_text().strip():
                pages[name] = "api/" + name.removesuffix("__init__.py") + "index.md"
    return pages


def identifier(source: str) -> str:
    """What a source file is imported as."""
    return ".".join(("tellme", *source.removesuffix(".py").removesuffix("/__init__").split("/")))


def _page(place: str) -> str | None:
    """Page of a file of the repository, None if it has none."""
    if place in FRONT:
        return FRONT[place]
    return place.removeprefix("docs/") if place.startswith("docs/") else modules().get(place)


def relinked(text: str, source: str) -> str:
    """`text` of the file `source` with its links as the pages have them; those to files that have no page become plain words."""
    here = posixpath.dirname(_page(source) or "")

    def one(match: re.Match[str]) -> str:
        title, target, anchor = match.groups(default="")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not target or ":" in target or not (ROOT / place).exists():
            return match[0]  # elsewhere, in the same page, or wrong: the build names the last
        page = _page(place)
        return title if page is None else f"[{title}]({posixpath.relpath(page, here or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", one, text)


def on_files(files: Files, config: Any) -> Files:
    """Adds the front page, the changelog and the API's pages."""
    for source, page in FRONT.items():
        text = relinked((ROOT / source).read_text(), source)
        files.append(File.generated(config, page, content=text))
    for source, page in modules().items():
        files.append(File.generated(config, page, content=f"::: {identifier(source)}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Links to files outside docs/ lead to their pages."""
    return markdown if page.file.generated_by else relinked(markdown, "docs/" + page.file.src_uri)


def on_config(config: Any) -> Any:
    """The order of the pages."""
    docs = ROOT / "docs"
    others = sorted(p.name for p in docs.glob("*.md") if p.name not in PAGES.values())
    measured = sorted(p.relative_to(docs).as_posix() for p in (docs / "measurements").rglob("*.md"))
    measured.sort(key=lambda p: p != "measurements/README.md")
    config.nav = [
        *({title: page} for title, page in PAGES.items()),
        *others,
        {"Measurements": measured},
        {"API": _tree(modules().values())},
        {"Changelog": "changelog.md"},
    ]
    return config


def _tree(pages: Any) -> list[Any]:
    """Nested navigation of pages `api/a/b.md`."""
    top: dict[str, Any] = {}
    for page in pages:
        *folders, name = page.removeprefix("api/").removesuffix(".md").split("/")
        place = top
        for folder in folders:
            place = place.setdefault(folder + "/", {})
        place[name] = page

    def rows(level: dict[str, Any]) -> list[Any]:
        index = [level["index"]] if "index" in level else []
        return index + [{k: rows(v) if isinstance(v, dict) else v} for k, v in level.items() if k != "index"]

    return rows(top)
