"""Python in the documentation: it runs as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tellme.host.machine.exploration import KEPT
from tests.programs import pages, program


def test_every_page_with_python_is_run() -> None:
    assert pages() == ["docs/api.md", "docs/serve.md"], "run the new one here; that of serve.md: tests/host/serve"


def test_the_page_for_programs_is_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(program("docs/api.md"), names)
    said = capsys.readouterr().out
    report = names["generation"].report
    assert report.stop and report.text in said and report.decoded > 0
    assert len(names["tickets"]) == 3 and all(t.new and t.stop for t in names["tickets"])
    assert str(names["planned"].tokens_per_s) in said
    assert len(names["answer"].points) == 2 and names["best"]["feasible"]
    kept = [json.loads(line)["found"] for line in (tmp_path / "explored" / KEPT).read_text().splitlines()]
    assert names["best"]["tokens_per_s"] in [k["tokens_per_s"] for k in kept]
