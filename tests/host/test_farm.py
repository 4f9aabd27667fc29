"""Tasks on processes: a scheduler and workers of dask.distributed as a cluster has them, and one of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.host.cli import app
from tellme.host.errors import CheckError, UserError
from tellme.host.farm import TaskError, farm
from tellme.host.machine.exploration import KEPT
from tests.own_boards import forgotten

EXPLORE = ["explore", "--board", "ultra96v2", "--model", "demo", "--over", "lanes=1,2", "--json"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, each a process; the address, and the workers."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    here_too = {"PYTHONPATH": str(Path(__file__).parents[2])}  # tasks of this module
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    quiet["env"] = os.environ | here_too
    dask = [sys.executable, "-m", "dask"]
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    started = [subprocess.Popen([*dask, "scheduler", *here, "--port", "0", "--scheduler-file", str(file)], **quiet)]
    try:
        end = time.monotonic() + 120
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < end and started[0].poll() is None, "the scheduler did not start"
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder), *here]
        started += [subprocess.Popen([*dask, "worker", address, *options], **quiet) for _ in range(2)]
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def square(task: tuple[int, str]) -> tuple[int, int]:
    """Says which process it is in and waits a moment."""
    value, folder = task
    (Path(folder) / f"{value}-{os.getpid()}").touch()
    time.sleep(0.3)
    return value * value, os.getpid()


def test_results_are_those_of_one_process_and_a_killed_worker_costs_only_time(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = cluster
    tasks = {f"the square of {n}": (n, str(tmp_path)) for n in range(12)}
    with farm(workers=1) as run:
        alone = dict(run(square, tasks))
    assert {pid for _, pid in alone.values()} == {os.getpid()}
    found: dict[str, tuple[int, int]] = {}
    with farm(scheduler=address) as run:
        for name, result in run(square, tasks):
            assert name not in found
            found[name] = result
            if len(found) == 3:
                workers[0].send_signal(signal.SIGKILL)
                workers[0].wait()
    assert {i: v for i, (v, _) in found.items()} == {i: v for i, (v, _) in alone.items()}
    assert {pid for _, pid in found.values()} <= {w.pid for w in workers}
    # What ran in the killed worker ran again in the other one.
    begun = [int(p.name.split("-")[0]) for p in tmp_path.iterdir() if not p.name.endswith(f"-{os.getpid()}")]
    assert len(begun) > len(tasks) and set(begun) == set(range(12))


def explored(folder: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*EXPLORE, "--out", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_exploring_on_a_cluster_finds_the_same(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    alone = explored(tmp_path / "alone", "--workers", "1")
    there = explored(tmp_path / "there", "--scheduler", cluster[0])
    for a, b in zip(alone["points"], there["points"], strict=True):
        assert {**a, "file": ""} == {**b, "file": ""}
    assert (alone["front"], alone["best"]) == (there["front"], there["best"])
    kept = [(tmp_path / name / KEPT).read_text().splitlines() for name in ("alone", "there")]
    assert sorted(kept[0]) == sorted(kept[1]) and len(kept[0]) == there["evaluated"]
    # And it goes on with what another way of running has found.
    assert explored(tmp_path / "alone", "--scheduler", cluster[0])["evaluated"] == 0


def test_boards_of_a_file_are_known_to_workers(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "zcu102.toml"
    arguments = ["explore", "--config", str(example), "--model", "demo", "--over", "lanes=1", "--scheduler", cluster[0]]
    with forgotten():
        result = CliRunner().invoke(app, [*arguments, "--json", "--no-picture", "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout.splitlines()[-1])
        assert found["board"] == "zcu102" and len(found["points"]) == 2
        assert {AcceleratorConfig(**p["config"]).lanes for p in found["points"]} == {1, PRESETS["zcu102"].lanes}


def test_local_workers_find_the_same(tmp_path: Path) -> None:
    tasks = {str(n): (n, str(tmp_path)) for n in range(4)}
    with farm(workers=2) as run:
        found = dict(run(square, tasks))
    assert {name: v for name, (v, _) in found.items()} == {str(n): n * n for n in range(4)}
    assert os.getpid() not in {pid for _, pid in found.values()}


def wrong(task: int) -> int:
    if task == 3:
        raise UserError(f"task {task} cannot be")
    return 1 // task


def test_an_error_of_a_task_is_that_of_the_run(cluster: tuple[str, list[subprocess.Popen[bytes]]]) -> None:
    for where in ({"workers": 1}, {"scheduler": cluster[0]}):
        with farm(**where) as run:  # type: ignore[arg-type]
            with pytest.raises(UserError, match="task 3 cannot be"):
                list(run(wrong, {"three": 3}))
            with pytest.raises(TaskError, match="nothing") as caught:
                list(run(wrong, {"nothing": 0}))
            assert isinstance(caught.value.__cause__, ZeroDivisionError)


def deadly(folder: str) -> None:
    """Ends its worker."""
    (Path(folder) / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_is_given_up_and_named(tmp_path: Path) -> None:
    with farm(workers=2) as run, pytest.raises(CheckError, match="the deadly one: given up"):
        list(run(deadly, {"the deadly one": str(tmp_path)}))
    assert len(list(tmp_path.iterdir())) > 2, "others tried it, too"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "tcp://", "http://127.0.0.1:9"])
def test_no_scheduler_is_said_in_one_line(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tellme.host.farm.CONNECT", 2.0)
    result = CliRunner().invoke(app, [*EXPLORE, "--out", str(tmp_path / "x"), "--scheduler", address])
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), result.output
    said = result.output.replace("\n", " ")
    assert f"--scheduler {address}: no scheduler of dask.distributed answers" in said and "Traceback" not in said
