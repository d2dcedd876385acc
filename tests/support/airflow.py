"""A real, throw-away Airflow on loopback: four processes, a fresh SQLite database, one temporary folder.

With Celery workers, which take tasks from the scheduler, it needs a broker and a database that serves many.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote

import httpx

T = TypeVar("T")

BIN = Path(sys.executable).parent
START_TIMEOUT = 240
# Nothing of a component is worth saving, and a clean end of the triggerer alone may take over ten seconds.
STOP_GRACE = 2
KILL_TIMEOUT = 10
LOG_TAIL = 3000
PAGE = 100
TASK_FIELDS = ("task_id", "map_index", "state", "try_number", "duration", "start_date", "end_date")
ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}
RENDERED_APART = {"timestamp", "level", "logger", "event", "error_detail", "filename", "lineno", "loc"}
SAME_IN_EVERY_LINE = {"dag_id", "run_id", "task_id", "map_index", "try_number", "ti_id"}

SETTINGS = {
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__TEST_CONNECTION": "Enabled",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "API__WORKERS": "1",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    # At the default of 5 s a deferred task can come back before its first process is gone, and the scheduler
    # then marks it failed.
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    # The default of 5 s is too short for a busy machine.
    "WORKERS__EXECUTION_API_TIMEOUT": "60",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
}


LOG_END = 5000
"""Characters of a log that an error shows."""


class AirflowError(RuntimeError):
    """Airflow, or a DAG in it, did not do what was waited for."""


@dataclass(frozen=True)
class TaskResult:
    """How one task instance ended."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    duration: float | None
    start: str | None
    end: str | None

    def __str__(self) -> str:
        """Name the task and its state in one line."""
        index = "" if self.map_index < 0 else f"[{self.map_index}]"
        return f"task {self.task_id}{index} {self.state}"


