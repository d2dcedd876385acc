"""Columns that a table lacks, or has by other names."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsDatabaseError, OpenmarketsQueryError
from openmarkets_provider.landing.columns import Choice, check_columns
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.landing.modes import MODES, REPLACE_RANGE, Coverage
from tests.landing.test_table_load import NOON, THINGS, load, notes, thing
from tests.support.databases import POSTGRES_DRIVERS, Database, MariadbDatabase, PostgresDatabase, SqliteDatabase

BARS = queries.time_series("BHP", start="2026-03-02", end="2026-03-07")
REPLACED = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",), ("B",)])


@pytest.fixture(params=[*POSTGRES_DRIVERS, "sqlite", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path / "test.db")
    if request.param == "mariadb":
        return MariadbDatabase(request.getfixturevalue("mariadb"))
    return PostgresDatabase(request.getfixturevalue("postgres"), request.param)


@pytest.fixture
def in_postgres(postgres: Any) -> PostgresDatabase:
    return PostgresDatabase(postgres)


class TestEvolve:
    @pytest.mark.parametrize("mode", MODES)
    def test_a_column_that_the_table_lacks_is_added_and_the_log_says_so(self, database, mode, caplog):
        table = "100%" if isinstance(database, PostgresDatabase) else "things"
        quoted = f'"{table}"' if isinstance(database, PostgresDatabase) else table
        load(database, [thing("A", price=Decimal("1.5"))], mode=mode, table=table, load_id="a")
        for name in ("price", "note"):
            database.execute(f"ALTER TABLE {quoted} DROP COLUMN {name}")
        with caplog.at_level(logging.WARNING):
            rows = [thing("B", price=Decimal("2.5"), note="new")]
            load(database, rows, mode=mode, table=table, replaced=REPLACED, load_id="b", evolve=True)
        expected = [("B", Decimal("2.5"), "new")]
        if mode != REPLACE_RANGE:
            expected.insert(0, ("A", None, None))
        assert database.execute(f"SELECT code, price, note FROM {quoted} ORDER BY code") == expected
        assert f"{table}: the table had no column price, note. Added: ALTER TABLE " in caplog.text

    def test_it_has_the_type_and_the_unit_of_a_table_of_ours(self, in_postgres):
        layout = layout_of(BARS)
        load(in_postgres, layout=layout)
        before = self.described(in_postgres)
        in_postgres.execute("ALTER TABLE things DROP COLUMN close_price")
        load(in_postgres, layout=layout, evolve=True)
        assert sorted(self.described(in_postgres)) == sorted(before)

    def described(self, database: PostgresDatabase) -> list[tuple[Any, ...]]:
        return database.execute(
            "SELECT column_name, data_type, col_description('things'::regclass, ordinal_position::int) "
            "FROM information_schema.columns WHERE table_name = 'things'"
        )

    def test_a_part_of_the_key_is_not_added(self, database):
        database.execute("CREATE TABLE things (code char(9), price int, volume int, day date, is_open int, note int)")
        before = database.columns("things")
        with pytest.raises(OpenmarketsDatabaseError, match=r"has no column at, other_fields\. To add it: ALTER"):
            load(database, [thing()], evolve=True)
        assert database.columns("things") == before

    def test_another_querys_table_stays_as_it_is(self, database):
        load(database, layout=layout_of(queries.quotes("BHP")))
        before = database.columns("things")
        with pytest.raises(OpenmarketsDatabaseError, match="looks like the table of another query"):
            load(database, [thing()], evolve=True)
        assert database.columns("things") == before

    def test_a_load_that_fails_leaves_the_table_as_it_was(self, in_postgres):
        load(in_postgres)
        in_postgres.execute("ALTER TABLE things DROP COLUMN note, ADD CHECK (volume > 0)")
        with pytest.raises(OpenmarketsDatabaseError, match="row 1 "):
            load(in_postgres, [thing(volume=-1)], evolve=True)
        assert "note" not in in_postgres.columns("things")

    def test_who_may_not_add_it_gets_the_statement_before_there_are_rows(self, in_postgres):
        load(in_postgres)
        in_postgres.execute("ALTER TABLE things DROP COLUMN note")
        in_postgres.execute("DROP ROLE IF EXISTS writer")
        in_postgres.execute("CREATE ROLE writer LOGIN PASSWORD 'something'")
        in_postgres.execute("GRANT ALL ON things TO writer")
        as_owner = in_postgres.url
        in_postgres.url = as_owner.replace(f"loader:{in_postgres.server.password}", "writer:something")
        said = r"no column note, and the database refuses to add it \(must be owner.*To add it: ALTER TABLE things ADD"
        with pytest.raises(OpenmarketsDatabaseError, match=said) as refused:
            load(in_postgres, evolve=True)
        assert not refused.value.transient
        in_postgres.execute(str(refused.value).partition("To add it: ")[2])
        assert load(in_postgres, [thing()], evolve=True) == 1

    def test_loads_that_find_it_missing_at_once_all_succeed(self, database):
        load(database, [thing("old")])
        for _ in range(3):
            database.execute("ALTER TABLE things DROP COLUMN note")
            with ThreadPoolExecutor(3) as pool:
                loads = [pool.submit(load, database, [thing(code, note="x")], evolve=True) for code in "ABC"]
            assert [each.result() for each in loads] == [1] * 3
        assert notes(database) == [("A", "x"), ("B", "x"), ("C", "x"), ("old", None)]


class TestChoice:
    def test_the_key_and_what_a_range_is_replaced_by_are_always_loaded(self):
        choice = Choice(layout_of(BARS), {"close_price": "close", "time_series_date": "day"})
        names = [column.name for column in choice.layout.columns]
        assert set(names) == {"security_code", "exchange", "data_source", "frequency", "day", "close"}
        assert choice.layout.time == "day"
        assert set(choice.layout.key) == set(names) - {"close"}
        coverage = Coverage("time_series_date", None, None, ("security_code", "exchange"), [])
        assert choice.cover(coverage)[0::3] == ("day", ("security_code", "exchange"))

    def test_no_names_are_all_columns(self):
        assert Choice(layout_of(BARS)).layout == layout_of(BARS)

    def test_columns_are_loaded_by_their_other_names_in_every_mode(self, database):
        names = {"price": "close", "at": "moment", "note": "remark"}
        choice = Choice(THINGS, names)
        assert [column.name for column in choice.layout.columns] == ["code", "moment", "close", "remark"]
        for mode in MODES:
            for note in "12":
                rows = [thing("A", price=Decimal("1.5"), note=note)]
                with_names = [
                    {"code": row["code"], "moment": row["at"], "close": row["price"], "remark": row["note"]}
                    for row in rows
                ]
                load(database, with_names, mode=mode, table=mode, layout=choice.layout, replaced=choice.cover(REPLACED))
            assert database.execute(f"SELECT code, close, remark FROM {mode}") == [("A", Decimal("1.5"), "2")]

    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            (
                {"close": "close_price"},
                r"columns: 'close' is not a column of time_series; did you mean 'close_price'\?",
            ),
            ({"xyzzy": "x"}, r"'xyzzy' is not a column of time_series; its columns are security_code, "),
            ({"close_price": "price", "open_price": "price"}, "'price' would name two columns"),
            ({"close_price": "exchange"}, "'exchange' would name two columns"),
            ({"close_price": "load_id"}, "'load_id' would name two columns, or is a column that the load adds"),
        ],
    )
    def test_names_that_do_not_go_with_the_query_are_refused(self, columns, said):
        with pytest.raises(OpenmarketsQueryError, match=said):
            check_columns(columns, BARS)

    @pytest.mark.parametrize("columns", [{}, ["close_price"], {"close_price": ""}, {"close_price": 'a"b'}, {1: "a"}])
    def test_what_is_no_dict_of_names_is_refused(self, columns):
        with pytest.raises(ValueError, match="columns must be a dict of names"):
            check_columns(columns, BARS)

    def test_a_template_is_not_checked(self):
        check_columns({"close": "x"}, "{{ params.query }}")

    def test_a_record_has_one_column(self, in_postgres):
        choice = Choice(layout_of(queries.request("oms", "GET", "accounts/v1")), {"record": "payload"})
        assert [column.name for column in choice.layout.columns] == ["payload"]
