"""Places are looked at before the work, written whole or not at all, and held by one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tellme.host.errors import UserError
from tellme.host.places import alone, check_new_file, check_new_folder, replacing


def bad_places(tmp_path: Path) -> list[Path]:
    (tmp_path / "file").write_text("x")
    return [Path("/proc/x"), Path("/proc/x/y"), tmp_path / "file" / "x", tmp_path / ("n" * 300)]


def test_places_where_nothing_can_be_written_are_refused_and_left_alone(tmp_path: Path) -> None:
    for place in bad_places(tmp_path):
        for check in (check_new_file, check_new_folder):
            with pytest.raises(UserError) as refused:
                check(place)
            assert str(place) in str(refused.value)
    with pytest.raises(UserError, match="file: is a file; give a folder"):
        check_new_folder(tmp_path / "file")
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        check_new_file(tmp_path)
    with pytest.raises(UserError, match="its folder does not exist"):
        check_new_file(tmp_path / "no" / "x")
    for device in ("/dev/null", "/dev/full"):
        with pytest.raises(UserError, match=f"{device}: is not a regular file"):
            check_new_file(Path(device))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_good_places_are_taken_and_left_empty(tmp_path: Path) -> None:
    check_new_folder(tmp_path)
    check_new_folder(tmp_path / "a" / "b c é")
    check_new_file(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with replacing(target) as whole:
        whole.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(KeyError), replacing(link) as whole:
        whole.write_text("tw")
        raise KeyError
    assert target.read_text() == "one"
    with replacing(link) as whole:
        whole.write_text("two")
    assert link.is_symlink() and target.read_text() == "two"
    with pytest.raises(UserError, match="x: cannot be written .No space left on device."), replacing(target):
        raise OSError(28, "No space left on device")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "x"]


def test_a_folder_is_held_by_one_process_and_the_other_is_told_which(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "build"
    script = "import sys, time; from pathlib import Path; from tellme.host.places import alone\n"
    script += "with alone(Path(sys.argv[1])): print('go', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "go\n"
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"build: is being built by process {other.pid} since .*; wait for it"):
        with alone(folder):
            pass
    assert time.monotonic() - begun < 1
    other.kill()
    other.wait()
    with alone(folder):  # the lock of a process that was killed is none
        pass
    assert not list((tmp_path / "new").iterdir())


def test_a_lock_leaves_no_folder_behind_but_what_was_made_in_it(tmp_path: Path) -> None:
    with alone(tmp_path / "a" / "b" / "c"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="of the work"), alone(tmp_path / "a" / "b"):
        raise OSError("of the work")
    for place in bad_places(tmp_path):
        with pytest.raises(UserError, match="cannot be written"), alone(place):
            pass
    with alone(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_dir()] == ["a", "a/b"]
