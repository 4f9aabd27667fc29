"""Mistakes put into the sources one at a time, to see whether a test fails: `make mutants`.

A mutant is one place changed as a designer errs: a constant, a comparison, an operator, a width, a condition, a reset, an enable, an order. Only the
tests of `TARGETS` that should see a file's mistakes run on it, in a copy of the sources, with simulators of their own cache. Results are lines of
docs/measurements/mutants.jsonl, one a mutant, under a name that does not depend on line numbers: what has a line is not run again, so that a campaign
may be stopped at any time. Batches of mutants are shared over the farm. `--holes` runs the mistakes of `bench/holes.py` that once no test saw.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.holes import FORMAL, HOLES, READS, WRITES
from bench.trials import Batch, Trial, verdicts
from bench.workers import ROOT, add_options, workers
from tellme.host.farm import Run
from tellme.host.places import replacing

RESULTS = ROOT / "docs" / "measurements" / "mutants.jsonl"
TABLE = ROOT / "docs" / "measurements" / "mutants.md"
REASONS = ROOT / "bench" / "survivors.json"
"""Why a survivor lives: by its name."""
ALIVE = "not equivalent"
"""How the reason of one begins that a test could see."""

CAMPAIGN = 500
"""Mutants that the table is of, whatever a run of a few targets draws."""

TOGETHER = 6
"""Mutants of a batch: what pytest needs to collect is shared, and no more is lost when a worker ends."""

TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (sources, tests that should see a mistake in them)
    # ---- host
    "text": (("host/text/sampling.py", "host/talk/generate.py"), ("tests/host/text/test_sampling.py", "tests/host/talk/test_generate.py")),
    "tokenizer": (
        ("host/text/tokenizer.py", "host/text/vocabulary.py", "host/text/template.py"),
        ("tests/host/text/test_tokenizer.py", "tests/host/text/test_vocabulary.py", "tests/host/text/test_chat.py"),
    ),
    "session": (
        ("host/talk/session.py", "host/talk/prompt_cache.py", "host/talk/replay.py"),
        ("tests/host/talk/test_session.py", "tests/host/talk/test_prompt_cache.py", "tests/host/talk/test_replay.py"),
    ),
    "engine": (
        ("host/talk/engine.py", "host/talk/scheduler.py", "host/talk/drafts.py", "host/talk/work.py"),
        ("tests/host/talk/test_scheduler.py", "tests/host/talk/test_engine.py", "tests/host/talk/test_prompt_cache.py", "tests/host/talk/test_replay.py"),
    ),
    "serve": (
        ("host/serve/request.py", "host/serve/service.py", "host/serve/app.py", "host/serve/grammar.py"),
        ("tests/host/serve/test_answers.py", "tests/host/serve/test_server.py"),
    ),
    "driver": (
        ("host/machine/driver.py", "host/machine/passes.py"),
        ("tests/host/machine/test_driver.py", "tests/host/machine/test_program.py", "tests/host/machine/test_screening.py", "tests/host/machine/test_narrow.py"),
    ),
    "program": (
        ("host/machine/program.py", "host/machine/placement.py", "host/machine/patterns.py"),
        ("tests/host/machine/test_program.py", "tests/host/machine/test_driver.py", "tests/host/machine/test_narrow.py", "tests/host/machine/test_patterns.py", "tests/host/machine/test_placement.py", "tests/host/machine/test_screening.py"),
    ),
    "image": (
        ("host/image/file.py", "host/image/model.py", "host/image/screening.py"),
        ("tests/host/image",),
    ),
    "checkpoints": (
        ("host/checkpoints/common.py", "host/checkpoints/tensors.py", "host/checkpoints/gguf/tensors.py", "host/checkpoints/gguf/elements.py", "host/checkpoints/balance.py"),
        ("tests/host/checkpoints/test_grouped.py", "tests/host/checkpoints/test_balance.py", "tests/host/checkpoints/test_checkpoint.py", "tests/host/checkpoints/test_gguf.py"),
    ),
    "headers": (
        ("host/checkpoints/gguf/header.py", "host/checkpoints/gguf/spec.py", "host/checkpoints/huggingface/config.py", "host/checkpoints/huggingface/source.py"),
        ("tests/host/checkpoints",),
    ),
    "board": (
        ("host/machine/pynq/buffers.py", "host/machine/pynq/device.py", "host/machine/pynq/handoff.py", "host/machine/pynq/overlay.py", "host/machine/pynq/network.py"),
        ("tests/pynq/test_hand_offs.py", "tests/pynq/test_doctor.py", "tests/pynq/test_network.py", "tests/pynq/test_device.py", "tests/pynq/test_plugs.py"),
    ),
    "configuration": (
        ("host/configuration.py", "golden/config.py"),
        ("tests/host/test_configuration.py", "tests/golden/test_config.py", "tests/golden/test_boards.py"),
    ),
    # ---- golden
    "schedule": (
        ("golden/schedule.py",),
        ("tests/machine/test_layouts.py::test_phases_read_every_key_that_a_lane_attends_to_once", "tests/host/machine/test_driver.py", "tests/control/test_fetch.py"),
    ),
    "numbers": (
        ("golden/fp.py", "golden/elementwise.py", "golden/attention.py", "golden/head.py", "golden/arith.py"),
        ("tests/golden/test_elementwise.py", "tests/golden/test_attention.py", "tests/golden/test_head.py", "tests/fp/test_golden.py"),
    ),
    "layout": (
        ("golden/layout.py", "golden/kv.py", "golden/ternary.py"),
        ("tests/golden/test_layout.py", "tests/golden/test_kv.py", "tests/golden/test_ternary.py", "tests/golden/test_screen.py"),
    ),
    "formats": (
        ("golden/formats/grouped_ternary.py", "golden/formats/packed_ternary.py", "golden/formats/weight_format.py", "golden/fields.py"),
        ("tests/golden/test_formats.py", "tests/golden/test_ternary.py", "tests/golden/test_registers.py"),
    ),
    "screen": (
        ("golden/screen.py", "host/machine/screening.py", "host/talk/screening.py"),
        ("tests/golden/test_screen.py", "tests/host/machine/test_screening.py", "tests/host/talk/test_screening.py"),
    ),
    "model": (
        ("golden/spec.py", "golden/model.py"),
        ("tests/golden/test_spec.py", "tests/golden/test_model.py", "tests/golden/test_screen.py", "tests/oracle/test_families.py::test_gates_and_rotary_tables_are_equal"),
    ),
    "check": (
        ("golden/check.py", "golden/program.py", "golden/registers.py", "golden/shapes.py"),
        ("tests/golden/test_check.py", "tests/golden/test_registers.py", "tests/host/machine/test_program.py", "tests/host/machine/test_shape.py", "tests/docs/test_tables.py"),
    ),
    # ---- hardware
    "fp": (("hw/fp/adder.py", "hw/fp/convert.py", "hw/fp/dsp.py", "hw/fp/functions.py", "hw/fp/multiplier.py", "hw/fp/shift.py"), ("tests/fp/test_units.py", "tests/fp/test_dsp.py")),
    "machine": (
        ("hw/top.py", "hw/head/unit.py", "hw/memory/share.py", "hw/control/execute.py", "hw/control/route.py", "hw/control/parameters.py", "hw/control/descriptor.py"),
        ("tests/machine/test_machine.py", "tests/machine/test_screened.py"),
    ),
    "queues": (
        ("hw/queues.py", "hw/pipeline.py"),
        ("tests/hw/test_queues.py", "tests/hw/test_pipeline.py", *(f"{FORMAL}[{name} of {depth}]" for name, depth in (("Queue", 2), ("DeepFifo", 2), ("ShortQueue", 4), ("ReservedQueue", 4)))),
    ),
    "supervisor": (
        ("hw/control/supervise.py", "hw/control/registers.py"),
        tuple(f"{FORMAL}[{name}]" for name in ("Supervisor, time-out 0", "Supervisor, time-out 3", "ControlRegisters, timeout", "ControlRegisters, lanes")),
    ),
    "checker": (("hw/control/lanes.py", "hw/control/check.py", "hw/control/counters.py"), ("tests/control/test_check.py", "tests/control/test_registers.py")),
    "sequencer": (("hw/control/sequence.py", "hw/control/fetch.py"), ("tests/control/test_fetch.py",)),
    "reader": (("hw/memory/reader.py",), (*READS, "tests/memory/test_reader.py")),
    "writer": (("hw/memory/writer.py", "hw/memory/logit_writer.py"), (*WRITES, "tests/memory/test_logit_writer.py", "tests/memory/test_writer.py")),
    "cache writer": (("hw/memory/kv_writer.py", "hw/memory/columns.py"), ("tests/memory/test_kv_writer.py", "tests/memory/test_columns.py")),
    "select": (("hw/head/select.py", "hw/head/heap.py", "hw/head/score.py"), ("tests/head", "tests/machine/test_ternary_head.py")),
    "tlmm": (
        ("hw/tlmm/accumulate.py", "hw/tlmm/tables.py", "hw/tlmm/tree.py", "hw/tlmm/unpack.py", "hw/tlmm/loader.py", "hw/tlmm/engine.py"),
        ("tests/tlmm",),
    ),
    "attention": (
        ("hw/attention/head.py", "hw/attention/merge.py", "hw/attention/scores.py", "hw/attention/maxima.py", "hw/attention/weight_pass.py", "hw/attention/score_pass.py", "hw/attention/queries.py"),
        ("tests/attention/test_unit.py",),
    ),
    "attention's data": (
        ("hw/attention/array.py", "hw/attention/block.py", "hw/attention/loader.py", "hw/attention/player.py", "hw/attention/phases.py", "hw/attention/query_batches.py", "hw/attention/factors.py", "hw/attention/unit.py"),
        ("tests/attention/test_unit.py",),
    ),
    "elementwise's data": (
        ("hw/elementwise/elementwise.py", "hw/elementwise/load.py", "hw/elementwise/transpose.py", "hw/elementwise/hadamard.py", "hw/elementwise/buffers.py"),
        ("tests/elementwise",),
    ),
    "elementwise": (
        ("hw/elementwise/quantiser.py", "hw/elementwise/epilogue.py", "hw/elementwise/scales.py", "hw/elementwise/groups.py", "hw/elementwise/statistics.py"),
        ("tests/elementwise",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of `old` to `new` at `start` of a file's text. `name` stays when lines above it move."""

    name: str
    path: str
    line: int
    operator: str
    start: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        """The file's text with the mistake in it."""
        assert text[self.start : self.start + len(self.old)] == self.old, self.name
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


