"""Tables for people, of which nothing is lost: on a narrow terminal, in a pipe, in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def cell(value: object) -> Text:
    """Whole numbers with thousands separated; brackets are no markup."""
    return Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def pairs(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    """A table of names and values, without a header."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(Text(name), cell(value))
    return table


def grid(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, left: Sequence[str] = ()) -> Table:
    """A table with a header; columns are right-aligned but the first and those named in `left`."""
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 or name in left else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


def show(table: Table, console: Console) -> None:
    """Prints a table whole.

    Where it is wider than the terminal (or $COLUMNS), each row becomes a list of names and values, values folded. What is
    no terminal has no width (unless $COLUMNS says one): there lines are as long as the table.
    """
    if table.title is not None:  # by itself, so that it neither folds at the table's width nor is centred
        console.print(table.title, style="table.title", soft_wrap=True, highlight=False, markup=False)
        table.title = None
    natural = console.measure(table, options=console.options.update(width=100_000)).maximum
    if natural > console.width and not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = natural
    if natural <= console.width:
        console.print(table)
        return
    if not table.show_header or len(table.columns) <= 2:
        for column in table.columns:
            column.overflow = "fold"
        console.print(table)
        return
    columns = [list(column.cells) for column in table.columns]
    for row in zip(*columns, strict=True):
        record = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
        record.add_column(style="bold", overflow="fold")
        record.add_column(overflow="fold")
        for column, value in zip(table.columns, row, strict=True):
            if str(value):
                record.add_row(column.header, value)
        console.print(record)
        console.print()
