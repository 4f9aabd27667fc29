"""Independent tasks on several processes: `dask.distributed`, on the cores of this machine or on a cluster.

Results do not depend on how many workers there are or in which order they end, and a worker that dies costs only its task again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tellme.golden.project import advice
from tellme.host.errors import UserError

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]
"""Runs a function on tasks; yields place and result of each as it ends, in any order."""

CONNECT = 10.0
"""Seconds in which a scheduler must answer."""

RETRIES = 3
"""Times that a task is begun again after its worker died; one that kills every worker is given up."""


def _alone(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for i, task in enumerate(tasks):
        yield i, function(task)


@contextmanager
def farm(workers: int | None = None, scheduler: str | None = None) -> Iterator[Run]:
    """Where tasks run.

    Parameters
    ----------
    workers : processes on this machine; None: one for each core. One worker is this process itself, which needs no library.
    scheduler : address of a scheduler of `dask.distributed`, as tcp://host:8786, in place of them. Its workers need this package.

    Raises
    ------
    UserError : no scheduler answers, or the library is not installed.
    """
    if scheduler is None and workers == 1:
        yield _alone
        return
    try:
        from distributed import Client, LocalCluster, as_completed
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

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        futures = client.map(function, tasks, pure=False, retries=RETRIES)
        places = {f.key: i for i, f in enumerate(futures)}
        for future, found in as_completed(futures, with_results=True):
            yield places[future.key], found

    try:
        yield run
    finally:
        client.close()
        if cluster is not None:
            cluster.close()