_COMPARED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.Mult: ("*", "+"),
}  # fmt: skip
_SILENT = ("__repr__", "__init_subclass__", "expected_cycles")
"""Functions whose mistakes are no behaviour of the machine."""


class _Walker(ast.NodeVisitor):
    """Collects the places of a module where a mistake can be put."""

    def __init__(self, text: str):
        self.text = text
        self.starts = [0]
        for row in text.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(row))
        self.raw = text.encode()
        self.found: list[tuple[int, int, str, str]] = []  # start, end (characters), operator, new

    def at(self, line: int, column: int) -> int:
        return len(self.raw[: self.starts[line - 1] + column].decode())

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def add(self, start: int, end: int, operator: str, new: str) -> None:
        self.found.append((start, end, operator, new))

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str, operator: str) -> None:
        """The symbol that stands between two expressions."""
        a, b = self.span(left)[1], self.span(right)[0]
        part = self.text[a:b]
        if part.count(old) == 1 and "#" not in part:
            at = a + part.index(old)
            self.add(at, at + len(old), operator, new)

    # What is no behaviour: messages, annotations, docstrings.
    def visit_Raise(self, node: ast.Raise) -> None: ...
    def visit_Assert(self, node: ast.Assert) -> None: ...
    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...
    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name not in _SILENT and not node.name.startswith("expected_"):
            for part in node.body:
                self.visit(part)

    def visit_Constant(self, node: ast.Constant) -> None:
        start, end = self.span(node)
        if isinstance(node.value, bool):
            self.add(start, end, "constant", str(not node.value))
        elif isinstance(node.value, int):
            self.add(start, end, "constant", str(node.value + 1))
            if node.value > 1:
                self.add(start, end, "constant", str(node.value - 1))

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if type(op) in _COMPARED:
                self.between(left, right, *_COMPARED[type(op)], "comparison")
            left = right
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _OPERATORS and not (
            isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        ):
            self.between(node.left, node.right, *_OPERATORS[type(node.op)], "operator")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        self.between(node.values[0], node.values[1], f" {old} ", f" {new} ", "operator")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Invert | ast.Not):
            start, end = self.span(node)
            self.add(start, end, "inversion", self.text[slice(*self.span(node.operand))])
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        start, end = self.span(node.test)
        self.add(start, end, "condition", "True")
        self.add(start, end, "condition", "False")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = (
            node.func.attr
            if isinstance(node.func, ast.Attribute)
            else node.func.id
            if isinstance(node.func, ast.Name)
            else ""
        )
        if name in ("If", "Elif") and node.args:  # an enable of hardware
            self.add(*self.span(node.args[0]), "enable", "1")
            self.add(*self.span(node.args[0]), "enable", "0")
        elif name == "Signal" and node.args and not isinstance(node.args[0], ast.Call | ast.Attribute):
            start, end = self.span(node.args[0])
            self.add(start, end, "width", f"({self.text[start:end]}) - 1")
        elif name == "Mux" and len(node.args) == 3:
            (a, b), (c, d) = self.span(node.args[1]), self.span(node.args[2])
            if self.text[a:b] != self.text[c:d]:
                self.add(a, d, "order", self.text[c:d] + self.text[b:c] + self.text[a:b])
        elif name in ("Cat", "zip", "range") and len(node.args) == 2:
            (a, b), (c, d) = self.span(node.args[0]), self.span(node.args[1])
            if self.text[a:b] != self.text[c:d]:
                self.add(a, d, "order", self.text[c:d] + self.text[b:c] + self.text[a:b])
        if name == "eq" and node.args:
            self._left_out(node)
        self.generic_visit(node)

    def _left_out(self, node: ast.Call) -> None:
        """An assignment of hardware that is missing: 0 is assigned."""
        start, end = self.span(node.args[0])
        self.add(start, end, "left out", "0")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            self.add(*self.span(node), "left out", "pass")
        self.generic_visit(node)


