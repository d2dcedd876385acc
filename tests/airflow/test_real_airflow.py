"""A real scheduler, LocalExecutor, triggerer and API server run DAGs against the sandbox."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import httpx
import pyarrow.parquet as pq
import pytest
from airflow.sdk.serde import deserialize

from openmarkets_provider.client.auth.token import TokenEntry
from openmarkets_provider.client.cache.crypto import EntryCipher, entry_key
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.query.schema import Kind
from tests.support.airflow import DagRun, RealAirflow
from tests.support.queries import SCHEMAS
from tests.support.sandbox_process import SandboxProcess
from tests.support.statsd import StatsdServer

pytestmark = pytest.mark.airflow

EXAMPLES = Path(__file__).parent.parent.parent / "example_dags"
SYDNEY = ZoneInfo("Australia/Sydney")
WAITING = {"deferred": "deferred", "resumed": "deferred", "rescheduled": "up_for_reschedule"}
LONG = 62
"""Seconds: longer than a task waits by itself."""
NEVER = 1_000_000
"""Seconds: longer than any test."""
PRICES = ("open", "high", "low", "close")
SCHEDULED = ("rows", "example_portfolio_snapshot", "example_etl_daily_bars")
BY_HAND = {
    "quotes": ("example_quotes", {"logical_date": None}),
    "landed without a date": ("example_etl_daily_bars", {"logical_date": None, "conf": {"weeks": 2}}),
    "landed of a date": ("example_etl_daily_bars", {"logical_date": "2026-03-05T01:00:00Z"}),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess("--latency", "0.05") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def statsd() -> Iterator[StatsdServer]:
    with StatsdServer() as server:
        yield server


@pytest.fixture(scope="module")
def airflow(
    sandbox: SandboxProcess, lake: Path, statsd: StatsdServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealAirflow]:
    sandbox.set_security("RIO.ASX@TM", tradingStatus="PRE_OPEN")
    sandbox.fault(target="/oms/portfolios/details", kind="status", status=429, retry_after=LONG)
    sandbox.fault(target="/oms/trades/by-account", kind="delay", seconds=NEVER, times=None)
    dags = tmp_path_factory.mktemp("dags")
    examples = {dag_id for dag_id in (*SCHEDULED, *(dag_id for dag_id, _ in BY_HAND.values())) if "example" in dag_id}
    for source in (*(Path(__file__).parent / "dags").glob("*.py"), *(EXAMPLES / f"{name}.py" for name in examples)):
        (dags / source.name).write_text(source.read_text())

    def connection(**extra: Any) -> str:
        return json.dumps({**sandbox.connection, "extra": sandbox.connection["extra"] | extra})

    # By another name the server is another one, which asks nobody to wait.
    elsewhere = sandbox.connection["extra"]["oms_url"].replace("127.0.0.1", "localhost")
    env = {
        "AIRFLOW_CONN_OPENMARKETS_DEFAULT": connection(),
        "AIRFLOW_CONN_TOKENS_IN_MEMORY": connection(cache_backend="memory"),
        "AIRFLOW_CONN_PATIENT": connection(timeout=3600, oms_url=elsewhere),
        "AIRFLOW_CONN_BARS_DB": json.dumps({"conn_type": "sqlite", "host": f"{lake}/bars.db"}),
        "OPENMARKETS_LAKE": str(lake),
        **statsd.settings(),
    }
    with RealAirflow(dags, env=env, schedules=True) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def runs(airflow: RealAirflow, sandbox: SandboxProcess) -> dict[str, DagRun]:
    """Everything at the same time, since most of it is waiting; RIO opens when the sensors alone are left."""

    def quotes() -> int:
        return sandbox.stats()["by_path"].get("POST /market-data/pricing/quotes/v3", 0)

    def only_sensors_poll() -> bool:
        status, body = airflow.api("GET", "/api/v2/dags/every_kind/dagRuns/~/taskInstances", limit=100)
        instances = body["task_instances"] if status == 200 else []
        states = {(task["task_id"], task["map_index"]): task["state"] for task in instances}
        mapped = [state for (task_id, index), state in states.items() if task_id == "mapped" and index >= 0]
        waiting = {task_id: states.get((task_id, -1)) for task_id in ("deferred", "resumed", "rescheduled")}
        return mapped == ["success"] * 40 and waiting == WAITING

    with ThreadPoolExecutor() as pool:
        every_kind = pool.submit(scheduled, airflow, "every_kind", timeout=420)
        try:
            runs = {dag_id: scheduled(airflow, dag_id, timeout=300) for dag_id in SCHEDULED}
            airflow.wait_until("the sensors to be all that runs", lambda: every_kind.done() or only_sensors_poll(), 300)
            # Not earlier: at its busiest, Airflow on SQLite may refuse to write what the API is asked to.
            started = {
                name: (dag_id, airflow.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", asked)["dag_run_id"])
                for name, (dag_id, asked) in BY_HAND.items()
            }
            runs |= {name: airflow.wait_for_run(*run, timeout=300) for name, run in started.items()}
            enough = quotes() + 9
            airflow.wait_until("some polls of each", lambda: every_kind.done() or quotes() >= enough, 120)
        finally:
            sandbox.set_security("RIO.ASX@TM", tradingStatus="OPEN")
        return runs | {"every_kind": every_kind.result()}


def scheduled(airflow: RealAirflow, dag_id: str, timeout: float) -> DagRun:
    """Wait for the run that the scheduler started."""
    path = f"/api/v2/dags/{dag_id}/dagRuns"

    def started() -> list[str]:
        status, body = airflow.api("GET", path)
        made = body["dag_runs"] if status == httpx.codes.OK else []
        return [run["dag_run_id"] for run in made if run["run_type"] == "scheduled"]

    return airflow.wait_for_run(dag_id, airflow.wait_until(f"a run of {dag_id}", started, timeout)[0], timeout)


@pytest.fixture(scope="module")
def run(runs: dict[str, DagRun]) -> DagRun:
    return runs["every_kind"]


@pytest.fixture(scope="module")
def token_requests(runs: dict[str, DagRun], sandbox: SandboxProcess) -> dict[str, int]:
    """What all DAGs together asked of the identity server, before the tests ask it too."""
    return sandbox.stats()["token_requests"]


@pytest.fixture(scope="module")
def raw(token_requests: dict[str, int], sandbox: SandboxProcess) -> Iterator[RawApis]:
    with httpx.Client(trust_env=False) as client:
        yield RawApis(client, sandbox.connection)


class RawApis:
    """Asks the sandbox without any of the provider's code; numbers with a fraction are Decimal."""

    def __init__(self, client: httpx.Client, connection: dict[str, Any]) -> None:
        reply = client.post(
            f"{connection['host']}/connect/token",
            data={"grant_type": "client_credentials", "scope": "market-data-api oms-api"},
            auth=(connection["login"], connection["password"]),
        )
        client.headers["Authorization"] = f"Bearer {reply.raise_for_status().json()['access_token']}"
        self._client, self._urls = client, connection["extra"]

    def get(self, api: str, path: str, **params: Any) -> Any:
        return self._decoded(self._client.get(f"{self._urls[f'{api}_url']}/{path}", params=params))

    def post(self, api: str, path: str, body: Any) -> Any:
        return self._decoded(self._client.post(f"{self._urls[f'{api}_url']}/{path}", json=body))

    def multiplier(self, code: str) -> Decimal:
        (information,) = self.post("market_data", "securities/information/v2", {"securities": [f"{code}.ASX@TM"]})
        return Decimal(information["priceMultiplier"])

    def bars(self, codes: list[str], first: date, last: date) -> dict[tuple[str, date], dict[str, Any]]:
        """Return the prices that the daily bars must have, in dollars, by security and day."""
        multipliers = {code: self.multiplier(code) for code in codes}
        return {
            (code, date.fromisoformat(bar["timeSeriesDate"])): {
                name: bar[f"{name}Price"] * multiplier for name in PRICES
            }
            for code, multiplier in multipliers.items()
            for bar in self.get(
                "market_data",
                f"pricing/timeseries/{code}.ASX@TM/v2",
                frequency="Daily",
                dateFrom=first.isoformat(),
                dateTo=last.isoformat(),
            )
        }

    @staticmethod
    def _decoded(reply: httpx.Response) -> Any:
        return json.loads(reply.raise_for_status().content, parse_float=Decimal)


