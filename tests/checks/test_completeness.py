"""The check for completeness, over what the real transfers have landed in each kind of store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from deltalake import DeltaTable

from openmarkets_provider import queries
from openmarkets_provider.checks.completeness import MAX_LISTED, MAX_LOGGED, OpenmarketsCompletenessCheck
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.sandbox.server import SandboxServer
from openmarkets_provider.sessions.calendar import ASX
from tests.support.context import context
from tests.support.databases import PostgresDatabase, SqliteDatabase
from tests.support.pages import ROOT
from tests.support.stores import Delta, Files, FilesInS3, Iceberg, Sql, Store

CODES = ["BHP", "CBA", "RIO"]
APRIL = {"start": "2026-04-01", "end": "2026-05-01"}
SESSIONS = [str(day) for day in ASX.sessions_in_range("2026-04-01", "2026-04-30")]
BARS = queries.time_series(CODES, **APRIL)
GAPS = [("2026-04-02", "BHP"), ("2026-04-07", "CBA"), ("2026-04-10", "RIO")]
"""Between the first two there are Good Friday, a weekend and Easter Monday."""
PAGE = ROOT / "docs" / "howto" / "completeness.md"
LISTING = ("GET", "/market-data/securities/v1")


class Ti:
    """What a check does with its task instance."""

    map_index = -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


class Outcome:
    """What a check has found.

    :ivar queries: its result; None when it failed.
    :ivar missing: pairs of session and code.
    """

    def __init__(self, ti: Ti, result: Any) -> None:
        self.queries = result
        self.missing = [(each["session"], each["security"]) for each in ti.pushed["missing"]]


def check(store: Store, query: queries.Query = BARS, **kwargs: Any) -> Outcome:
    ti = Ti()
    arguments = {"on_missing": "warn", **store.check, **kwargs}
    task = OpenmarketsCompletenessCheck(task_id="check", query=query, **arguments)
    return Outcome(ti, task.execute(context() | {"ti": ti}))


def full(gaps: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(session, f"{code}.ASX@TM") for session, code in gaps]


# Its catalog in a folder needs SQLAlchemy 2.
ICEBERG = pytest.mark.since("3.2")
KINDS = ["files by day", "files by month", "files in S3", "delta", "sqlite", "postgres"]


@pytest.fixture(params=[*KINDS, pytest.param("iceberg", marks=ICEBERG)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    match request.param:
        case "files by day" | "files by month":
            return Files(tmp_path / "bars", request.param.split()[-1])
        case "files in S3":
            return FilesInS3(request.getfixturevalue("s3"))
        case "delta":
            return Delta(tmp_path / "bars")
        case "iceberg":
            return Iceberg(tmp_path / "lake")
        case "sqlite":
            database: Any = SqliteDatabase(tmp_path / "test.db")
        case _:
            database = PostgresDatabase(request.getfixturevalue("postgres"))
    monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
    return Sql(database)


@pytest.fixture(params=["files", "sqlite", "postgres"])
def timed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store for rows with times."""
    if request.param == "files":
        return Files(tmp_path / "times", "day")
    made: Any = (
        SqliteDatabase(tmp_path / "test.db")
        if request.param == "sqlite"
        else PostgresDatabase(request.getfixturevalue("postgres"))
    )
    monkeypatch.setenv("AIRFLOW_CONN_DB", made.airflow_connection)
    store = Sql(made)
    store.load = store.check = {"table": "times", "conn_id": "db"}
    return store


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "bars", "day")


def listing(sandbox: SandboxServer, *securities: tuple[str, str | None, str | None]) -> None:
    """Make the exchange list only these codes, each from and up to a day."""
    fields = ("securityCode", "firstListedDate", "lastListedDate")
    records = [dict(zip(fields, each, strict=True)) | {"exchange": "ASX"} for each in securities]
    sandbox.reply(*LISTING, records)


def calls(sandbox: SandboxServer) -> list[str]:
    """Return the calls to the market data API since the last reset, without ``/market-data``."""
    paths = sandbox.stats()["by_path"].items()
    return sorted(
        path.replace("/market-data", "") for path, count in paths for _ in range(count) if "connect" not in path
    )


