"""Whether tests see a mistake: a copy of the sources in which one file at a time is changed, and processes that have imported and collected all already.

What a trial costs is mostly what Python needs to start, to import and to collect, and tests that never come to the changed line. So tests are run once without a mistake, under a
trace that says which functions each of them calls. Then pytest collects them once, and each trial is a fork of that process, in which the code of the changed function takes the
place of the old one, wherever it is referred to; the tests that call it run, the quickest first, up to the first that fails. What is changed outside of functions is read again by a
process that has imported the packages of others only, and shown to all tests.

Trials of the same tests are a batch, which a worker of the farm gives to a process of its own (`python -m bench.trials`): it must have imported none of
the sources, and have no threads.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import gc
import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.workers import ROOT, end_with_parent, module
from tellme.host.errors import CheckError
from tellme.host.places import replacing
from tellme.hw.cache import root as build_cache

PATIENCE = 3.0
"""Times what a test takes without a mistake, traced and with its simulators to build, after which a mutant counts as killed (it hangs)."""
LEAST_SECONDS = 30.0
UNTIMED_SECONDS = 900.0
"""Of tests whose time is not known."""
OURS = ("tellme", "tests", "bench")
PRELOADED = (
    "numpy", "amaranth", "jinja2", "starlette", "httpx2", "cocotb_tools", "pydantic", "hypothesis", "tokenizers", "llguidance", "jsonschema", "gguf", "safetensors",
)  # fmt: skip
"""What takes long to import, and keeps no threads."""
PROFILES = ROOT / "build" / "mutants"
CALLS = "TELLME_TRIALS_CALLS"
"""Variable that names the file to which processes of tests write what they call."""
SITE = f'''"""What a process that a test starts calls (bench/trials.py)."""

import os, sys, threading

if place := os.environ.get("{CALLS}"):
    out = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    seen = set()

    def trace(frame, event, arg, folder=os.environ["{CALLS}_FOLDER"], seen=seen, out=out, write=os.write):
        code = frame.f_code
        if code not in seen:
            seen.add(code)
            if code.co_filename.startswith(folder):
                write(out, f"{{code.co_filename}}\\t{{code.co_firstlineno}}\\n".encode())

    threading.settrace(trace)
    sys.settrace(trace)
'''
"""Module that Python imports when it starts, in simulators, too."""
SIMULATOR = re.compile("[0-9a-f]{16}")
"""Names of simulators in the cache."""


def copy(folder: Path) -> None:
    """The sources as git lists them, as they stand, with what was compiled of them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    compiled = [str(path.relative_to(ROOT)) for path in ROOT.glob("host/**/*.so")]
    for name in [*filter(None, listed.decode().split("\0")), *compiled]:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            shutil.copyfile(source, target)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the folder for temporary files is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def functions(text: str) -> list[tuple[int, int, int]]:
    """(first line with decorators, as code objects have it; last line; first line of the body) of each function, outer ones first."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            found.append((min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno, node.body[0].lineno))  # fmt: skip
    return sorted(found)


def function_at(text: str, line: int) -> int:
    """First line of the innermost function in whose body a line is; 0 outside of all (defaults and decorators are outside)."""
    return max((first for first, last, body in functions(text) if body <= line <= last), default=0)


@dataclass
class Profile:
    """A run of tests without a mistake. seconds: of each test; calls: path -> first line of a function -> tests that call it; modules: what they import of others;
    sources: path -> hash of what they import of ours, after whose change the profile is another."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    sources: dict[str, str] = field(default_factory=dict)

    def order(self, path: str, function: int, budget: float = float("inf")) -> list[str]:
        """Tests that call a function, the quickest first, as many as take so many seconds together; of all tests, for a module's body, or a function that
        none is seen to call (but in a process of its own). Of hardware those that do not come behind them: a simulator that was built for one serves others."""
        calling = self.calls.get(path, {}).get(function, set()) if function else set()
        tests = sorted(self.seconds, key=lambda t: (t not in calling, self.seconds[t]))
        if calling and not path.startswith("hw/"):
            tests = tests[: len(calling)]
        sums = itertools.accumulate(self.seconds[t] for t in tests)
        return [t for i, (t, total) in enumerate(zip(tests, sums, strict=True)) if total <= budget or i == 0]


