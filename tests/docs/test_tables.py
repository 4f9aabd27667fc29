"""The tables of docs/architecture.md are those the code makes."""

from docs.tables import PAGE, TABLES, render


def test_tables_of_the_architecture_page_are_up_to_date() -> None:
    text = PAGE.read_text()
    assert render(text) == text, "run: python -m docs.tables"
    for name in TABLES:
        assert f"<!-- table: {name} -->" in text