def mutants(path: str, text: str) -> list[Mutant]:
    """Every mistake that the operators make in a file."""
    walker = _Walker(text)
    walker.visit(ast.parse(text))
    out: list[Mutant] = []
    seen: dict[str, int] = {}
    for start, end, operator, new in sorted(set(walker.found)):
        old = text[start:end]
        line = text.count("\n", 0, start) + 1
        row = text.splitlines()[line - 1].strip()
        column = (
            start
            - text.rfind("\n", 0, start)
            - 1
            - (len(text.splitlines()[line - 1]) - len(text.splitlines()[line - 1].lstrip()))
        )
        key = f"{path}|{row}|{column}|{operator}|{new}"
        seen[key] = seen.get(key, 0) + 1
        name = hashlib.sha256(f"{key}|{seen[key]}".encode()).hexdigest()[:12]
        if old.strip() != new.strip():
            out.append(Mutant(name, path, line, operator, start, old, new))
    return out


def results() -> dict[str, dict[str, object]]:
    """What earlier runs found, by the mutants' names."""
    if not RESULTS.exists():
        return {}
    return {r["name"]: r for r in map(json.loads, RESULTS.read_text().splitlines())}


def chosen(seed: int, targets: Sequence[str], count: int) -> dict[str, list[Mutant]]:
    """The campaign: of each target the same number of mutants; where a target has fewer, the others have more. Those that have run come
    first, the others in an order that follows from seed and name alone, so that an edit of the sources moves no other mutant."""
    known = results()
    out: dict[str, list[Mutant]] = {}
    for name in targets:
        out[name] = [m for p in TARGETS[name][0] for m in mutants(p, (ROOT / p).read_text())]
        out[name].sort(key=lambda m: (m.name not in known, hashlib.sha256(f"{seed} {m.name}".encode()).digest()))
    each = next(n for n in range(count + 1) if n == count or sum(min(n, len(q)) for q in out.values()) >= count)
    return {name: of[:each] for name, of in out.items()}