class TestThreeRowsDeletedByHand:
    def test_they_are_listed_loaded_and_there_again(self, store, openmarkets_sandbox):
        store.land(BARS)
        everything = store.keys()
        assert everything == [(session, code) for session in SESSIONS for code in CODES]
        assert len(everything) == 60
        assert check(store).queries == []
        for session, code in GAPS:
            store.delete(session, code)
        assert len(store.keys()) == 57
        found = check(store)
        assert found.missing == full(GAPS)
        for query in found.queries:
            store.add(query)
        assert store.keys() == everything
        assert check(store, on_missing="fail").missing == []

    def test_the_log_has_the_table_that_the_page_shows(self, tmp_path, monkeypatch, openmarkets_sandbox, capsys):
        monkeypatch.setenv("AIRFLOW_CONN_DB", SqliteDatabase(tmp_path / "test.db").airflow_connection)
        store = Sql(SqliteDatabase(tmp_path / "test.db"))
        store.land(BARS)
        for session, code in GAPS:
            store.delete(session, code)
        check(store)
        (shown,) = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
        assert shown.replace("bars_of_april", "bars") in capsys.readouterr().out

    def test_the_check_and_the_repair_make_a_call_for_each_security(self, files, openmarkets_sandbox):
        files.land(BARS)
        openmarkets_sandbox.reset()
        check(files)
        assert calls(openmarkets_sandbox) == ["GET /securities/v1"]
        for session, code in GAPS:
            files.delete(session, code)
        openmarkets_sandbox.reset()
        found = check(files)
        assert calls(openmarkets_sandbox) == [
            *(f"GET /pricing/timeseries/{code}.ASX@TM/v2" for code in CODES),
            "GET /securities/v1",
            "POST /securities/information/v2",
        ]
        assert [(query["securities"], query["start"], query["end"]) for query in found.queries] == [
            (["BHP.ASX@TM"], "2026-04-02", "2026-04-03"),
            (["CBA.ASX@TM"], "2026-04-07", "2026-04-08"),
            (["RIO.ASX@TM"], "2026-04-10", "2026-04-11"),
        ]

    def test_a_check_that_fails_says_what_is_missing(self, files, openmarkets_sandbox):
        files.land(BARS)
        files.delete(*GAPS[0])
        ti = Ti()
        task = OpenmarketsCompletenessCheck(task_id="check", query=BARS, **files.check)
        with pytest.raises(AirflowFailException, match=r"1 of 60 expected sessions are missing \(BHP\.ASX@TM on 202"):
            task.execute(context() | {"ti": ti})
        assert ti.pushed == {"missing": [{"session": "2026-04-02", "security": "BHP.ASX@TM"}]}


class TestWhatIsNotMissing:
    """Of what is absent the API decides."""

    def test_a_security_that_never_trades(self, files, openmarkets_sandbox):
        query = queries.time_series(["BHP", "BHPXY7"], **APRIL)
        files.land(query)
        assert check(files, query).missing == []
        never = check(files, query, compare="calendar")
        assert never.missing == full((session, "BHPXY7") for session in SESSIONS)

    def test_the_sessions_of_a_suspension(self, files, openmarkets_sandbox):
        openmarkets_sandbox.add_security("NEW.ASX@TM")
        bars = [{"timeSeriesDate": day, "closePrice": 100} for day in (*SESSIONS[:3], *SESSIONS[12:])]
        openmarkets_sandbox.set_bars("NEW.ASX@TM", bars)
        query = queries.time_series(["BHP", "NEW"], **APRIL)
        files.land(query)
        files.delete(SESSIONS[1], "NEW")
        files.delete(SESSIONS[5], "BHP")
        assert check(files, query).missing == full([(SESSIONS[1], "NEW"), (SESSIONS[5], "BHP")])

    def test_sessions_before_the_first_and_after_the_last_listed_date(self, files, openmarkets_sandbox):
        first, last = SESSIONS[4], SESSIONS[9]
        listing(openmarkets_sandbox, ("BHP", first, None), ("CBA", None, last), ("RIO", None, None))
        files.land(queries.time_series("RIO", **APRIL))
        absent = check(files, queries.time_series(exchange="ASX", **APRIL), compare="calendar").missing
        assert absent == sorted(
            full([*((day, "BHP") for day in SESSIONS[4:]), *((day, "CBA") for day in SESSIONS[:10])])
        )

    def test_a_code_that_two_companies_had(self, files, openmarkets_sandbox):
        listing(openmarkets_sandbox, ("BHP", None, SESSIONS[2]), ("BHP", SESSIONS[17], None))
        absent = check(files, queries.time_series("BHP", **APRIL), compare="calendar").missing
        assert absent == full((day, "BHP") for day in (*SESSIONS[:3], *SESSIONS[17:]))

    def test_a_security_that_nobody_knows(self, files, openmarkets_sandbox):
        query = queries.time_series(["BHP", "NOBODY"], on_invalid="warn", **APRIL)
        files.land(query)
        assert check(files, query).missing == []
        assert check(files, queries.time_series("NOBODY", **APRIL)).missing == []
        assert check(files, queries.time_series(["NOBODY", "NOONE"], **APRIL)).missing == []
        assert len(check(files, query, compare="calendar").missing) == len(SESSIONS)

    def test_a_range_without_a_session(self, files, openmarkets_sandbox, capsys):
        easter = BARS | {"start": "2026-04-03", "end": "2026-04-07"}
        assert check(files, easter, on_missing="fail").queries == []
        assert "Nothing was checked: no session in the range has ended" in capsys.readouterr().out
        assert calls(openmarkets_sandbox) == []

    @pytest.mark.parametrize("compare", ["api", "calendar"])
    def test_a_day_on_which_the_exchange_was_closed_unexpectedly(self, files, openmarkets_sandbox, compare):
        files.land(BARS)
        for code in CODES:
            files.delete(SESSIONS[5], code)
        assert check(files, compare=compare, extra_closures=[SESSIONS[5]]).missing == []

    def test_a_session_that_is_not_over(self, files, openmarkets_sandbox):
        tomorrow = ASX.next_session(datetime.now(UTC))
        ahead = queries.time_series("BHP", start=tomorrow, end=tomorrow + timedelta(days=30))
        assert check(files, ahead, on_missing="fail", compare="calendar").queries == []


