"""A page of HTML in one file: sections with drawings and tables, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tellme.host.commands.drawing import element, tag
from tellme.host.tables import cell

Section = tuple[str, str, str]
"""Title, a sentence (text), and markup."""

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2733; max-width: 1180px; margin: 0 auto; padding: 24px; background: #fff; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 8px; padding-top: 10px; border-top: 1px solid #d9dfe6; }
p { margin: 4px 0 12px; color: #4a5665; } nav a { margin-right: 14px; color: #2b5a93; text-decoration: none; }
svg { width: 100%; height: auto; display: block; margin: 8px 0; }
table { border-collapse: collapse; margin: 8px 0; } td, th { padding: 3px 12px 3px 0; text-align: right; border-bottom: 1px solid #edf0f3; }
th { font-weight: 600; color: #4a5665; } td:first-child, th:first-child { text-align: left; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; }
.tile { border: 1px solid #d9dfe6; border-radius: 6px; padding: 10px 16px; min-width: 118px; }
.tile b { display: block; font-size: 21px; } .tile span { color: #4a5665; font-size: 13px; }
footer { margin-top: 40px; color: #7a8594; font-size: 13px; }
"""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; whole numbers with commas."""
    head = element("tr", "".join(tag("th", h) for h in header))
    body = "".join(element("tr", "".join(tag("td", cell(v).plain) for v in row)) for row in rows)
    return element("table", element("thead", head) + element("tbody", body))


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Figures in large: (value, what it is)."""
    shown = (element("div", tag("b", value) + tag("span", what), class_="tile") for value, what in figures)
    return element("div", "".join(shown), class_="tiles")


def page(title: str, sections: Sequence[Section], *, top: str = "", foot: str = "") -> str:
    """A whole document. top : markup below the title."""
    links = "".join(tag("a", name, href=f"#s{i}") for i, (name, _, _) in enumerate(sections))
    parts = [tag("h1", title), top, element("nav", links)]
    for i, (name, sentence, inside) in enumerate(sections):
        parts.append(
            element("section", tag("h2", name) + (tag("p", sentence) if sentence else "") + inside, id=f"s{i}")
        )
    if foot:
        parts.append(tag("footer", foot))
    head = '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>' + tag("title", title)
    body = element("body", "\n".join(parts))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n{body}</html>\n'