def value(run: DagRun, task_id: str, map_index: int = -1) -> Any:
    """Return what a task returned, as a downstream task receives it."""
    return deserialize(run.xcom(task_id, map_index=map_index))


def data_interval(airflow: RealAirflow, run: DagRun) -> list[datetime | None]:
    """Return the bounds of a run's data interval, in exchange time."""
    given = airflow.call("GET", f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}")
    bounds = (given["data_interval_start"], given["data_interval_end"])
    return [bound and datetime.fromisoformat(bound).astimezone(SYDNEY) for bound in bounds]


def in_files(lake: Path) -> list[tuple[tuple[str, date], tuple[Decimal, ...]]]:
    """Return security and day, and prices, of every bar in the Parquet files."""
    rows = pq.read_table(lake / "daily_bars").to_pylist()
    return [
        ((row["security_code"], row["time_series_date"]), tuple(row[f"{name}_price"] for name in PRICES))
        for row in rows
    ]


def in_table(lake: Path) -> list[tuple[tuple[str, date], tuple[Decimal, ...]]]:
    """Return the same of the database's table, whose prices are floating-point numbers."""
    columns = ", ".join(f"{name}_price" for name in PRICES)
    with closing(sqlite3.connect(lake / "bars.db")) as connection:
        rows = connection.execute(f"select security_code, time_series_date, {columns} from daily_bars").fetchall()
    return [
        ((code, date.fromisoformat(day)), tuple(Decimal(str(price)) for price in prices)) for code, day, *prices in rows
    ]