def table(seed: int, count: int) -> str:
    """The campaign's results as docs/measurements/mutants.md shows them: of the mutants that it draws."""
    known = results()
    reasons: dict[str, str] = json.loads(REASONS.read_text()) if REASONS.exists() else {}
    rows = [
        "| target | drawn | run | killed | survived | of these equivalent | killed of those that are not | s, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sums = [0] * 5
    kept: list[dict[str, object]] = []
    for name, of in chosen(seed, list(TARGETS), count).items():
        mine = [known[m.name] for m in of if m.name in known]
        live = [r for r in mine if r["outcome"] == "survived"]
        numbers = [
            len(of),
            len(mine),
            len(mine) - len(live),
            len(live),
            sum(not reasons.get(str(r["name"]), ALIVE).startswith(ALIVE) for r in live),
        ]
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
        kept += mine
        rows.append(_row(name, numbers, mine))
    rows.append(_row("all", sums, kept))
    rows += ["", "Survivors:", "", "| name | place | change | why it lives |", "|---|---|---|---|"]
    for r in sorted(kept, key=lambda r: (str(r["path"]), int(str(r["line"])))):
        if r["outcome"] == "survived":
            old, new = (" ".join(str(r[k]).split()).replace("|", "\\|")[:60] for k in ("old", "new"))
            rows.append(
                f"| {r['name']} | {r['path']}:{r['line']} | `{old}` to `{new}` ({r['operator']}) | {reasons.get(str(r['name']), 'open')} |"
            )
    return "\n".join(rows) + "\n"


HEADER = """# Mutants

What tests say when one place of the sources is wrong: `make mutants` ([bench/mutants.py](../../bench/mutants.py)). The campaign draws the same number of mutants for each target, whatever its
size. A mutant is shown to the tests of its target that call the changed function, the quickest first, and is killed if one fails or hangs; what survives would perhaps be seen by other
tests, which are not of its target. Many were shown the quickest 60 or 90 seconds of tests only (`budget` in the results). A survivor that is looked at gets a test, and is run again; or it is *equivalent*, and its reason is named. Lines are those of the
sources that were mutated; the names do not depend on them. A campaign may be stopped and continued: what is in [mutants.jsonl](mutants.jsonl) is not run again. Seconds are by the
clock, on two cores that others used, too: they say which targets are slow, not how slow.

"""


def _row(name: str, numbers: list[int], of: Sequence[Mapping[str, Any]]) -> str:
    drawn, run, killed, _, equivalent = numbers
    rate = f"{killed / (run - equivalent):.1%}" if run > equivalent else ""
    seconds = f"{median(r['seconds'] for r in of):.1f}" if of else ""
    return f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} | {rate} | {seconds} |"