class TestWhatElseIsThere:
    def test_rows_of_days_without_a_session_do_not_count(self, tmp_path, openmarkets_sandbox, capsys):
        store = Delta(tmp_path / "bars")
        store.land(BARS)
        table = DeltaTable(store.load["destination"])
        table.update({"time_series_date": "'2026-04-03'"}, predicate="time_series_date = '2026-04-02'")
        assert check(store).missing == full((SESSIONS[1], code) for code in CODES)
        assert "rows of 1 days on which the exchange does not trade, such as 2026-04-03" in capsys.readouterr().out

    @ICEBERG
    def test_bars_of_another_length_do_not_count(self, tmp_path, monkeypatch, openmarkets_sandbox):
        database = SqliteDatabase(tmp_path / "test.db")
        monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
        lakes = Delta(tmp_path / "bars"), Iceberg(tmp_path / "lake")
        for store in (*lakes, Files(tmp_path / "files", "day"), Sql(database)):
            store.land(queries.time_series("BHP", start="2026-04-04", end="2026-04-11", frequency="Weekly"))
            (_, code), *_ = store.keys()
            assert code == "BHP"
            week = queries.time_series("BHP", start="2026-04-06", end="2026-04-11")
            assert check(store, week).missing == full((day, "BHP") for day in SESSIONS[2:6])

    def test_a_table_by_hand_may_have_timestamps_for_dates(self, postgres, monkeypatch, openmarkets_sandbox):
        database = PostgresDatabase(postgres)
        monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
        store = Sql(database)
        store.land(BARS)
        database.execute("ALTER TABLE bars ALTER COLUMN day TYPE TIMESTAMP")
        store.delete(*GAPS[0])
        assert check(store).missing == full(GAPS[:1])

    def test_files_of_other_partitions_are_not_opened(self, files, openmarkets_sandbox):
        files.land(BARS)
        other = Path(files.load["destination"], "exchange_date=2026-05-04", "part-0.parquet")
        other.parent.mkdir()
        other.write_bytes(b"no Parquet")
        assert check(files).missing == []