def check_landed(
    run: DagRun, first: date, end: date, raw: RawApis, lake: Path
) -> dict[tuple[str, date], dict[str, Decimal]]:
    """Check that a run landed the bars of the watch list from the first day to the one before the end; return them."""
    bars = raw.bars(["BHP", "CBA", "RIO"], first, end - timedelta(days=1))
    files, table = value(run, "to_files"), value(run, "to_table")
    assert files["range"] == table["range"] == {"start": f"{first}", "end": f"{end}"}
    assert files["rows"] == table["rows"] == len(bars)
    days = sorted({day for _, day in bars})
    paths = [lake / "daily_bars" / f"exchange_date={day}" / "part-0.parquet" for day in days]
    assert [Path(urlsplit(url).path) for url in files["files"]] == paths
    expected = {key: tuple(bar.values()) for key, bar in bars.items()}
    for landed in (dict(in_files(lake)), dict(in_table(lake))):
        assert {key: prices for key, prices in landed.items() if first <= key[1] < end} == expected
    return bars


def cached_tokens(airflow: RealAirflow, sandbox: SandboxProcess) -> list[str]:
    """Read the tokens that the tasks shared, as only the owner of the secret can."""
    connection = sandbox.connection
    settings = Settings(
        client_id=connection["login"],
        client_secret=connection["password"],
        identity_url=connection["host"],
        **connection["extra"],
    )
    store, cipher = FileStore(airflow.home / "openmarkets_token_cache"), EntryCipher(settings.client_secret)
    keys = [entry_key(settings, scope) for scope in settings.scopes]
    return [cipher.decrypt(key, store.load(key), TokenEntry).token.value for key in keys]


def test_all_task_processes_and_the_triggerer_share_one_token_request_a_scope(
    run: DagRun, token_requests: dict[str, int], raw: RawApis
):
    mapped = [task for task in run.tasks if task.task_id == "mapped"]
    assert [task.state for task in mapped] == ["success"] * 40
    # One more for the process that keeps its tokens in memory, all of whose threads share it.
    assert token_requests == {"market-data-api": 1, "oms-api": 2, "news-api": 1}
    assert run.xcom("mapped", map_index=0)[1]["security_code"] == "CBA"
    accounts = [account["accountCode"] for account in raw.get("oms", "accounts/v1")]
    assert [row["account_code"] for row in run.xcom("mapped", map_index=1)] == accounts