class _Tracer:
    """pytest plugin: which functions of the sources each test calls, itself or in processes that it starts. What a fixture of a file calls, or a process (which may
    serve several tests), counts for all tests of the file."""

    def __init__(self, folder: Path):
        self.profile = Profile()
        self._others = folder.with_name("calls")
        self._folder = str(folder) + "/"
        self._now: set[tuple[str, int]] = set()
        self._real: dict[str, str] = {}
        self._setup: dict[str, set[tuple[str, int]]] = {}

    def trace(self, frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        name = code.co_filename
        if name.startswith(self._folder):
            self._now.add((name, code.co_firstlineno))

    def pytest_collection_finish(self) -> None:
        self._now.clear()  # what runs when sources are imported is called by no test

    def pytest_runtest_setup(self) -> None:
        sys.settrace(self.trace)  # a test that recurses without end has ended it

    def pytest_sessionstart(self) -> None:
        from amaranth.sim import Simulator

        site = Path(self._folder).with_name("site")
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(SITE)
        sys.path.insert(0, str(site))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
        os.environ |= {CALLS: str(self._others), f"{CALLS}_FOLDER": self._folder}

        run = Simulator.run

        def untraced(simulator: Any) -> None:
            """The simulator's own calls are many, and none of the sources'."""
            sys.settrace(None)
            try:
                run(simulator)
            finally:
                sys.settrace(self.trace)

        Simulator.run = untraced
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        called, self._now = self._now, set()
        test = report.nodeid
        file = test.split("::")[0]
        if self._others.exists():
            for row in self._others.read_text().splitlines():
                name, first = row.split("\t")
                self._setup.setdefault(file, set()).add((name, int(first)))
            self._others.write_text("")
        if report.when == "setup":
            self._setup.setdefault(file, set()).update(called)
        self.profile.seconds[test] = self.profile.seconds.get(test, 0.0) + report.duration
        for name, line in called:
            path = os.path.relpath(os.path.realpath(name), self._folder)
            self.profile.calls.setdefault(path, {}).setdefault(line, set()).add(test)

    def pytest_sessionfinish(self) -> None:
        for file, called in self._setup.items():
            mine = {t for t in self.profile.seconds if t.split("::")[0] == file}
            for name, line in called:
                path = os.path.relpath(os.path.realpath(name), self._folder)
                self.profile.calls.setdefault(path, {}).setdefault(line, set()).update(mine)
        self.profile.modules = {n for n in list(sys.modules) if n.split(".")[0] not in OURS}
        files = (getattr(m, "__file__", None) for n, m in list(sys.modules.items()) if n.split(".")[0] in OURS)
        paths = {os.path.relpath(os.path.realpath(f), self._folder) for f in files if f} | self.profile.calls.keys()
        self.profile.sources = {p: _sha256(Path(self._folder, p)) for p in sorted(paths)}


class _Chosen:
    """pytest plugin: only these tests, in this order but for those of a file, which stay together. Keeps the first that failed."""

    def __init__(self, tests: Sequence[str]):
        self._rank = {t: i for i, t in enumerate(tests)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if not self._rank:  # all of them
            return
        files: dict[str, int] = {}
        for item in items:
            if item.nodeid in self._rank:
                file = item.nodeid.split("::")[0]
                files[file] = min(files.get(file, len(self._rank)), self._rank[item.nodeid])
        kept = [i for i in items if i.nodeid in self._rank]
        items[:] = sorted(kept, key=lambda i: (files[i.nodeid.split("::")[0]], self._rank[i.nodeid]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


@dataclass(frozen=True)
class Trial:
    """A changed file: its path, its text, the line of the change, and the seconds that its tests may take together (see `Profile.order`)."""

    name: str
    path: str
    text: str
    line: int
    budget: float = float("inf")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all within it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _codes(part)


def outermost(text: str, line: int) -> int:
    """First line of the outermost function in whose body a line is; 0 outside of all."""
    return min((first for first, last, body in functions(text) if body <= line <= last), default=0)


def replace_code(file: Path, text: str, first: int) -> bool:
    """Gives every function that was made from the one at line `first` of a file its code in `text`; whether there is one."""
    changed = compile(text, str(file), "exec", dont_inherit=True)
    new = {c.co_qualname: c for c in _codes(changed) if c.co_firstlineno == first}
    found = False
    for f in gc.get_objects():
        if isinstance(f, types.FunctionType) and f.__code__.co_firstlineno == first and f.__code__.co_qualname in new:
            if os.path.realpath(f.__code__.co_filename) == str(file):
                f.__code__ = new[f.__code__.co_qualname]
                found = True
    return found


class _Forks:
    """pytest plugin: instead of running what was collected, runs a fork for each trial, and tells `out` of each in a line of JSON."""

    def __init__(self, bench: Bench, profile: Profile, trials: Sequence[Trial], out: int, end: float):
        self._bench, self._profile, self._trials, self._out, self._end = bench, profile, trials, out, end

    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        for trial in self._trials:
            if time.monotonic() > self._end:
                break
            begin = time.monotonic()
            outcome, what = self._trial(session, items, trial)
            line = json.dumps([trial.name, outcome, what, time.monotonic() - begin])
            os.write(self._out, line.encode() + b"\n")
        return True

    def _trial(self, session: Any, items: dict[str, Any], trial: Trial) -> tuple[str, str]:
        place = self._bench.folder / trial.path
        before, stat = place.read_text(), place.stat()
        names: Sequence[str] = list(items)
        limit = UNTIMED_SECONDS
        if self._profile.seconds:
            names = self._profile.order(trial.path, function_at(before, trial.line), trial.budget)
            limit = sum(self._profile.seconds[n] for n in names) * PATIENCE + LEAST_SECONDS
        chosen = [items[n] for n in names if n in items]
        built = set(self._bench.cache.iterdir())
        try:
            place.write_text(trial.text)  # for processes that tests start
            os.utime(place, (stat.st_atime + 86400, stat.st_mtime + 86400))  # bytecode goes by the time in seconds

            def child() -> int:
                if not replace_code(place.resolve(), trial.text, outermost(before, trial.line)):
                    return NOT_THERE
                for i, item in enumerate(chosen):
                    if item.nodeid in self._profile.seconds:  # this signal ends the process
                        signal.alarm(math.ceil(self._profile.seconds[item.nodeid] * PATIENCE + LEAST_SECONDS))
                    following = chosen[i + 1] if i + 1 < len(chosen) else None
                    session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if session.testsfailed:
                        self._bench.failed.write_text(item.nodeid)
                        return 1
                return 0

            self._bench.failed.unlink(missing_ok=True)
            code = fork(child, limit)
        finally:
            place.write_text(before)
            os.utime(place, (stat.st_atime, stat.st_mtime))
            self._bench.drop(built)
        if code is None or code == -signal.SIGALRM:
            return "hung", ""
        if code == NOT_THERE:
            return "elsewhere", ""
        if code == 0:
            return "survived", ""
        return "killed", self._bench.failed.read_text() if self._bench.failed.exists() else f"exit {code}"


NOT_THERE = 77
"""How a child says that no test has imported what was changed."""


def fork(child: Callable[[], int], limit: float) -> int | None:
    """What a forked child returns; None if it took longer than `limit` seconds, and was ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.setsid()
            end_with_parent()
            code = child()
            sys.stdout.flush()
        os._exit(code)
    end = time.monotonic() + limit
    pause = 0.01
    result: int | None = None
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            result = os.waitstatus_to_exitcode(status)
            break
        time.sleep(pause)
        pause = min(0.2, pause * 1.2)
    with contextlib.suppress(ProcessLookupError):  # itself, or what a test left running
        os.killpg(pid, signal.SIGKILL)
    if result is None:
        os.waitpid(pid, 0)
    return result


class Bench:
    """A copy of the sources, and what its tests say of a mistake in it.

    folder, cache: where; both are filled. Trials run in children of this process, which must have imported none of the sources under test.
    """

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache = folder.resolve(), cache.resolve()
        copy(self.folder)
        self.cache.mkdir(parents=True)
        self._out = self.folder.with_name("output")
        self.failed = self.folder.with_name("failed")

    def _pytest(self, arguments: Sequence[str], plugin: Any, cache: Path) -> int:
        """In a child: runs pytest on the copy, with a cache of simulators."""
        import pytest

        os.chdir(self.folder)
        os.environ |= {"PYTHONPATH": str(self.folder), "TELLME_BUILD": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in [n for n in sys.modules if n.split(".")[0] in OURS]:
            del sys.modules[name]
        # An editable install of the project finds its package by a hook or by a path.
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
        sys.path[:] = [str(self.folder), *(p for p in sys.path if p and os.path.realpath(p) != str(ROOT))]
        importlib.invalidate_caches()
        sys.argv = ["pytest"]
        options = ["-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "--durations=0"]
        return int(pytest.main([*options, *arguments], plugins=[plugin]))

    def _child(self, arguments: Sequence[str], plugin: Any, limit: float, cache: Path) -> tuple[int | None, Any]:
        """(pytest's result, or None when the time was over; what the plugin holds at the end)."""
        result = self._out.with_suffix(".pickle")
        result.unlink(missing_ok=True)

        def child() -> int:
            self._redirect()
            code = self._pytest(arguments, plugin, cache)
            result.write_bytes(pickle.dumps(plugin.failed if isinstance(plugin, _Chosen) else vars(plugin.profile)))
            return code

        code = fork(child, limit)
        return code, pickle.loads(result.read_bytes()) if result.exists() else None

    def _redirect(self) -> None:
        fd = os.open(self._out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def drop(self, built: set[Path]) -> None:
        """Removes what the cache has beyond `built`: a simulator with a mistake is of no further use."""
        for entry in set(self.cache.iterdir()) - built:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def judge_all(
        self, tests: Sequence[str], trials: Sequence[Trial], seconds: float, *, traced: bool = True
    ) -> Iterator[tuple[Trial, str, str, float]]:
        """As `judge`, of many trials, as far as they come in so many seconds: (trial, outcome, test, seconds). Not `traced`: all tests in their order."""
        profile = self.profile(tests) if traced else Profile()
        self.link(build_cache())
        end = time.monotonic() + seconds

        def reached(t: Trial) -> bool:
            """Whether it is in a function that a test calls. One that is called while sources are imported has done its work before a fork."""
            function = function_at((self.folder / t.path).read_text(), t.line)
            return bool(function) and (not traced or function in profile.calls.get(t.path, {}))

        within = [t for t in trials if reached(t)]
        left = [t for t in trials if t not in within]
        if within:
            by_name = {t.name: t for t in within}
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 99
                with contextlib.suppress(BaseException):
                    os.close(reading)
                    self._redirect()
                    files = list(dict.fromkeys(t.split("::")[0] for t in profile.seconds)) or list(tests)
                    code = self._pytest(files, _Forks(self, profile, within, writing, end), self.cache)
                os._exit(code)
            os.close(writing)
            with os.fdopen(reading) as lines:
                for line in lines:
                    name, outcome, what, took = json.loads(line)
                    if outcome == "elsewhere":
                        left.append(by_name[name])
                    else:
                        yield by_name[name], outcome, what, took
            os.waitpid(pid, 0)
        for trial in left:
            if time.monotonic() > end:
                return
            yield trial, *self.judge(trial, tests, profile)

    def profile(self, tests: Sequence[str]) -> Profile:
        """Runs tests without a mistake, once for all processes of a machine; they must pass. What they import of others this process imports, too.

        Raises
        ------
        CheckError : they do not pass.
        """
        at = [self.folder / t.split("::")[0] for t in tests]
        files = sorted(str(p.relative_to(self.folder)) for t in at for p in (t.rglob("*.py") if t.is_dir() else [t]))
        key = repr((tuple(tests), files, inspect.getsource(_Tracer), SITE))
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        kept, built = PROFILES / f"{name}.pickle", PROFILES / name
        PROFILES.mkdir(parents=True, exist_ok=True)
        with open(PROFILES / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            profile = Profile(**pickle.loads(kept.read_bytes())) if kept.exists() else Profile()
            if not profile.sources or any(_sha256(self.folder / p) != h for p, h in profile.sources.items()):
                # With nothing built: what a simulator takes to build is most of what a test of a changed one takes.
                shutil.rmtree(built, ignore_errors=True)
                built.mkdir()
                code, found = self._child(tests, _Tracer(self.folder), 3600, built)
                if code != 0:
                    raise CheckError(f"the tests do not pass without a mistake: {self._out.read_text()[-800:]}")
                with replacing(kept) as whole:
                    whole.write_bytes(pickle.dumps(found))
                profile = Profile(**found)
        self.link(built)
        self._import(profile)
        return profile

    def link(self, root: Path) -> None:
        """Fills the cache with what another has, which is not built again: simulators as they are, the rest as links of files, which may be added to."""
        for entry in root.iterdir() if root.is_dir() else ():
            at = self.cache / entry.name
            if SIMULATOR.fullmatch(entry.name):
                if not at.exists():
                    at.symlink_to(entry)
            elif entry.name != "locks" and entry.is_dir():
                shutil.copytree(entry, at, copy_function=_link, dirs_exist_ok=True)

    def _import(self, profile: Profile) -> None:
        for name in sorted(profile.modules):
            if name.split(".")[0] in PRELOADED:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)

    def judge(self, trial: Trial, tests: Sequence[str], profile: Profile) -> tuple[str, str, float]:
        """What becomes of a trial: 'killed', 'hung' (killed by time) or 'survived'; by which test; seconds. Everything is imported again."""
        place = self.folder / trial.path
        before, stat = place.read_text(), place.stat()
        chosen = profile.order(trial.path, function_at(before, trial.line), trial.budget)
        built = set(self.cache.iterdir())
        begin = time.monotonic()
        outcome, what = "survived", ""
        try:
            place.write_text(trial.text)
            os.utime(place, (stat.st_atime + 86400, stat.st_mtime + 86400))
            limit = sum(profile.seconds[t] for t in chosen) * PATIENCE + LEAST_SECONDS if chosen else UNTIMED_SECONDS
            files = list(dict.fromkeys(t.split("::")[0] for t in chosen)) or list(tests)
            code, failed = self._child(["-x", *files], _Chosen(chosen), limit, self.cache)
            if code is None:
                outcome = "hung"
            elif code != 0:
                outcome, what = "killed", failed or self._out.read_text().strip()[-120:].splitlines()[-1]
        finally:
            place.write_text(before)
            os.utime(place, (stat.st_atime, stat.st_mtime))
            self.drop(built)
        return outcome, what, time.monotonic() - begin


@dataclass(frozen=True)
class Batch:
    """Trials of the same tests. traced: as `Bench.judge_all`; until: seconds since the epoch, after which none is begun."""

    tests: tuple[str, ...]
    trials: tuple[Trial, ...]
    traced: bool = True
    until: float = float("inf")


Verdict = tuple[str, str, str, float]
"""A trial's name; its outcome, the test, seconds (`Bench.judge`)."""


def verdicts(batch: Batch) -> list[Verdict]:
    """In a worker: what becomes of a batch's trials, those that were not begun left out.

    Raises
    ------
    CheckError : the tests do not pass without a mistake, or the process ended.
    """
    if time.time() > batch.until:
        return []
    done = module("bench.trials", given=pickle.dumps(batch), errors=subprocess.PIPE)
    if done.returncode:
        raise CheckError(f"{', '.join(batch.tests)}: {done.stderr.decode(errors='replace').strip()[-800:]}")
    return [(name, outcome, what, seconds) for name, outcome, what, seconds in json.loads(done.stdout)]


def main() -> None:
    """Reads a batch (pickle), and prints its verdicts (JSON)."""
    batch: Batch = pickle.load(sys.stdin.buffer)
    with tempfile.TemporaryDirectory(prefix="tellme-trials-") as folder:
        bench = Bench(Path(folder) / "sources", Path(folder) / "cache")
        seconds = batch.until - time.time()
        found = bench.judge_all(batch.tests, batch.trials, seconds, traced=batch.traced)
        json.dump([(t.name, outcome, what, took) for t, outcome, what, took in found], sys.stdout)


if __name__ == "__main__":
    from bench.trials import main as run  # a batch is of this module, not of the program

    run()
