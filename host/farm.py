"""Independent tasks on several processes: `dask.distributed`, on the cores of this machine or on a cluster.

Results do not depend on how many workers there are or in which order they end, and a worker that dies costs only its task again.
`tellme explore` runs on it, and so do the long runs of bench/.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tellme.golden.project import advice
from tellme.host.errors import CheckError, TellmeError, UserError

Run = Callable[[Callable[[Any], Any], Mapping[str, Any]], Iterator[tuple[str, Any]]]
"""Runs a function on tasks, which have names; yields name and result of each as it ends, in any order.
The function must be one that workers can import, as must be what it is given and returns.

Raises
------
TellmeError : a task raised it; or it was given up, because every worker that began it ended: then it is named.
TaskError : a task raised anything else. It is named.
"""


class TaskError(RuntimeError):
    """A task failed as no input may make it; its name, and what it raised as the cause."""


CONNECT = 10.0
"""Seconds in which a scheduler must answer."""


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except TellmeError:
        raise
    except Exception as e:
        raise TaskError(name) from e


def _alone(function: Callable[[Any], Any], tasks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        with _named(name):
            found = function(task)
        yield name, found


@contextmanager
def farm(workers: int | None = None, scheduler: str | None = None) -> Iterator[Run]:
    """Where tasks run.

    Parameters
    ----------
    workers : processes on this machine; None: one for each core. One worker is this process itself, which needs no library.
    scheduler : address of a scheduler of `dask.distributed`, as tcp://host:8786, in place of them. Its workers need this package, and
        for the runs of bench/ the same checkout.

    Raises
    ------
    UserError : no scheduler answers, the library is not installed, or there cannot be so many workers.
    """
    if workers is not None and scheduler is not None:
        raise UserError("--workers and --scheduler exclude each other")
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    if workers == 1:
        yield _alone
        return
    try:
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ImportError as e:
        if scheduler is None and workers is None:
            yield _alone
            return
        raise UserError(
            f"more than one worker needs dask.distributed ({e}); install it: {advice('explore')}, or take --workers 1"
        ) from e
    cluster = None
    try:
        if scheduler is None:
            count = workers or len(os.sched_getaffinity(0))
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
            )
        client = Client(cluster or scheduler, timeout=CONNECT)
    except (OSError, RuntimeError, TypeError, ValueError) as e:
        if cluster is not None:
            cluster.close()
        where = (
            f"--scheduler {scheduler}: no scheduler of dask.distributed answers" if scheduler else "no workers start"
        )
        raise UserError(f"{where} ({str(e).splitlines()[0] if str(e) else type(e).__name__})") from e

    def run(function: Callable[[Any], Any], tasks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        once = uuid.uuid4().hex  # a scheduler gives others' results under a name that it knows
        futures = client.map(function, list(tasks.values()), key=[f"{name} {once}" for name in tasks], pure=False)
        names = dict(zip((f.key for f in futures), tasks, strict=True))
        for future in as_completed(futures):
            name = names[future.key]
            with _named(name):
                try:
                    found = future.result()
                except KilledWorker:
                    raise CheckError(f"{name}: given up; every worker that began it ended") from None
            yield name, found

    try:
        yield run
    finally:
        client.close()
        if cluster is not None:
            cluster.close()