def test_the_metrics_of_all_processes_say_what_the_servers_saw(
    token_requests: dict[str, int], sandbox: SandboxProcess, statsd: StatsdServer
):
    counted = statsd.counters("airflow.openmarkets.")
    print(f"metrics of the run: {dict(sorted(counted.items()))}")
    assert counted["token.requests"] == sum(token_requests.values())
    assert counted["ratelimit.replies.oms"] == sandbox.stats()["by_status"]["429"]
    # Of 40 mapped tasks and more, each in a separate process.
    assert counted["token.hits.file"] > 40
    assert counted["polls.sent"] > 0


def test_a_deferred_sensor_is_ended_by_the_triggerer(run: DagRun):
    assert run.task("deferred").state == "success"
    assert run.task("deferred").try_number == 1
    log = run.log("deferred")
    assert "The condition is not met yet" in log
    assert "The condition is met." in log


@pytest.mark.parametrize("task_id", ["rescheduled", "resumed"])
def test_a_sensor_pushes_the_same_value_in_every_mode(run: DagRun, task_id: str):
    assert (run.task(task_id).state, run.task(task_id).try_number) == ("success", 1)
    assert run.xcom(task_id) is True


def test_a_task_that_is_rate_limited_for_long_is_deferred_and_uses_no_try(run: DagRun):
    task = run.task("rate_limited")
    assert (task.state, task.try_number) == ("success", 1)
    assert "SBX0001P" in [row["portfolio_code"] for row in run.xcom("rate_limited")]
    assert f"The server asks to wait {LONG} s" in run.log("rate_limited")
    assert "The task is deferred until" in run.log("rate_limited")


def test_a_permanent_error_uses_no_retries_and_says_why(run: DagRun):
    task = run.task("not_found")
    assert (task.state, task.try_number) == ("failed", 1)
    assert "GET oms nothing/v1: 404" in run.log("not_found")


