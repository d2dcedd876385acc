"""Many concurrent processes of a deployment, like its tasks."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import tests.support.versions  # noqa: F401 (it quietens httpx, whose lines would fill files that are kept small)
from openmarkets_provider.testing.memory import reset_memory
from tests.support.databases import POSTGRES_DRIVERS

FORK = multiprocessing.get_context("fork")

# It has loaded Airflow once: faster than to start each process, and without the tests' threads. There is one server
# for all tests, which loads what the last call names.
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    [
        __name__,
        "airflow.providers.common.compat.sdk",
        "airflow.providers.postgres.hooks.postgres",
        "openmarkets_provider.client.client",
        "openmarkets_provider.hooks.openmarkets",
        "openmarkets_provider.landing.table_load",
        "openmarkets_provider.transfers.openmarkets_to_object_storage",
        "openmarkets_provider.transfers.openmarkets_to_sql",
        "pyarrow.parquet",
        "s3fs",
        f"sqlalchemy.dialects.postgresql.{POSTGRES_DRIVERS[0]}",
    ]
)


class NoMasker:
    def mask(self, value: str) -> None:
        pass

    async def amask(self, value: str) -> None:
        pass


def in_processes(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run work in a number of concurrent processes, each with empty memory. Return the outcomes."""
    start = FORK.Barrier(count)

    def run(connection: Any) -> None:
        reset_memory()
        try:
            start.wait(60)
            connection.send(work())
        except BaseException:
            connection.send(traceback.format_exc())
        finally:
            os._exit(0)

    pipes, processes = [], []
    for _ in range(count):
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=run, args=(theirs,))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results
