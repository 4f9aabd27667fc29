"""`tellme report` and `tellme view`: whole pages that need nothing else, with the figures that they are given."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tellme.golden.config import PRESETS, TINY
from tellme.golden.registers import BUSY, STALLS
from tellme.host.cli import app
from tellme.host.commands import drawing
from tellme.sim import trace as traces
from tellme.sim.trace import Span, Trace

ROOT = Path(__file__).resolve().parents[3]
SYNTHESES = ROOT / "docs" / "measurements" / "synth.json"
VOID = {"meta"}


def tellme(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


class Page(HTMLParser):
    """Elements of a page; every one is closed, in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(path: Path) -> Page:
    """A page that is well formed and asks nobody for anything."""
    text = path.read_text()
    assert text.startswith("<!DOCTYPE html>\n") and len(text) < 1_000_000
    page = Page(text)
    ElementTree.fromstring(text.split("\n", 1)[1])
    assert "://" not in text and "url(" not in text.replace("url(#arrow)", "") and "@import" not in text
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "image", "use")
        assert all(v is not None and v.startswith("#") for k, v in attributes.items() if k in ("href", "src"))
    targets = {a["id"] for _, a in page.elements if "id" in a}
    assert all(str(a["href"])[1:] in targets for t, a in page.elements if t == "a")
    for t, a in page.elements:
        for key in ("x", "y", "width", "height", "points", "cx", "cy"):
            assert "nan" not in str(a.get(key)) and "inf" not in str(a.get(key)), (t, a)
    return page


def drawings(page: Page) -> int:
    return sum(tag == "svg" for tag, _ in page.elements)


def recorded() -> Trace:
    """Two layers and the head."""
    spans, at = [], 0
    for name, length in (
        ("load", 40),
        *((f"layer {i} {s}", 100) for i in (0, 1) for s in ("qkv", "down")),
        ("screened head", 60),
        ("head", 300),
    ):
        spans += [Span("descriptor", name, at, at + length), Span("tlmm", "tlmm", at, at + length - 20)]
        spans.append(Span("no beat", "memory" if name == "head" else "elementwise", at + length - 20, at + length))
        at += length
    cycles = np.arange(0, at, 10)
    return Trace(at, tuple(spans), cycles, (cycles * 7) % 500)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    traces.write_chrome(recorded(), path, clock_hz=TINY.clock_hz, title="demo <two layers>")
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """What `tellme bench --json` prints."""
    stalls = dict(zip(STALLS, (300, 100, 700, 900, 0, 500), strict=True))
    facts = {
        "board": "tiny", "lanes": TINY.lanes, "beat_bytes": TINY.beat_bytes, "clock_hz": TINY.clock_hz, "cycles_per_pass": 12_500,
        "bytes_per_pass": 10_000 * TINY.beat_bytes, "stalls": stalls, "busy": dict.fromkeys(BUSY, 0.25), "ttft_s": 0.0042,
        "prefill": [{"lanes": 4, "position": 0, "cycles": 9000, "beats": 8000, "stalls": stalls}],
    }  # fmt: skip
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(facts))
    return path


def test_a_trace_comes_back_as_it_was(trace: Path) -> None:
    found, title = traces.read_chrome(trace)
    whole = recorded()
    assert title == "demo <two layers>" and found.cycles == whole.cycles
    assert set(found.spans) == set(whole.spans)
    assert np.array_equal(found.level_cycles, whole.level_cycles) and np.array_equal(found.levels, whole.levels)


