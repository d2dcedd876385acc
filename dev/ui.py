"""A real Airflow to look at, with the example DAGs, the sandbox, and a connection to it. See ``make ui``.

Everything listens on loopback, uses temporary folders, and is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openmarkets_provider.get_provider_info import CONNECTION_FIELDS
from tests.support.airflow import AirflowError, RealAirflow, free_port
from tests.support.sandbox_process import SandboxProcess

EXAMPLES = Path(__file__).parent.parent / "example_dags"
AIRFLOW_PORT, SANDBOX_PORT = 8080, 8765
"""The ports to use if they are free."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dev.ui", description=__doc__)
    parser.add_argument("--dags", type=Path, metavar="FOLDER", help="DAGs to show beside the examples")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        with running(options.dags, say) as (airflow, sandbox):
            say(greeting(airflow, sandbox))
            with suppress(KeyboardInterrupt):
                airflow.wait_until("somebody ended it", lambda: None, math.inf)
    except KeyboardInterrupt:
        pass  # before all of it was there
    except (AirflowError, RuntimeError) as error:
        print(f"It failed: {error}", file=sys.stderr)
        return 1
    say("Everything is stopped and removed.")
    return 0


def end(*_: object) -> None:
    """Raise KeyboardInterrupt, so that everything is cleaned up. Ignore further signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def say(line: str) -> None:
    """Print without buffering."""
    print(line, flush=True)


@contextmanager
def running(dags: Path | None, progress: Callable[[str], None]) -> Iterator[tuple[RealAirflow, SandboxProcess]]:
    """Start the sandbox and Airflow with its connections."""
    progress("Starting the Openmarkets sandbox (a local stand-in, not the real service) and Airflow, half a minute.")
    folders = {"examples": EXAMPLES} | ({"yours": dags.resolve()} if dags else {})
    with (
        tempfile.TemporaryDirectory(prefix="openmarkets-landed-") as landed,
        SandboxProcess("--port", str(free_port(SANDBOX_PORT))) as sandbox,
    ):
        env = {
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle(*each) for each in folders.items()]),
            # Run DAGs by their schedules when they are unpaused.
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
            # Parse DAGs again soon after they are unpaused: only then do their watchers start.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "AIRFLOW__API__DEFAULT_WRAP": "True",
            "OPENMARKETS_LAKE": landed,
        }
        with RealAirflow(EXAMPLES, env=env, progress=progress, port=free_port(AIRFLOW_PORT)) as airflow:
            for connection in (
                sandbox_connection("openmarkets_default", sandbox.connection),
                {"connection_id": "bars_db", "conn_type": "sqlite", "host": f"{landed}/bars.db"},
            ):
                airflow.call("POST", "/api/v2/connections", connection)
            yield airflow, sandbox


def bundle(name: str, folder: Path) -> dict[str, Any]:
    """Return the configuration of a DAG bundle for a folder."""
    kind = "airflow.dag_processing.bundles.local.LocalDagBundle"
    return {"name": name, "classpath": kind, "kwargs": {"path": str(folder), "refresh_interval": 5}}


def sandbox_connection(conn_id: str, connection: dict[str, Any]) -> dict[str, Any]:
    """Return the sandbox's connection for the REST API, with the port that the Test button needs."""
    return {
        "connection_id": conn_id,
        **{name: connection[name] for name in ("conn_type", "login", "password", "host")},
        "port": urlsplit(connection["host"]).port,
        # All fields, as the form saves them: it shows only fields that exist. Environment and orders are empty, because
        # all URLs are set, and Airflow logs a warning in each task for a value as short as "test".
        "extra": json.dumps(
            dict.fromkeys(CONNECTION_FIELDS) | connection["extra"] | {"environment": None, "orders": None}
        ),
        "description": "The Openmarkets sandbox on this machine",
    }


def greeting(airflow: RealAirflow, sandbox: SandboxProcess) -> str:
    """Return a text that lists the URLs."""
    return (
        f"\nAirflow:     {airflow.base_url}  (no login: whoever opens it on this machine is admin)\n"
        f"Connection:  {airflow.base_url}/connections has openmarkets_default, with a Test button\n"
        f"Sandbox:     {sandbox.url}  (counts: {sandbox.url}/_sandbox/stats)\n"
        f"Folder:      {airflow.home}  (logs and database, until the end)\n"
        "\nCtrl-C ends and removes all of it."
    )


if __name__ == "__main__":
    raise SystemExit(main())
