"""The cache: entries are whole or not there, two processes build one, what is in use stays, what is not ours is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tellme.host.cli import app
from tellme.hw import cache

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "c"))
    monkeypatch.setattr(cache, "_held", {})
    return tmp_path / "c"


def make(folder: Path) -> None:
    (folder / "simulator").write_text("x" * 1000)


def process(code: str) -> subprocess.Popen[str]:
    script = f"import sys, time\nfrom pathlib import Path\nfrom tellme.hw import cache\n{code}"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_folder_is_the_users_unless_another_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.root() == tmp_path / "c"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.VARIABLE, "here")
    assert cache.root() == tmp_path / "here"
    monkeypatch.setenv(cache.VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "tellme"


def test_an_entry_is_made_once(folder: Path) -> None:
    made: list[Path] = []

    def once(stage: Path) -> None:
        assert not (folder / KEY).exists(), "it appears when it is whole"
        made.append(stage)
        make(stage)

    assert cache.entry(KEY, once) == cache.entry(KEY, once) == folder / KEY
    assert len(made) == 1 and (folder / KEY / "simulator").exists() and not made[0].exists()


def test_a_failed_or_killed_build_leaves_nothing_that_is_taken_for_an_entry(folder: Path) -> None:
    def fail(stage: Path) -> None:
        make(stage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry(KEY, fail)
    assert [p.name for p in folder.iterdir()] == ["locks"]
    killed = process(
        f"def m(f):\n (f/'half').touch()\n print('go', flush=True)\n time.sleep(60)\ncache.entry('{KEY}', m)"
    )
    assert killed.stdout is not None and killed.stdout.readline() == "go\n"
    killed.kill()
    killed.wait()
    assert [e.kind for e in cache.entries()] == ["unfinished"]
    assert not (cache.entry(KEY, make) / "half").exists()
    assert [e.kind for e in cache.entries()] == ["simulator"]


def test_two_processes_make_an_entry_once(folder: Path) -> None:
    code = f"def m(f):\n print('made', flush=True)\n time.sleep(1)\nprint(cache.entry('{KEY}', m).name)"
    both = [process(code) for _ in range(2)]
    out = [p.communicate()[0] for p in both]
    assert sorted(len(o.splitlines()) for o in out) == [1, 2] and all(KEY in o for o in out)


def test_clear_leaves_what_is_in_use_and_what_is_not_ours(folder: Path) -> None:
    cache.entry(KEY, make)
    (folder / "thesis").mkdir()
    (folder / "synth").mkdir()
    (folder / "synth" / "notes.txt").touch()
    (folder / "synth" / f"kv260-tlmm-{24 * 'a'}.json").write_text("{}")
    user = process(f"cache.entry('{OTHER}', lambda f: None)\nprint('go', flush=True)\ntime.sleep(60)")
    assert user.stdout is not None and user.stdout.readline() == "go\n"
    cache._held.clear()
    r = CliRunner().invoke(app, ["cache", "clear"])
    assert r.exit_code == 0 and "2 entries removed" in r.output and "1 in use stay" in r.output
    user.kill()
    user.wait()
    assert sorted(p.name for p in folder.iterdir()) == [OTHER, "locks", "synth", "thesis"]
    assert [p.name for p in (folder / "synth").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("days,gone", [(0, 2), (1, 1), (30, 0), (float("nan"), 0), (float("inf"), 0)])
def test_clear_by_the_time_of_the_last_use(folder: Path, days: float, gone: int) -> None:
    for key in (KEY, OTHER):
        cache.entry(key, make)
    cache._held.clear()
    os.utime(folder / KEY / cache.DONE, (time.time() - 2 * 86400,) * 2)
    assert len(cache.clear(days)[0]) == gone


def test_a_cache_that_cannot_be_written_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("/proc/x", str(tmp_path / "file"), str(tmp_path / "file" / "x"), str(tmp_path / ("n" * 300))):
        monkeypatch.setenv(cache.VARIABLE, place)
        with pytest.raises(cache.CacheError, match="cannot be written .*set TELLME_BUILD to a folder that can"):
            cache.entry(KEY, make)
        begun = time.monotonic()
        r = CliRunner().invoke(app, ["run", "--prompt", "Once", "--max-new-tokens", "1"])
        assert r.exit_code == 2 and r.stderr.count("\n") == 1 and place in r.stderr, r.stderr
        assert time.monotonic() - begun < 5


def test_a_full_disk_is_said_in_one_line(folder: Path) -> None:
    def full(stage: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(cache.CacheError, match="cannot be written .No space left on device"):
        cache.entry(KEY, full)


def test_an_empty_cache_is_shown_and_cleared(folder: Path) -> None:
    for command in (["cache"], ["cache", "clear"]):
        r = CliRunner().invoke(app, command)
        assert r.exit_code == 0 and f"{folder}: 0 entries" in r.output
    assert not folder.exists()
