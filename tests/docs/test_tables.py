"""The tables of the documents are those the code makes."""

from docs.tables import PAGES, TABLES, render


def test_tables_of_the_documents_are_up_to_date() -> None:
    texts = [page.read_text() for page in PAGES]
    for page, text in zip(PAGES, texts, strict=True):
        assert render(text) == text, f"{page.name}: run: python -m docs.tables"
    for name in TABLES:
        assert any(f"<!-- table: {name} -->" in text for text in texts)