def test_nothing_secret_is_in_logs_xcoms_rendered_templates_or_the_database(
    runs: dict[str, DagRun], airflow: RealAirflow, sandbox: SandboxProcess
):
    tokens = cached_tokens(airflow, sandbox)
    assert len(tokens) == 3
    logs = [run.log(task.task_id, task.map_index) for run in runs.values() for task in run.tasks]
    paths = [f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances?limit=100" for run in runs.values()]
    instances = json.dumps([airflow.api("GET", path)[1] for path in paths])
    assert "BHP" in instances
    database = b"".join(file.read_bytes() for file in airflow.home.glob("airflow.db*"))
    everything = "\n".join([*logs, *airflow.component_logs().values(), instances]).encode() + database
    for secret in (sandbox.connection["password"], *tokens):
        assert secret.encode() not in everything


def test_a_token_that_a_thread_asked_for_is_masked_in_the_task_log(
    runs: dict[str, DagRun], airflow: RealAirflow, sandbox: SandboxProcess
):
    run = runs["rows"]
    result = run.xcom("token_from_a_thread")
    assert set(result["accounts"]) == {"SBX0001", "SBX0002", "SBX0003"}
    # Not in the logs of the components, too: what a task prints, Airflow's scheduler repeats there unmasked.
    token, log = result["reversed"][::-1], run.log("token_from_a_thread")
    assert "The token is ***." in log
    for secret in (token, sandbox.connection["password"]):
        assert secret not in log
        assert all(secret.encode() not in file.read_bytes() for file in airflow.home.glob("airflow.db*"))


def test_a_task_that_times_out_while_its_threads_wait_ends_with_its_process(
    runs: dict[str, DagRun], airflow: RealAirflow, sandbox: SandboxProcess
):
    run = runs["rows"]
    assert run.task("too_long").state == "failed"
    assert "AirflowTaskTimeout" in run.log("too_long")
    asked = sandbox.stats()["by_path"]
    assert sum(count for path, count in asked.items() if "/oms/trades/by-account/" in path) == 3
    # The replies are still to come, and the threads would wait for them for an hour.
    process = Path(f"/proc/{run.xcom('too_long', 'pid')}")
    airflow.wait_until("the process to be gone", lambda: not process.exists(), 60)


@pytest.mark.parametrize("endpoint", ["quotes", "security_information", "time_series", "trades", "positions"])
def test_a_downstream_task_receives_every_value_of_a_row_with_its_type(runs: dict[str, DagRun], endpoint: str):
    rows = runs["rows"].xcom("received")[endpoint]
    fields = [field for field in SCHEMAS[endpoint].fields if field.kind is not Kind.JSON]
    assert rows
    for field in fields:
        received = {row[field.name][0] for row in rows}
        assert received <= {field.kind.type, "NoneType"}, field.name
    texts = [row[field.name] for row in rows for field in fields]
    assert {"str", "Decimal"} <= {kind for kind, _ in texts}
    assert all(text.endswith("+00:00") for kind, text in texts if kind == "datetime")


@pytest.mark.parametrize(
    ("endpoint", "names"),
    [
        ("time_series", {"open_price": "openPrice", "close_price": "closePrice", "market_vwap": "marketVwap"}),
        ("trades", {"trade_price": "tradePrice"}),
    ],
)
def test_a_downstream_task_receives_exactly_native_price_times_multiplier(
    runs: dict[str, DagRun], raw: RawApis, endpoint: str, names: dict[str, str]
):
    multipliers = {code: raw.multiplier(code) for code in ("BHP", "Z0002")}
    assert len(set(multipliers.values())) == 2
    days = [date(2026, 3, 2), date(2026, 3, 3)]
    expected = []
    for code, multiplier in multipliers.items():
        for day in days:
            if endpoint == "trades":
                body = {"dateTimeFrom": f"{day}T00:00:00", "dateTimeTo": f"{day}T23:59:59"}
                records = raw.post("market_data", f"pricing/trades/{code}.ASX@TM/v2", body)
            else:
                params = {"frequency": "Daily", "dateFrom": f"{day}", "dateTo": f"{day}"}
                records = raw.get("market_data", f"pricing/timeseries/{code}.ASX@TM/v2", **params)
            expected += [[record[name] * multiplier for name in names.values()] for record in records]
    rows = runs["rows"].xcom("received")[endpoint]
    assert [[Decimal(row[name][1]) for name in names] for row in rows] == expected
    assert len(expected) >= 4


class TestExamples:
    def test_quotes_shows_moves_in_dollars_ranked(self, runs: dict[str, DagRun]):
        run = runs["quotes"]
        assert run.state == "success"
        quotes = {quote["security_code"]: quote for index in range(3) for quote in value(run, "quotes", index)}
        movers = value(run, "movers")
        assert len(quotes) == 10
        assert {row["security"] for row in movers} == set(quotes)
        for row in movers:
            quote = quotes[row["security"]]
            assert row["last"] == quote["last_price"]
            exact = 100 * (quote["last_price"] - quote["previous_close_price"]) / quote["previous_close_price"]
            assert abs(row["move_percent"] - exact) <= Decimal("0.005")
        assert [row["move_percent"] for row in movers] == sorted((row["move_percent"] for row in movers), reverse=True)
        assert run.xcom("announcements")[0]["securityCode"] == "BHP"

    def test_a_scheduled_load_of_daily_bars_lands_the_days_of_its_interval(
        self, runs: dict[str, DagRun], airflow: RealAirflow, raw: RawApis, lake: Path
    ):
        run = runs["example_etl_daily_bars"]
        assert run.state == "success"
        first, end = (bound.date() for bound in data_interval(airflow, run))
        check_landed(run, first, end, raw, lake)

    def test_a_load_of_daily_bars_by_hand_lands_the_days_before_its_logical_date(
        self, runs: dict[str, DagRun], raw: RawApis, lake: Path
    ):
        run = runs["landed of a date"]
        assert run.state == "success"
        check_landed(run, date(2026, 3, 4), date(2026, 3, 5), raw, lake)

    def test_a_load_of_daily_bars_without_a_logical_date_lands_weeks_and_sums_them_up(
        self, runs: dict[str, DagRun], airflow: RealAirflow, raw: RawApis, lake: Path
    ):
        run = runs["landed without a date"]
        assert run.state == "success"
        given = airflow.call("GET", f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}")
        today = datetime.fromisoformat(given["run_after"]).astimezone(SYDNEY).date()
        bars = check_landed(run, today - timedelta(weeks=2), today, raw, lake)
        for line in value(run, "summary"):
            days = [bar for (code, _), bar in bars.items() if code == line["security"]]
            assert (line["days"], line["close"]) == (len(days), days[-1]["close"])
            assert (line["low"], line["high"]) == (min(day["low"] for day in days), max(day["high"] for day in days))
            exact = 100 * (days[-1]["close"] - days[0]["open"]) / days[0]["open"]
            assert abs(line["change_percent"] - exact) <= Decimal("0.005")
        assert len(value(run, "summary")) == 3

    def test_loads_of_daily_bars_that_overlap_leave_every_bar_once(self, runs: dict[str, DagRun], lake: Path):
        files, table = (sorted(key for key, _ in landed) for landed in (in_files(lake), in_table(lake)))
        assert files == table == sorted(set(files))

    def test_the_assets_of_daily_bars_start_the_dag_that_waits_for_both(
        self, runs: dict[str, DagRun], airflow: RealAirflow
    ):
        def started() -> list[str]:
            path = "/api/v2/dags/example_etl_daily_bars_landed/dagRuns"
            return [run["dag_run_id"] for run in airflow.call("GET", path)["dag_runs"]]

        run_id = airflow.wait_until("the run that the assets start", started, 60)[0]
        run = airflow.wait_for_run("example_etl_daily_bars_landed", run_id)
        report = value(run, "what_is_new")
        loads = [run for run in runs.values() if run.dag_id == "example_etl_daily_bars"]
        for asset, task_id in {"files": "to_files", "table": "to_table"}.items():
            extra = report[f"openmarkets_daily_bars_{asset}"]
            landed = [value(load, task_id) for load in loads]
            assert extra in [{name: each[name] for name in extra} for each in landed]
            assert {"destination", "rows", "range"} <= set(extra)

    def test_portfolio_snapshot_adds_up_what_the_accounts_own(self, runs: dict[str, DagRun], raw: RawApis):
        run = runs["example_portfolio_snapshot"]
        assert run.state == "success"
        snapshot, positions = value(run, "snapshot"), value(run, "positions")
        accounts = [account["accountCode"] for account in raw.get("oms", "accounts/v1")]
        assert [line["account"] for line in snapshot] == accounts
        links = raw.get("oms", "accounts/portfoliolinks/v1")
        linked = {"portfolioCodes": sorted({link["portfolioCode"] for link in links if not link["linkRemoved"]})}
        for line in snapshot:
            owned = [row["market_value"] for row in positions if row["account_code"] == line["account"]]
            cash = [
                record["netCash"]
                for record in raw.post("oms", "portfolios/cash/by-portfolio/v2", linked)
                if record["accountCode"] == line["account"]
            ]
            assert line["cash"] == sum(cash)
            assert line["holdings"] == sum(owned)
            assert line["total"] == line["cash"] + line["holdings"]
            assert type(line["total"]) is Decimal
        assert sum(line["total"] for line in snapshot) > 0

    def test_the_positions_of_a_snapshot_are_all_that_are_linked_in_dollars(
        self, runs: dict[str, DagRun], raw: RawApis
    ):
        links = raw.get("oms", "accounts/portfoliolinks/v1")
        linked = {"portfolioCodes": sorted({link["portfolioCode"] for link in links if not link["linkRemoved"]})}
        assert len(linked["portfolioCodes"]) < len({link["portfolioCode"] for link in links})
        records = raw.post("oms", "portfolios/positions/v2", linked)
        multipliers = {code: raw.multiplier(code) for code in {record["securityCode"] for record in records}}
        expected = {
            (record["portfolioCode"], record["securityCode"]): record["averagePrice"]
            * multipliers[record["securityCode"]]
            for record in records
        }
        rows = value(runs["example_portfolio_snapshot"], "positions")
        assert {(row["portfolio_code"], row["security_code"]): row["average_price"] for row in rows} == expected
        assert len(rows) == len(records)

    def test_the_orders_of_a_snapshot_are_counted_by_account_and_state(self, runs: dict[str, DagRun]):
        run = runs["example_portfolio_snapshot"]
        counted = Counter((order["account_code"], order["state"]) for order in value(run, "orders"))
        shown = {
            (line["account"], state): count
            for line in value(run, "snapshot")
            for state, count in line["orders"].items()
            if count
        }
        assert shown == counted
        assert {state for _, state in shown} == {"working", "pending", "finished", "failed"}