@dataclass(frozen=True)
class DagRun:
    """A finished run of a DAG."""

    airflow: AirflowApi
    dag_id: str
    run_id: str
    state: str
    tasks: list[TaskResult]

    def task(self, task_id: str, map_index: int = -1) -> TaskResult:
        """Return the result of one task instance."""
        for task in self.tasks:
            if (task.task_id, task.map_index) == (task_id, map_index):
                return task
        raise KeyError(f"{task_id} {map_index} is not among {', '.join(map(str, self.tasks))}")

    def log(self, task_id: str, map_index: int = -1, try_number: int | None = None) -> str:
        """Return the log of one try (the last, if none is named), as a person reads it."""
        number = try_number or self.task(task_id, map_index).try_number
        entries = self._get(task_id, f"logs/{number}", map_index, full_content=True)["content"]
        return entries if isinstance(entries, str) else "\n".join(_log_line(entry) for entry in entries)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return an XCom of the run. If it is missing, the error has the failed tasks and their logs."""
        try:
            return self._get(task_id, f"xcomEntries/{quote(key, safe='')}", map_index)["value"]
        except AirflowError as error:
            for task in self.tasks:
                error.add_note(str(task))
                if task.state == "failed":
                    with suppress(AirflowError):
                        error.add_note(self.log(task.task_id, task.map_index)[-LOG_END:])
            raise

    def _get(self, task_id: str, what: str, map_index: int, **query: Any) -> Any:
        path = f"{self.airflow.run_path(self.dag_id, self.run_id)}/taskInstances/{quote(task_id, safe='')}/{what}"
        return self.airflow.call("GET", path, map_index=map_index, **query)


@dataclass(frozen=True)
class CeleryWorkers:
    """Hosts that run tasks, instead of the scheduler's host; each has its own Airflow home.

    :ivar names: one for each.
    :ivar concurrency: tasks that one runs at the same time.
    :ivar broker_url: where Celery finds Redis.
    :ivar database_url: where SQLAlchemy finds a database for Airflow and for Celery's results.
    """

    names: Sequence[str]
    concurrency: int
    broker_url: str
    database_url: str

    def settings(self) -> dict[str, str]:
        return {
            "CORE__EXECUTOR": "CeleryExecutor",
            "CELERY__BROKER_URL": self.broker_url,
            "CELERY__RESULT_BACKEND": f"db+{self.database_url}",
            "CELERY__WORKER_CONCURRENCY": str(self.concurrency),
            "DATABASE__SQL_ALCHEMY_CONN": self.database_url,
        }


class AirflowApi:
    """The REST API of an Airflow that runs, and what can be waited for with it."""

    api_path = "/api/v2"
    of_no_date: ClassVar[dict[str, Any]] = {"logical_date": None}
    order_of_tasks: ClassVar[dict[str, Any]] = {"order_by": "id"}

    base_url = ""
    _client: httpx.Client

    def __init__(self, progress: Callable[[str], None] | None = None) -> None:
        """Take a function that is called at each stage."""
        self._progress = progress or (lambda stage: None)

    def check_alive(self, what: str) -> None:
        """Fail, with the name of what is waited for, if the Airflow has died."""

    def connect(self, base_url: str) -> None:
        """Take the address; nothing is sent yet."""
        self.base_url = base_url
        self._client = httpx.Client(base_url=base_url, timeout=60, trust_env=False)

    def log_in(self) -> None:
        """Log in as the admin, as all clients on loopback are."""
        self._client.headers["Authorization"] = f"Bearer {self.call('GET', '/auth/token')['access_token']}"

    def wait_until(self, what: str, predicate: Callable[[], T | None], timeout: float) -> T:
        """Return the first true result of the predicate; fail at the deadline or if Airflow has died."""
        deadline = time.monotonic() + timeout
        while True:
            self.check_alive(what)
            # A refused connection is for the next look at the processes to explain.
            with suppress(httpx.TransportError):
                if result := predicate():
                    return result
            if time.monotonic() > deadline:
                raise AirflowError(f"waited {timeout} s in vain for {what}")
            time.sleep(0.3)

    def api(self, method: str, path: str, json: object = None, **query: Any) -> tuple[int, Any]:
        """Send one request to the REST API; return its status and its decoded body."""
        headers = {"Accept": "application/json"}
        reply = self._client.request(method, path, json=json, params=query or None, headers=headers)
        try:
            return reply.status_code, reply.json()
        except ValueError:
            return reply.status_code, reply.text

    def call(self, method: str, path: str, json: object = None, **query: Any) -> Any:
        """Send a request that must succeed. Return its decoded body."""
        status, body = self.api(method, path, json, **query)
        if status >= httpx.codes.BAD_REQUEST:
            raise AirflowError(f"{method} {path} answered {status}: {body}")
        return body

    def run_dag(self, dag_id: str, conf: Mapping[str, Any] | None = None, timeout: float = 300) -> DagRun:
        """Wait until the DAG is parsed, trigger it, and wait for the end of the run."""
        return self.wait_for_run(dag_id, self.start_dag(dag_id, conf, timeout), timeout)

    def start_dag(self, dag_id: str, conf: Mapping[str, Any] | None = None, timeout: float = 300) -> str:
        """Wait until the DAG is parsed and trigger it; return the run's id."""
        path = f"{self.api_path}/dags/{quote(dag_id, safe='')}"

        def parsed() -> bool:
            if errors := self.call("GET", f"{self.api_path}/importErrors")["import_errors"]:
                raise AirflowError("\n".join(f"{each['filename']}: {each['stack_trace']}" for each in errors))
            return self.api("GET", path)[0] == httpx.codes.OK

        self.wait_until(f"the DAG {dag_id}", parsed, timeout)
        self.call("PATCH", path, {"is_paused": False})
        run = self.call("POST", f"{path}/dagRuns", {**self.of_no_date, "conf": dict(conf or {})})
        self._progress(f"{dag_id} triggered")
        return str(run["dag_run_id"])

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 300) -> DagRun:
        """Wait for the end of a run, however it was started."""
        path = self.run_path(dag_id, run_id)
        tasks: list[TaskResult] = []
        report: set[str] = set()

        def ended() -> str | None:
            # The run is read before its tasks, so that those of an ended run are final.
            state = str(self.call("GET", path)["state"])
            tasks[:] = self._tasks(path)
            stages = [str(task) for task in tasks if task.state in ENDED]
            for stage in stages:
                if stage not in report:
                    self._progress(stage)
            report.update(stages)
            return state if state in ENDED else None

        try:
            state = self.wait_until(f"the end of {dag_id}", ended, timeout)
        except AirflowError as error:
            error.add_note("\n".join(map(str, tasks)))
            raise
        self._progress(f"{dag_id} {state}")
        return DagRun(self, dag_id, run_id, state, tasks)

    def runs_of(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG with partitions, by key, and those of one key in their order."""
        runs = self.call("GET", f"{self.api_path}/dags/{quote(dag_id, safe='')}/dagRuns", limit=PAGE)["dag_runs"]
        return sorted(runs, key=lambda run: (run["partition_key"], run["queued_at"]))

    def start_backfill(self, dag_id: str, first: str, last: str, reprocess: str = "none", active: int = 1) -> int:
        """Start a backfill of a DAG that is parsed and not paused, and return its number.

        :param first: the first day; ``last`` is the last one.
        :param reprocess: ``none``, ``failed`` or ``completed``.
        :param active: most concurrent runs.
        """
        request = {
            "dag_id": dag_id,
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T00:00:00Z",
            "reprocess_behavior": reprocess,
            "max_active_runs": active,
        }

        def accepted() -> int | None:
            # With SQLite, Airflow answers so while something else writes.
            status, answer = self.api("POST", f"{self.api_path}/backfills", request)
            if status >= httpx.codes.BAD_REQUEST and "concurrent access" not in str(answer):
                raise AirflowError(f"The backfill of {dag_id} answered {status}: {answer}")
            return int(answer["id"]) if status < httpx.codes.BAD_REQUEST else None

        return self.wait_until(f"the backfill of {dag_id}", accepted, 60)

    def wait_for_backfill(self, number: int, timeout: float = 300) -> None:
        """Wait for the end of a backfill."""
        path = f"{self.api_path}/backfills/{number}"
        self.wait_until("the end of the backfill", lambda: self.call("GET", path)["completed_at"], timeout)

    def run_path(self, dag_id: str, run_id: str) -> str:
        """Return where the REST API has a run."""
        return f"{self.api_path}/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"

    def _tasks(self, run_path: str) -> Iterator[TaskResult]:
        offset, total = 0, 1
        while offset < total:
            page = self.call("GET", f"{run_path}/taskInstances", limit=PAGE, offset=offset, **self.order_of_tasks)
            for item in page["task_instances"]:
                yield TaskResult(*(item[name] for name in TASK_FIELDS))
            offset, total = offset + PAGE, page["total_entries"]


class RealAirflow(AirflowApi):
    """Start Airflow on entering; end it and remove every trace of it on leaving.

    DAGs are created paused, and ``run_dag`` unpauses the one that it runs. With ``schedules`` they are
    created unpaused, and schedules and asset events start runs too.
    """

    health_path = "/api/v2/monitor/health"
    components = frozenset({"scheduler", "dag_processor", "triggerer"})

    def __init__(
        self,
        dags_folder: Path,
        env: Mapping[str, str] | None = None,
        parallelism: int = 4,
        schedules: bool = False,
        progress: Callable[[str], None] | None = None,
        celery: CeleryWorkers | None = None,
        port: int = 0,
    ) -> None:
        """Take the settings. ``env`` overrides others, ``progress`` is called at each stage, port 0 is a free one."""
        super().__init__(progress)
        self._celery = celery
        self._port = port
        self._settings = {
            "CORE__DAGS_FOLDER": str(dags_folder.resolve()),
            "CORE__PARALLELISM": str(parallelism),
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": str(not schedules),
            "SCHEDULER__USE_JOB_SCHEDULE": str(schedules),
        }
        self._extra_env = dict(env or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._orphans: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Start everything and wait until it is healthy."""
        self.connect(f"http://127.0.0.1:{self._port or free_port()}")
        self.home = Path(tempfile.mkdtemp(prefix="airflow-"))
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End every process and remove the folder; after a failure, show the ends of the logs first."""
        try:
            if kind is not None:
                for name in self._processes:
                    print(f"--- end of the log of {name}\n{self._tail(name)}", file=sys.stderr)
        finally:
            self._stop()

    def _environment(self) -> dict[str, str]:
        settings = SETTINGS | self._settings
        settings |= {
            "CORE__EXECUTION_API_SERVER_URL": f"{self.base_url}/execution/",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db",
            "API__BASE_URL": self.base_url,
            "API__SECRET_KEY": secrets.token_hex(32),
            "API_AUTH__JWT_SECRET": secrets.token_hex(64),
            # Of all hosts: the log servers of the others don't run.
            "LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
        }
        if self._celery is not None:
            settings |= self._celery.settings()
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        env |= {f"AIRFLOW__{name}": value for name, value in settings.items()}
        env |= {
            "AIRFLOW_HOME": str(self.home),
            "NO_PROXY": "127.0.0.1",
            "PATH": f"{BIN}{os.pathsep}{env.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            # What killed processes leave in the temporary folder goes with the rest.
            "TMPDIR": str(self.home / "tmp"),
        }
        return env | self._extra_env

    def _start(self) -> None:
        self._env = self._environment()
        (self.home / "tmp").mkdir()
        # An existing configuration file, though empty, keeps the components from writing one side by side.
        (self.home / "airflow.cfg").touch()
        self._start_components()
        self._progress("server up")
        self.wait_until("the other components", lambda: self._health() >= self.components, START_TIMEOUT)
        self._progress("scheduler, dag processor and triggerer up")
        if self._celery is not None:
            self._start_workers(self._celery)

    def _start_components(self) -> None:
        # This is what "airflow api-server" serves; that command would have to wait for the database.
        address = ["--host", "127.0.0.1", "--port", self.base_url.rpartition(":")[2]]
        self._spawn("api-server", "uvicorn", "airflow.api_fastapi.main:app", *address)
        self._migrate()
        self._spawn("dag-processor", "airflow", "dag-processor")
        self.start_scheduler()
        self.start_triggerer()
        self.wait_until("the API server", self._health, START_TIMEOUT)
        # The first call builds the execution API; the first task must not have to wait for it.
        self._client.get("/execution/health")
        self.log_in()

    def _start_workers(self, celery: CeleryWorkers) -> None:
        def ready() -> bool:
            return all(f"{name} ready" in self._log(name).read_text(errors="replace") for name in celery.names)

        for name in celery.names:
            self.worker_home(name).mkdir()
            (self.worker_home(name) / "airflow.cfg").touch()
            env = {"AIRFLOW_HOME": str(self.worker_home(name))}
            options = ["--skip-serve-logs", "--celery-hostname", name, "--without-gossip", "--without-mingle"]
            self._spawn(name, "airflow", "celery", "worker", *options, env=env)
        self.wait_until("the workers", ready, START_TIMEOUT)
        self._progress("workers up")

    def worker_home(self, name: str) -> Path:
        """Return the Airflow home of a Celery worker."""
        return self.home / f"home-{name}"

    def _migrate(self) -> None:
        airflow = str(BIN / "airflow")
        with self._log("db-migrate").open("wb") as log:
            code = subprocess.call([airflow, "db", "migrate"], env=self._env, stdout=log, stderr=log)
        if code:
            raise AirflowError(f"db migrate failed:\n{self._tail('db-migrate')}")
        self._progress("database migrated")

    def _spawn(self, name: str, program: str, *args: str, env: Mapping[str, str] | None = None) -> None:
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [BIN / program, *args],
                env=self._env | dict(env or {}),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill a component, as a machine that fails does."""
        process = self._processes.pop(name)
        _kill_session(process.pid)
        process.wait()

    def start_scheduler(self) -> None:
        """Start a scheduler, with an empty log; its log server would listen on every address."""
        self._spawn("scheduler", "airflow", "scheduler", "--skip-serve-logs")

    def kill_scheduler_alone(self) -> None:
        """Kill the scheduler's own process, and start another one. Its executor's workers go on with their tasks."""
        process = self._processes.pop("scheduler")
        process.kill()
        process.wait()
        self._orphans.append(process)
        self.start_scheduler()

    def start_triggerer(self, queue: str | None = None) -> None:
        """Start a triggerer, with an empty log.

        :param queue: starts another one, for this queue only; None replaces the one that was killed.
        """
        name, only = ("triggerer", []) if queue is None else (f"triggerer-{queue}", ["--queues", queue])
        self._spawn(name, "airflow", "triggerer", "--skip-serve-logs", *only)

    def _stop(self) -> None:
        self._client.close()
        deadline = time.monotonic() + STOP_GRACE
        try:
            for process in self._processes.values():
                process.terminate()
            for process in self._processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0, deadline - time.monotonic()))
        finally:
            for process in (*self._processes.values(), *self._orphans):
                _kill_session(process.pid)
                process.wait()
            shutil.rmtree(self.home, ignore_errors=True)

    def check_alive(self, what: str) -> None:
        """Fail if a component has died."""
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise AirflowError(f"{name} ended with {code} before {what}:\n{self._tail(name)}")

    def _health(self) -> set[str]:
        reply = self._client.get(self.health_path)
        parts = reply.json() if reply.is_success else {}
        return {name for name, part in parts.items() if part["status"] == "healthy"}

    @property
    def pids(self) -> dict[str, int]:
        """The components' processes; each leads its own session."""
        return {name: process.pid for name, process in self._processes.items()}

    def component_logs(self) -> dict[str, str]:
        """Return what each component has printed so far."""
        return {name: self._log(name).read_text(errors="replace") for name in self._processes}

    def _log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def _tail(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")[-LOG_TAIL:]


def free_port(*preferred: int) -> int:
    """Return the first of the ports that is free, or else any that is."""
    for port in (*preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            # As a server does: connections that have just ended keep no port from it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port of loopback is free")


def _kill_session(leader: int) -> None:
    """Kill the rest of a component: its tasks have their own process groups, but share its session."""
    with suppress(OSError):
        os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT
    while (members := session_members(leader)) and time.monotonic() < deadline:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def session_members(leader: int) -> list[int]:
    """Return the processes of a session that live."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                members.append(int(stat.parent.name))
    return members


def _log_line(entry: dict[str, Any] | str) -> str:
    """Render a structured log entry: level, logger, event, other values, exceptions (the outermost last)."""
    if isinstance(entry, str):
        return entry
    hidden = RENDERED_APART | SAME_IN_EVERY_LINE
    words = [entry.get("level", "").upper(), entry.get("logger"), entry["event"]]
    words += [f"{key}={value}" for key, value in entry.items() if key not in hidden]
    lines = [" ".join(word for word in words if word)]
    for error in reversed(entry.get("error_detail") or []):
        for frame in error["frames"]:
            lines.append('  File "{filename}", line {lineno}, in {name}'.format_map(frame))
        lines += [f"{error['exc_type']}: {error['exc_value']}", *error.get("exc_notes", [])]
    return "\n".join(lines)