@pytest.mark.parametrize(("board", "model"), [("kv260", "bitnet-2b"), ("pynq_z2", "bitnet-0.7b"), ("tiny", "demo")])
def test_a_plan_alone_makes_a_page(board: str, model: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    r = tellme(
        "report", "--model", model, "--board", board, "--context", "64", "--prompt", "16", "--out", str(out), "--json"
    )
    assert r.exit_code == 0, r.stderr
    said, page = json.loads(r.stdout), checked(out)
    assert said["kind"] == "estimated" and said["bytes"] == len(out.read_bytes()) < 100_000
    plan = json.loads(
        tellme("plan", "--model", model, "--board", board, "--context", "64", "--prompt", "16", "--json").stdout
    )
    assert said["tokens_per_s"] == pytest.approx(plan["tokens_per_s"])
    assert f"{plan['tokens_per_s']:,.1f}" in page.words and f"{plan['cycles_per_pass']:,}" in page.words
    c = PRESETS[board]
    for width in (
        f"{c.ports} x {8 * c.port_bytes}",
        f"{8 * c.beat_bytes}",
        f"{c.lanes} x {c.row_width}",
        f"{8 * c.word} int8",
    ):
        assert width in page.words, width
    assert drawings(page) >= 4 and all(f"{d['beats']:,}" in page.words for d in plan["depths"])


def test_measurements_are_what_the_page_shows(bench: Path, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    r = tellme(
        "report",
        "--model",
        "demo",
        "--board",
        "tiny",
        "--bench",
        str(bench),
        "--trace",
        str(trace),
        "--out",
        str(out),
        "--json",
    )
    assert r.exit_code == 0, r.stderr
    said, page = json.loads(r.stdout), checked(out)
    assert said["kind"] == "simulated" and said["tokens_per_s"] == TINY.clock_hz / 12_500
    assert {"Trace", "Layer 1", "Busy units", "Cycles by step"} <= set(said["sections"])
    assert {"8,000.0", "12,500", "80.0%", "4.2 ms"} <= set(page.words)
    notes = " ".join(page.words)
    assert "decode, simulated, attention: 900 cycles" in notes and "prefill at 0, beats: 8,000 cycles" in notes
    assert "layer 1 down: cycles 340 to 440 (100)" in notes and "demo <two layers>" in notes


def test_area_is_the_synthesis(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    r = tellme("report", "--model", "bitnet-0.7b", "--board", "kv260", "--synth", str(SYNTHESES), "--out", str(out))
    assert r.exit_code == 0, r.stderr
    record = next(x for x in json.loads(SYNTHESES.read_text()) if x["board"] == "kv260")
    page = checked(out)
    t = record["total"]
    assert f"{t['lut']:,} of {record['chip']['lut']:,} ({t['lut'] / record['chip']['lut']:.1%})" in page.words
    for name, block in record["blocks"].items():
        assert name in page.words and f"{block['lut']:,}" in page.words


def test_a_run_s_figures_are_taken(bench: Path, tmp_path: Path) -> None:
    facts = {
        "board": "tiny",
        "lanes": 4,
        "beat_bytes": 16,
        "clock_hz": 100_000_000,
        "cycles_decode": [40_000, 60_000],
        "stalls": {},
    }
    bench.write_text(json.dumps(facts))
    out = tmp_path / "page.html"
    r = tellme("report", "--model", "demo", "--board", "tiny", "--bench", str(bench), "--out", str(out))
    assert r.exit_code == 0 and "2,000.0 tokens/s run" in r.stdout
    assert "50,000" in checked(out).words
    # Of a run that guesses, a pass has more than one token.
    bench.write_text(json.dumps({**facts, "tokens_per_pass": 2.5}))
    r = tellme("report", "--model", "demo", "--board", "tiny", "--bench", str(bench), "--out", str(out))
    assert r.exit_code == 0 and "5,000.0 tokens/s run" in r.stdout
    assert "20,000" in checked(out).words


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("--bench", "{}", "is not what tellme bench --json or tellme run --json prints"),
        ("--bench", "[", "is no JSON"),
        ("--bench", '{"board": "kv260", "lanes": 16, "beat_bytes": 64}', "is of board 'kv260' with 16 lanes"),
        ("--bench", '{"board": "tiny", "lanes": 4, "beat_bytes": 16, "cycles_decode": [], "clock_hz": 1, "stalls": {}}', "no decode pass"),
        ("--bench", '{"board": "tiny", "lanes": 4, "beat_bytes": 16, "model": "bitnet-2b"}', "is of model bitnet-2b, the report of demo"),
        ("--bench", '{"board": "tiny", "lanes": 4, "beat_bytes": 16, "model": "demo", "kv": "4"}', "is of kv 4, the report of 8"),
        ("--synth", '{"board": "tiny", "total": null, "tool": "y", "blocks": {"a": {"lut": 5}}}', "is not what tellme synth --json prints"),
        ("--synth", "{}", "is not what tellme synth --json prints"),
        ("--synth", '{"board": "kv260"}', "has no synthesis of board 'tiny'"),
        ("--synth", '{"board": "tiny"}', "is not what tellme synth --json prints"),
        ("--synth", '[{"board": "tiny", "total": null, "blocks": {"a": {"lut": "x"}}}]', "is not what tellme synth --json prints"),
        ("--synth", "[", "is no JSON"),
        ("--trace", "{}", "is no trace that tellme bench --trace wrote"),
        ("--trace", '{"traceEvents": []}', "is no trace that tellme bench --trace wrote"),
        ("--trace", None, "cannot be read"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_refused(file: str, text: str | None, said: str, tmp_path: Path) -> None:
    given, out = tmp_path / "given.json", tmp_path / "page.html"
    if text is not None:
        given.write_text(text)
    r = tellme(
        "report",
        "--model",
        "demo",
        "--board",
        "tiny",
        "--context",
        "8",
        "--prompt",
        "8",
        file,
        str(given),
        "--out",
        str(out),
    )
    assert r.exit_code == 2 and r.stderr.count("\n") == 1 and "given.json" in r.stderr, r.stderr
    assert said in r.stderr or said == "is no JSON" and "JSON" in r.stderr, r.stderr
    assert not out.exists()


@pytest.mark.parametrize("layer", [None, "1", "screened head", "head", "load"])
def test_a_layer_is_drawn(layer: str | None, trace: Path, tmp_path: Path) -> None:
    args = () if layer is None else ("--layer", layer)
    picture, page = tmp_path / "layer.svg", tmp_path / "layer.html"
    r = tellme("view", str(trace), "--out", str(picture), "--json", *args)
    assert r.exit_code == 0, r.stderr
    said = json.loads(r.stdout)
    start, end = {
        None: (0, 800), "1": (240, 440), "screened head": (440, 500), "head": (500, 800), "load": (0, 40),
    }[layer]  # fmt: skip
    assert (said["start"], said["end"]) == (start, end) and said["layers"] == [
        "load",
        "0",
        "1",
        "screened head",
        "head",
    ]
    assert sum(said["cycles"].values()) == end - start
    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = {t.text for t in root.iter("{http://www.w3.org/2000/svg}title")}
    assert ("layer 1 qkv: cycles 240 to 340 (100)" in shown) == (layer in (None, "1"))
    left = [float(e.get("x", 0)) + float(e.get("width", 0)) for e in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert max(left) <= 1000
    assert tellme("view", str(trace), "--out", str(page), *args).exit_code == 0
    assert drawings(checked(page)) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--layer", "7"), "--layer: the trace has no '7'; there are load, 0, 1, screened head, head"),
        (("--out", "x.png"), "--out must end in .svg or .html, not 'x.png'"),
        (("--out", "/proc/x.svg"), "/proc/x.svg"),
    ],
)
def test_views_that_cannot_be_are_refused(args: tuple[str, ...], said: str, trace: Path, tmp_path: Path) -> None:
    given = args if "--out" in args else (*args, "--out", str(tmp_path / "x.svg"))
    r = tellme("view", str(trace), *given)
    assert r.exit_code == 2 and said in r.stderr and r.stderr.count("\n") == 1


def test_a_long_trace_stays_a_small_picture() -> None:
    spans = [Span("descriptor", "layer 0 qkv", 0, 900_000)]
    spans += [Span("tlmm", "tlmm", 9 * i, 9 * i + 4) for i in range(100_000)]
    found = Trace(900_000, tuple(spans), np.arange(0, 900_000, 9), np.zeros(100_000, np.int64))
    assert len(drawing.timeline(found, 0, 900_000, fifo=512, title="t")) < 200_000
    assert re.search("tlmm: cycles 9 to 13", drawing.timeline(found, 0, 900, fifo=512, title="t"))