class TestNothingIsThere:
    @pytest.mark.parametrize("exists", [False, True])
    def test_an_empty_folder(self, files, tmp_path, openmarkets_sandbox, exists):
        if exists:
            (tmp_path / "bars").mkdir()
        assert len(check(files).missing) == 60

    def test_an_empty_prefix_of_a_bucket(self, s3, openmarkets_sandbox):
        assert len(check(FilesInS3(s3)).missing) == 60

    @pytest.mark.parametrize("kind", [Delta, pytest.param(Iceberg, marks=ICEBERG), Sql])
    def test_an_unknown_table(self, kind, tmp_path, monkeypatch, openmarkets_sandbox):
        database = SqliteDatabase(tmp_path / "test.db")
        monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
        store = kind(database if kind is Sql else tmp_path / "lake")
        with pytest.raises(
            AirflowFailException, match=r"Table .* does not exist. Correct the name, or load the table first"
        ):
            check(store)

    def test_a_table_of_something_else(self, tmp_path, monkeypatch, openmarkets_sandbox):
        database = SqliteDatabase(tmp_path / "test.db")
        monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
        database.execute("CREATE TABLE bars (name TEXT)")
        with pytest.raises(
            AirflowFailException,
            match=r"bars: the table has no column code, exchange, day, length\. Check that query, table",
        ):
            check(Sql(database))

    def test_a_long_list_is_cut(self, files, openmarkets_sandbox, capsys):
        listing(openmarkets_sandbox, *((f"S{number:03}", None, None) for number in range(60)))
        found = check(files, queries.time_series(exchange="ASX", **APRIL), compare="calendar")
        assert len(found.missing) == MAX_LISTED
        log = capsys.readouterr().out
        assert log.count("2026-04-01  S0") == MAX_LOGGED
        assert f"... and {60 * len(SESSIONS) - MAX_LOGGED} more" in log
        (query,) = found.queries
        assert len(query["securities"]) == 60
        assert {name: query[name] for name in APRIL} == {"start": "2026-04-01", "end": "2026-05-01"}


WEEK = {"start": "2026-03-31", "end": "2026-04-08"}


class TestTimes:
    """Rows with times: of trades and intraday bars. Until 5 April 2026 a session starts on the day before, in UTC."""

    DAYS = ("2026-03-31", "2026-04-01", "2026-04-02", "2026-04-07")

    @pytest.mark.parametrize(
        "query",
        [queries.trades(["BHP", "CBA"], **WEEK), queries.intraday_time_series(["BHP", "CBA"], interval=60, **WEEK)],
        ids=["trades", "intraday"],
    )
    def test_a_session_without_a_row_is_missing(self, timed, query, openmarkets_sandbox):
        for day in (self.DAYS[0], *self.DAYS[2:]):
            timed.land({**query, "start": day, "end": str(date.fromisoformat(day) + timedelta(days=1))})
        timed.land({**query, "securities": ["BHP"], "start": self.DAYS[1], "end": self.DAYS[2]})
        found = check(timed, query)
        assert found.missing == full([(self.DAYS[1], "CBA")])
        (repair,) = found.queries
        assert (repair["securities"], repair["start"], repair["end"]) == (["CBA.ASX@TM"], *self.DAYS[1:3])
        timed.add(repair)
        assert check(timed, query).missing == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "Set either destination"),
        ({"destination": "/bars", "table": "bars"}, "Set either destination"),
        ({"destination": "/bars", "format": "csv"}, "format must be one of parquet, delta, not 'csv'"),
        ({"destination": "/bars", "warehouse": "/lake"}, "warehouse and columns can only be set with table"),
        ({"destination": "/bars", "compare": "counts"}, "compare must be one of api, calendar, not 'counts'"),
        ({"destination": "/bars", "on_missing": "skip"}, "on_missing must be one of fail, warn, not 'skip'"),
        ({"table": "bars", "conn_id": "db", "columns": {"close": "c"}}, "is not a column of time_series"),
    ],
)
def test_arguments_are_checked_when_the_dag_is_parsed(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        OpenmarketsCompletenessCheck(task_id="check", query=BARS, **arguments)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (queries.quotes("BHP"), "quotes: a completeness check needs daily bars"),
        (queries.order_trades(**APRIL), "order_trades: a completeness check needs"),
        (queries.request("news", "GET", "announcements/v1"), "request: a completeness check needs"),
        (queries.time_series("BHP", frequency="Weekly", **APRIL), "time_series: a completeness check needs"),
        (queries.time_series("BHP", raw=True, **APRIL), "time_series: a completeness check needs"),
        (queries.time_series("BHP", adjusted=True, **APRIL), "adjusted can't be used with a completeness check"),
    ],
)
def test_queries_without_sessions_are_refused(query, problem):
    with pytest.raises(OpenmarketsQueryError, match=problem):
        OpenmarketsCompletenessCheck(task_id="check", query=query, destination="/bars")