def write_table(seed: int, count: int) -> None:
    """Puts the table beside the results."""
    TABLE.write_text(HEADER + table(seed, count))


def run_holes(run: Run, only: str) -> int:
    """The mistakes that once no test saw, each with its own tests; returns how many live."""
    alive = 0
    by_tests: dict[tuple[str, ...], list[Trial]] = {}
    for hole in HOLES:
        if not re.search(only, f"{hole.name}, {hole.path}"):
            continue
        text = (ROOT / hole.path).read_text()
        if text.count(hole.old) != 1:
            raise SystemExit(
                f"{hole.name}: {hole.path} holds {text.count(hole.old)} times {hole.old!r}; mend bench/holes.py"
            )
        line = text[: text.index(hole.old)].count("\n") + 1
        trial = Trial(hole.name, hole.path, text.replace(hole.old, hole.new), line)
        by_tests.setdefault(hole.tests, []).append(trial)
    batches = {", ".join(t): Batch(t, tuple(trials), traced=False) for t, trials in by_tests.items()}
    for _, found in run(verdicts, batches):
        for name, outcome, what, seconds in found:
            alive += outcome == "survived"
            print(f"{outcome:9}{seconds:6.0f} s  {name}  {what}", flush=True)
    return alive


def run_campaign(run: Run, a: argparse.Namespace) -> None:
    """Runs what has no result yet (`--again`: the survivors; `--names`: these), in batches, of every target in turn, so that quick ones come to their end and slow
    ones to something. Only what the campaign draws is kept."""
    known = results()
    targets = a.only.split(",") if a.only else list(TARGETS)
    if unknown := set(targets) - TARGETS.keys():
        raise SystemExit(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    drawn = chosen(a.seed, targets, a.count)
    todo = {
        name: [m for m in of if m.name not in known or (a.again and known[m.name]["outcome"] == "survived")]
        for name, of in drawn.items()
    }
    if a.names:
        wanted = set(a.names.split(","))
        todo = {
            n: [m for p in TARGETS[n][0] for m in mutants(p, (ROOT / p).read_text()) if m.name in wanted]
            for n in targets
        }
        if missing := wanted - {m.name for of in todo.values() for m in of}:
            raise SystemExit(f"no mutant of {', '.join(targets)} has the name {', '.join(sorted(missing))}")
    kept = {m.name for of in drawn.values() for m in of}
    by_name = {m.name: m for of in todo.values() for m in of}
    until = time.time() + a.seconds
    batches: dict[str, Batch] = {}
    for first in range(0, max(map(len, todo.values())), TOGETHER):
        for name, of in todo.items():
            trials = [
                Trial(m.name, m.path, m.apply((ROOT / m.path).read_text()), m.line, a.budget)
                for m in of[first : first + TOGETHER]
            ]
            if trials:
                batches[f"{name}, from {first}"] = Batch(TARGETS[name][1], tuple(trials), not a.untraced, until)
    for _, found in run(verdicts, batches):
        for name, outcome, what, seconds in found:
            mutant = by_name[name]
            change = f"{mutant.path}:{mutant.line} {mutant.old!r} to {mutant.new!r}"
            print(f"{outcome:9}{seconds:6.1f} s  {mutant.name} {change}  {what}", flush=True)
            if mutant.name not in kept:
                continue
            record = {k: v for k, v in asdict(mutant).items() if k != "start"}
            known[mutant.name] = record | {"outcome": outcome, "test": what, "seconds": round(seconds, 1)}
            if outcome == "survived" and a.budget < float("inf"):
                known[mutant.name]["budget"] = a.budget
        with replacing(RESULTS) as whole:
            whole.write_text("".join(json.dumps(r) + "\n" for r in known.values()))


def main() -> None:
    """Runs holes or a campaign, and writes the table."""
    parser = argparse.ArgumentParser(description="Mistakes put into the sources one at a time.")
    parser.add_argument("--holes", action="store_true", help="the mistakes that once no test saw")
    parser.add_argument("--only", default="", help="holes: names or paths that match; campaign: targets, with commas")
    parser.add_argument("--names", default="", help="mutants to run whatever was found, by name, with commas")
    parser.add_argument("--count", type=int, default=CAMPAIGN, help="mutants that the campaign draws")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="wall clock after which no mutant is begun")
    parser.add_argument(
        "--budget",
        type=float,
        default=float("inf"),
        help="show a mutant the quickest tests only, of so many seconds together; --again shows what survives more",
    )
    add_options(parser)
    parser.add_argument(
        "--untraced", action="store_true", help="show every mutant all tests in their order: for quick ones"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run survivors of earlier runs again")
    parser.add_argument("--table", action="store_true", help="only write the table")
    a = parser.parse_args()
    if a.table:
        write_table(a.seed, a.count)
        return
    with workers(a, "batches") as run:
        if a.holes:
            alive = run_holes(run, a.only)
            raise SystemExit(f"{alive} mistakes are seen by no test" if alive else None)
        run_campaign(run, a)
    write_table(a.seed, CAMPAIGN if a.only else a.count)
    known = results()
    print(f"{len(known)} mutants, {sum(r['outcome'] == 'survived' for r in known.values())} survived")


if __name__ == "__main__":
    from bench.mutants import main as run  # workers find the functions of a module, not of a program

    run()
