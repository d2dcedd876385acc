"""The transfer into a table, as a task, against real databases and the sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Asset

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsDatabaseError, OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.modes import MODES, REPLACE_RANGE
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase
from tests.support.landed import rows_in

WEEK = {"start": "2026-03-02", "end": "2026-03-07"}
WEEKEND = {"start": "2026-03-07", "end": "2026-03-09"}
SERIES = "/market-data/pricing/timeseries"
RESERVED = ["openmarkets_load", "Openmarkets_Load", "main.OPENMARKETS_LOAD"]


@pytest.fixture
def in_postgres(postgres, monkeypatch: pytest.MonkeyPatch) -> PostgresDatabase:
    made = PostgresDatabase(postgres)
    monkeypatch.setenv("AIRFLOW_CONN_DB", made.airflow_connection)
    return made


def to_table(query: queries.Query, table: str = "rows", **kwargs: Any) -> OpenmarketsToSqlOperator:
    return OpenmarketsToSqlOperator(task_id="load", query=query, table=table, conn_id="db", **kwargs)


def run(query: queries.Query, table: str = "rows", run_id: str = "run", **kwargs: Any) -> dict[str, Any]:
    return to_table(query, table, **kwargs).execute(context(run_id))


def everything(database: Database, table: str = "rows") -> list[str]:
    return sorted(map(repr, rows_in(database, table)))


def bars(codes: Any = ("BHP", "CBA"), days: dict[str, str] = WEEK, **kwargs: Any) -> queries.Query:
    return queries.time_series(list(codes), **days, **kwargs)


class TestWhatIsLoaded:
    def test_the_rows_of_the_query_exactly(self, openmarkets_sandbox, in_postgres):
        result = run(bars())
        assert result == {
            "destination": "rows",
            "rows": 10,
            "bytes": None,
            "files": [],
            "range": {"start": "2026-03-02", "end": "2026-03-07"},
            "skipped": [],
        }
        pulled = [(*row.values(), None) for row in OpenmarketsHook().run(bars())]
        assert sorted(rows_in(in_postgres, "rows"), key=itemgetter(0, 4)) == pulled
        assert type(pulled[0][5]) is Decimal

    @pytest.mark.parametrize("mode", MODES)
    def test_running_a_task_instance_again_changes_nothing(self, openmarkets_sandbox, database, mode):
        first = run(bars(), mode=mode)
        before = everything(database)
        assert len(before) == 10
        assert run(bars(), mode=mode) == first
        assert everything(database) == before

    def test_all_rows_of_a_load_have_the_time_at_which_it_began(self, openmarkets_sandbox, in_postgres):
        before = datetime.now(UTC)
        for run_id in "ab":
            run(queries.quotes(["BHP", "CBA"]), run_id=run_id, mode="append")
        loads = in_postgres.execute("SELECT load_id, loaded_at FROM rows GROUP BY 1, 2 ORDER BY 1")
        assert [load_id for load_id, _ in loads] == ["dag/a/load/-1", "dag/b/load/-1"]
        assert before <= loads[0][1] < loads[1][1] <= datetime.now(UTC)

    def test_snapshots_pile_up(self, openmarkets_sandbox, database):
        for run_id in ("08:00", "08:05", "08:05"):
            run(queries.quotes(["BHP", "CBA"]), run_id=run_id, mode="append")
        loads = database.execute("SELECT load_id, count(*) FROM rows GROUP BY load_id ORDER BY load_id")
        assert loads == [("dag/08:00/load/-1", 2), ("dag/08:05/load/-1", 2)]

    def test_mapped_tasks_load_into_one_table_beside_each_other(self, openmarkets_sandbox, database):
        for index, code in enumerate(("BHP", "CBA")):
            to_table(bars([code]), mode="append").execute(context(map_index=index))
        assert database.execute("SELECT DISTINCT load_id FROM rows ORDER BY 1") == [
            ("dag/run/load/0",),
            ("dag/run/load/1",),
        ]

    def test_iterations_of_a_loop_append_beside_each_other(self, openmarkets_sandbox, database):
        for index in (0, 1, 1):
            loop = {"loop": SimpleNamespace(index=index)}
            to_table(queries.quotes(["BHP", "CBA"]), mode="append").execute(context() | loop)
        loads = database.execute("SELECT load_id, count(*) FROM rows GROUP BY load_id ORDER BY load_id")
        assert loads == [("dag/run/load/-1/0", 2), ("dag/run/load/-1/1", 2)]

    @pytest.mark.parametrize("mode", MODES)
    def test_a_range_without_rows_makes_the_table_and_empties_the_range(self, openmarkets_sandbox, database, mode):
        assert run(bars(days=WEEKEND), mode=mode)["rows"] == 0
        assert "time_series_date" in database.columns("rows")
        run(bars(), mode=mode)
        database.execute("UPDATE rows SET time_series_date = '2026-03-08' WHERE time_series_date = '2026-03-06'")
        run(bars(days=WEEKEND), run_id="other", mode=mode)
        assert len(everything(database)) == (8 if mode == REPLACE_RANGE else 10)

    def test_adjusted_bars_have_their_columns(self, openmarkets_sandbox, database):
        run(bars(["ZSPLIT"], {"start": "2026-02-27", "end": "2026-03-03"}, adjusted=True))
        sql = "SELECT close_price, adjusted_close_price, adjusted_total_volume FROM rows ORDER BY time_series_date"
        found = [tuple(map(float, row)) for row in database.execute(sql)]
        assert found == [(36.31, 9.0775, 114800), (9.29, 9.29, 96300)]
        run(bars(), table="plain")
        with pytest.raises(AirflowFailException, match="no column adjusted_open_price, "):
            run(bars(adjusted=True), table="plain", schema_policy="freeze")
        run(bars(adjusted=True), table="plain")
        assert database.execute("SELECT count(adjusted_open_price) FROM plain") == [(10,)]

    def test_records_of_a_request_are_appended_as_json(self, openmarkets_sandbox, in_postgres):
        query = queries.request("oms", "GET", "accounts/v1")
        assert run(query, mode="append") == {**run(query, mode="append"), "rows": 3, "range": None}
        found = in_postgres.execute("SELECT record FROM rows")
        assert [record for (record,) in found] == OpenmarketsHook().run(query)

    def test_a_field_that_the_api_adds_is_kept(self, openmarkets_sandbox, database):
        run(queries.quotes("BHP"))
        assert [
            json.loads(str(fields).replace("'", '"')) for (fields,) in database.execute("SELECT other_fields FROM rows")
        ] == [{"sandbox_field": "a field that no documentation lists"}]

    def test_a_column_that_the_provider_adds_is_asked_for_before_anything_is_pulled(
        self, openmarkets_sandbox, database
    ):
        run(bars())
        database.execute("ALTER TABLE rows DROP COLUMN market_vwap")
        openmarkets_sandbox.reset()
        with pytest.raises(AirflowFailException, match=r"no column market_vwap\. To add it: ALTER TABLE") as refused:
            run(bars(), schema_policy="freeze")
        assert openmarkets_sandbox.stats()["requests"].get("market_data", 0) == 0
        database.execute(str(refused.value).partition("To add it: ")[2])
        run(bars(), schema_policy="freeze")
        assert database.execute("SELECT count(*) FROM rows WHERE market_vwap IS NOT NULL") == [(10,)]

    def test_a_column_that_the_provider_adds_is_added(self, openmarkets_sandbox, database, caplog):
        run(bars())
        database.execute("ALTER TABLE rows DROP COLUMN market_vwap")
        run(bars())
        assert database.execute("SELECT count(*) FROM rows WHERE market_vwap IS NOT NULL") == [(10,)]
        assert "rows: the table had no column market_vwap. Added: ALTER TABLE rows ADD market_vwap" in caplog.text

    @pytest.mark.parametrize("mode", MODES)
    def test_a_table_made_by_hand_takes_some_columns_by_its_own_names(self, openmarkets_sandbox, database, mode):
        key = "code text, exchange text, data_source text, day date, frequency text"
        more = "load_id text" if mode == "append" else "UNIQUE (code, exchange, data_source, day, frequency)"
        database.execute(f"CREATE TABLE rows ({key}, close numeric(18, 6), remark text, {more})")
        columns = {"security_code": "code", "time_series_date": "day", "close_price": "close"}
        for _ in range(2):
            assert run(bars(), mode=mode, columns=columns)["rows"] == 10
        pulled = [(row["security_code"], row["close_price"]) for row in OpenmarketsHook().run(bars())]
        found = database.execute("SELECT code, close FROM rows ORDER BY code, day")
        assert [(code, Decimal(str(close))) for code, close in found] == [(code, close) for code, close in pulled]

    def test_a_bad_row_is_named_and_loses_nothing(self, openmarkets_sandbox, in_postgres):
        run(bars(["BHP"]))
        before = everything(in_postgres)
        in_postgres.execute("ALTER TABLE rows ADD CHECK (security_code <> 'CBA')")
        with pytest.raises(
            AirflowFailException,
            match=r"rows: the database refuses row 6 \(security_code=CBA, .*time_series_date=2026-03-02\)",
        ):
            run(bars())
        assert everything(in_postgres) == before


class TestReplacing:
    """What goes away is what the query covers, and only that."""

    OTHERS = """
        INSERT INTO rows (security_code, exchange, data_source, time_series_date, price_multiplier, frequency)
        VALUES {} ON CONFLICT DO NOTHING
    """

    def seed(self, database: Database, *rows: tuple[str, str, str, str]) -> None:
        run(bars(["BHP"]), mode=REPLACE_RANGE)
        database.execute(self.OTHERS.format(", ".join(f"{(*row, 1, 'Daily')}" for row in rows)))

    def stale(self, database: Database) -> list[tuple[Any, ...]]:
        sql = "SELECT security_code, exchange, data_source, CAST(time_series_date AS text) FROM rows"
        return database.execute(f"{sql} WHERE price_multiplier = 1 ORDER BY 1, 2, 3, 4")

    def test_named_securities_in_the_range(self, openmarkets_sandbox, database):
        kept = [
            ("BHP", "ASX", "CXA", "2026-03-03"),
            ("BHP", "ASX", "TM", "2026-02-27"),
            ("BHP", "ASX", "TM", "2026-03-07"),
            ("BHP", "NSX", "TM", "2026-03-03"),
            ("RIO", "ASX", "TM", "2026-03-03"),
        ]
        self.seed(database, *kept, ("CBA", "ASX", "TM", "2026-03-03"), ("CBA", "ASX", "TM", "2026-03-05"))
        database.execute("UPDATE rows SET price_multiplier = 1 WHERE time_series_date = '2026-03-04'")
        assert run(bars(), mode=REPLACE_RANGE)["rows"] == 10
        assert self.stale(database) == kept

    def test_bars_of_the_same_frequency(self, openmarkets_sandbox, database):
        # On the Friday there is a bar of each.
        days, weeks = bars(), bars(frequency="Weekly")
        run(days, mode=REPLACE_RANGE)
        assert run(weeks, mode=REPLACE_RANGE)["rows"] == 2
        both = everything(database)
        assert len(both) == 12
        for query, kept in ((days, "Weekly"), (weeks, "Daily")):
            database.execute("UPDATE rows SET price_multiplier = 1")
            run(query, mode=REPLACE_RANGE)
            stale = database.execute("SELECT frequency FROM rows WHERE price_multiplier = 1")
            assert {each for (each,) in stale} == {kept}
            run(bars(frequency=kept), mode=REPLACE_RANGE)
        assert everything(database) == both

    @pytest.mark.parametrize("mode", ["upsert", REPLACE_RANGE])
    def test_intraday_bars_of_the_same_interval(self, openmarkets_sandbox, database, mode):
        def of(interval: int) -> queries.Query:
            return queries.intraday_time_series(
                "BHP", start="2026-03-02T10:00", end="2026-03-02T12:00", interval=interval
            )

        assert [run(of(interval), mode=mode)["rows"] for interval in (60, 30, 60)] == [2, 4, 2]
        found = database.execute('SELECT "interval", count(*) FROM rows GROUP BY 1 ORDER BY 1')
        assert found == [(30, 4), (60, 2)]

    def test_of_an_exchange_those_that_it_lists(self, openmarkets_sandbox, database):
        listed = OpenmarketsHook().run({**queries.securities(), "raw": True})
        openmarkets_sandbox.fault(
            target="/market-data/securities/v1",
            kind="body",
            body=[record for record in listed if record["securityCode"] in ("BHP", "CBA")],
            times=None,
        )
        self.seed(database, ("GONE", "ASX", "TM", "2026-03-03"), ("CBA", "ASX", "TM", "2026-03-08"))
        query = queries.time_series(exchange="ASX", start="2026-03-02", end="2026-03-09")
        assert run(query, mode=REPLACE_RANGE)["rows"] == 10
        assert self.stale(database) == [("GONE", "ASX", "TM", "2026-03-03")]

    @pytest.mark.parametrize("asked", ["accounts", "portfolios", "all"])
    def test_of_trades_those_of_the_accounts_that_are_asked(self, openmarkets_sandbox, database, asked):
        accounts = [row["account_code"] for row in OpenmarketsHook().run(queries.accounts())]
        first = next(row for row in OpenmarketsHook().run(queries.portfolio_links()) if row["link_removed"] is not True)
        arguments, replaced = {
            "accounts": ({"accounts": accounts[1]}, {accounts[1]}),
            "portfolios": ({"portfolios": first["portfolio_code"]}, {first["account_code"]}),
            "all": ({}, set(accounts)),
        }[asked]
        run(queries.order_trades(accounts[0], **WEEK), mode=REPLACE_RANGE)
        zone = "+00" if isinstance(database, PostgresDatabase) else ""
        for account in (*accounts, "OTHER"):
            for day in ("2026-03-03", "2026-03-09"):
                database.execute(
                    "INSERT INTO rows (trade_number, order_number, account_code, trade_date_time, side) "
                    f"VALUES ('stale', '{day}', %s, '{day} 03:00:00{zone}', 'stale')",
                    account,
                )
        run(queries.order_trades(**arguments, **WEEK), mode=REPLACE_RANGE)
        left = database.execute("SELECT account_code, order_number FROM rows WHERE side = 'stale' ORDER BY 1, 2")
        assert {account for account, day in left if day == "2026-03-03"} == {*accounts, "OTHER"} - replaced
        assert [account for account, day in left if day == "2026-03-09"] == sorted([*accounts, "OTHER"])

    def test_times_in_the_range_to_the_moment(self, openmarkets_sandbox, database):
        whole = queries.trades("BHP", start="2026-03-02T10:00", end="2026-03-02T16:00")
        part = queries.trades("BHP", start="2026-03-02T11:00", end="2026-03-02T12:00")
        run(whole, mode=REPLACE_RANGE)
        before = everything(database)
        database.execute("UPDATE rows SET reason = 'stale'")
        count = run(part, mode=REPLACE_RANGE)["rows"]
        assert 0 < count < len(before)
        assert database.execute("SELECT count(*) FROM rows WHERE reason = 'stale'") == [(len(before) - count,)]
        run(whole, mode=REPLACE_RANGE)
        assert everything(database) == before


class TestParsing:
    def test_templates_are_rendered_and_checked_again(self, openmarkets_sandbox, database):
        with DAG("dag", schedule=None):
            task = OpenmarketsToSqlOperator(
                task_id="load",
                query=queries.quotes("{{ params.code }}"),
                table="{{ params.table }}",
                conn_id="{{ 'db' }}",
            )
        assert task.outlets == []
        task.render_template_fields({"params": {"code": "RIO", "table": "found"}})
        assert task.execute(context())["rows"] == 1
        assert database.tables() == ["found"]
        with DAG("dag", schedule=None):
            task = to_table(queries.quotes("BHP"), "{{ params.table }}")
        task.render_template_fields({"params": {"table": "a b"}})
        with pytest.raises(AirflowFailException, match="table must be"):
            task.execute(context())

    @pytest.mark.parametrize("rendered", ["", " "])
    def test_a_connection_id_that_is_rendered_empty_is_named(self, openmarkets_sandbox, rendered):
        with DAG("dag", schedule=None):
            task = OpenmarketsToSqlOperator(
                task_id="load", query=queries.quotes("BHP"), table="rows", conn_id="{{ params.conn_id }}"
            )
        task.render_template_fields({"params": {"conn_id": rendered}})
        with pytest.raises(AirflowFailException, match="conn_id must be the id of a connection"):
            task.execute(context())

    @pytest.mark.parametrize("table", ["", "a.b.c", 'a"b', "a b", ".a", "a.", "a;b--\n", None, 5, "None", *RESERVED])
    def test_a_table_has_a_plain_name(self, table):
        with pytest.raises(ValueError, match=r"table must be 'table' or 'schema\.table'"):
            to_table(queries.quotes("BHP"), table)

    @pytest.mark.parametrize("conn_id", ["", None, 5])
    def test_a_connection_id_is_a_text(self, conn_id):
        with pytest.raises(ValueError, match="conn_id must be the id of a connection"):
            OpenmarketsToSqlOperator(task_id="load", query=queries.quotes("BHP"), table="rows", conn_id=conn_id)

    def test_modes_that_do_not_go_with_the_query_fail_the_parsing(self):
        with pytest.raises(ValueError, match="mode must be one of"):
            to_table(queries.quotes("BHP"), mode="merge")
        with pytest.raises(OpenmarketsQueryError, match="needs a query with a range"):
            to_table(queries.quotes("BHP"), mode="replace_range")
        with pytest.raises(OpenmarketsQueryError, match="Use mode='append'"):
            to_table(queries.request("oms", "GET", "accounts/v1"))
        with pytest.raises(ValueError, match="'append' can't be used with incremental"):
            to_table(bars(), mode="append", incremental=True)

    def test_columns_and_the_schema_policy_are_checked(self):
        with pytest.raises(
            OpenmarketsQueryError, match=r"'close' is not a column of time_series; did you mean 'close_"
        ):
            to_table(bars(), columns={"close": "close_price"})
        with pytest.raises(ValueError, match="columns must be a dict"):
            to_table(bars(), columns=["close_price"])
        with pytest.raises(ValueError, match="schema_policy must be 'evolve' or 'freeze', not 'change'"):
            to_table(bars(), schema_policy="change")

    def test_columns_that_do_not_go_with_what_a_template_gave_fail_the_task(self, openmarkets_sandbox, database):
        with DAG("dag", schedule=None):
            task = to_table("{{ params.query }}", columns={"close_price": "close"})
        task.query = queries.quotes("BHP")
        with pytest.raises(AirflowFailException, match="'close_price' is not a column of quotes"):
            task.execute(context())

    def test_a_mode_that_does_not_go_with_what_a_template_gave_fails_the_task(self, openmarkets_sandbox, database):
        with DAG("dag", schedule=None):
            task = to_table({**queries.quotes("BHP"), "raw": "{{ params.raw }}"})
        task.render_template_fields({"params": {"raw": True}})
        with pytest.raises(AirflowFailException, match="needs rows with a key"):
            task.execute(context())

    def test_it_can_be_mapped(self):
        with DAG("dag", schedule=None):
            OpenmarketsToSqlOperator.partial(task_id="load", table="rows", conn_id="db").expand(query=[bars(), bars()])

    def test_nothing_happens_at_construction(self):
        task = OpenmarketsToSqlOperator(
            task_id="load", query=queries.quotes("BHP"), table="market.rows", conn_id="none"
        )
        assert task.outlets == [Asset("sql://none/market.rows")]


class TestConnections:
    def refused(self, monkeypatch: pytest.MonkeyPatch, connection: str) -> str:
        monkeypatch.setenv("AIRFLOW_CONN_DB", connection)
        with pytest.raises(AirflowFailException) as refused:
            run(queries.quotes("BHP"))
        return str(refused.value)

    def test_one_that_is_no_database(self, openmarkets_sandbox, monkeypatch):
        said = self.refused(monkeypatch, '{"conn_type": "http", "host": "http://localhost"}')
        assert "connection 'db' has the type 'http', which is not a SQL database (HttpHook is not a DbApiHook)" in said

    def test_any_without_the_extra(self, openmarkets_sandbox, monkeypatch):
        monkeypatch.setitem(sys.modules, "airflow.providers.common.sql.hooks.sql", None)
        said = self.refused(monkeypatch, '{"conn_type": "sqlite", "host": "/nowhere"}')
        assert "pip install 'airflow-provider-openmarkets[sql]'" in said

    def test_one_of_a_provider_that_is_not_installed(self, openmarkets_sandbox, monkeypatch):
        said = self.refused(monkeypatch, '{"conn_type": "vertica", "host": "localhost"}')
        assert "connection 'db' has the type 'vertica'" in said
        assert "apache-airflow-providers-vertica" in said

    @pytest.mark.parametrize(
        "connection",
        [
            {"conn_type": "duckdb", "host": "test.duckdb"},
            {"conn_type": "redshift", "host": "localhost", "login": "etl", "password": "unknown", "port": 5439},
        ],
        ids=itemgetter("conn_type"),
    )
    def test_one_to_a_database_that_is_not_supported(self, openmarkets_sandbox, monkeypatch, connection):
        said = self.refused(monkeypatch, json.dumps(connection))
        kind = connection["conn_type"]
        assert said.startswith(f"conn_id: connection 'db' has the type '{kind}'; only PostgreSQL, ")
        assert "load them with the database's own operator" in said
        assert "unknown" not in said

    def test_one_without_a_type(self, openmarkets_sandbox, monkeypatch):
        said = self.refused(monkeypatch, '{"host": "localhost"}')
        assert said == "conn_id: connection 'db' has no type. Set it, for example to postgres."

    @pytest.mark.parametrize("scheme", ["foo", "postgresql+foo", "postgresql+pg8000", "a://b"])
    def test_one_whose_engine_is_not_known_or_lacks_its_driver(
        self, openmarkets_sandbox, in_postgres, monkeypatch, scheme
    ):
        server = in_postgres.server
        said = self.refused(monkeypatch, server.airflow_connection(in_postgres.name, sqlalchemy_scheme=scheme))
        assert said.startswith("conn_id: SQLAlchemy can't load the database driver of connection 'db'")
        assert "remove sqlalchemy_scheme from the connection's Extra" in said
        assert server.password not in said

    @pytest.mark.parametrize("path", ["/no/such/folder/test.db", "/"])
    def test_a_file_that_can_not_be_opened(self, openmarkets_sandbox, monkeypatch, path):
        monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": "sqlite", "host": path}))
        with pytest.raises(AirflowFailException, match=r"rows \(conn_id 'db'\): unable to open database file\. N"):
            run(queries.quotes("BHP"))

    # Before, Airflow has SQLAlchemy 1.4, which does not know psycopg 3.
    @pytest.mark.since("3.2")
    def test_one_whose_engine_wants_another_driver(self, openmarkets_sandbox, in_postgres, monkeypatch):
        said = self.refused(
            monkeypatch,
            in_postgres.server.airflow_connection(in_postgres.name, sqlalchemy_scheme="postgresql+psycopg2"),
        )
        assert "the hook connects with psycopg, but sqlalchemy_scheme in the connection's Extra names psycopg2" in said

    def test_settings_of_the_connection_count(self, openmarkets_sandbox, in_postgres, monkeypatch):
        in_postgres.execute("CREATE SCHEMA market")
        extra = {
            "cursor": "dictcursor",
            "options": "-c search_path=market -c default_transaction_isolation=serializable",
        }
        monkeypatch.setenv("AIRFLOW_CONN_DB", in_postgres.server.airflow_connection(in_postgres.name, **extra))
        for _ in range(2):
            run(bars())
        assert in_postgres.execute("SELECT count(*) FROM market.rows") == [(10,)]

    @pytest.mark.since("3.2")
    def test_a_connection_that_commits_every_statement_does_not(self, openmarkets_sandbox, in_postgres, monkeypatch):
        connection = in_postgres.server.airflow_connection(in_postgres.name, autocommit=True)
        monkeypatch.setenv("AIRFLOW_CONN_DB", connection)
        run(bars(["BHP"]), mode=REPLACE_RANGE)
        before = everything(in_postgres)
        in_postgres.execute("ALTER TABLE rows ADD CHECK (time_series_date > '2026-03-02') NOT VALID")
        with pytest.raises(AirflowFailException, match="row 1 "):
            run(bars(["BHP"]), mode=REPLACE_RANGE)
        assert everything(in_postgres) == before

    def test_the_password_is_in_no_error(self, openmarkets_sandbox, in_postgres, monkeypatch, caplog):
        fields = json.loads(in_postgres.airflow_connection)
        monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({**fields, "password": "a-wrong-password"}))
        with pytest.raises(OpenmarketsDatabaseError, match="authentication failed") as refused:
            run(queries.quotes("BHP"))
        report = [refused.value, refused.value.__cause__, refused.value.__cause__.__cause__, caplog.text]
        assert "a-wrong-password" not in " ".join(map(str, report))


class TestLineage:
    def test_it_is_no_harm_when_openlineage_is_not_installed(self, openmarkets_sandbox, tmp_path, monkeypatch):
        database = SqliteDatabase(tmp_path / "test.db")
        monkeypatch.setenv("AIRFLOW_CONN_DB", database.airflow_connection)
        code = (
            "import sys\n"
            "class Absent:\n"
            "    def find_spec(self, name, *_):\n"
            "        # Airflow asks every entry point for what it brings.\n"
            "        is_metadata = name.endswith('.get_provider_info')\n"
            "        if name.startswith(('airflow.providers.openlineage.', 'openlineage')) and not is_metadata:\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Absent())\n"
            "from openmarkets_provider import queries\n"
            "from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator\n"
            "from tests.support.context import context\n"
            "query = queries.quotes('BHP')\n"
            "task = OpenmarketsToSqlOperator(task_id='load', query=query, table='rows', conn_id='db')\n"
            "print(task.execute(context())['rows'], tuple(task._lineage.dataset))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("1 ('sql://db/rows', ")
        assert "Could not collect the hook lineage of the load" not in done.stdout + done.stderr
        assert len(everything(database)) == 1

    def test_the_dataset_of_a_postgresql_table(self, openmarkets_sandbox, in_postgres):
        task = to_table(bars())
        given = context()
        task.execute(given)
        where = f"postgres://127.0.0.1:{in_postgres.server.port}"
        assert task._lineage.dataset == (f"{where}/test/public/rows", where, "test.public.rows")
        (output,) = task.get_openlineage_facets_on_complete(None).outputs
        assert (output.namespace, output.name) == (where, "test.public.rows")
        assert output.facets["schema"].fields[4].name == "time_series_date"
        assert output.outputFacets["outputStatistics"].rowCount == 10
        (event,) = given["outlet_events"].values()
        assert event.extra == {
            "destination": "rows",
            "rows": 10,
            "bytes": None,
            "range": {"start": "2026-03-02", "end": "2026-03-07"},
            "skipped": [],
        }

    def test_its_schema_is_that_of_the_columns_that_were_loaded(self, openmarkets_sandbox, in_postgres):
        task = to_table(bars(), columns={"close_price": "close"})
        task.execute(context())
        (output,) = task.get_openlineage_facets_on_complete(None).outputs
        assert {field.name for field in output.facets["schema"].fields} == set(in_postgres.columns("rows"))
        assert "close" in in_postgres.columns("rows")

    def test_the_dataset_of_another_databases_table(self, openmarkets_sandbox, tmp_path, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_DB", SqliteDatabase(tmp_path / "test.db").airflow_connection)
        task = to_table(bars())
        task.execute(context())
        assert task._lineage.dataset[1:] == (f"sqlite://{tmp_path}/test.db", "main.rows")
