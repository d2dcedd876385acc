"""Rows into tables of PostgreSQL that somebody has made by hand: keys of other types, views, names in another case."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from openmarkets_provider.exceptions import OpenmarketsDatabaseError
from openmarkets_provider.landing.layout import Column, Layout, Storage
from openmarkets_provider.landing.modes import APPEND, REPLACE_RANGE, UPSERT, Coverage
from tests.landing.test_table_load import NOON, load, thing
from tests.support.databases import POSTGRES_DRIVERS, Database, PostgresDatabase, SqliteDatabase

BARS = Layout(
    "bars",
    (
        Column("code", Storage.TEXT, key=True),
        Column("day", Storage.DATE, key=True),
        Column("at", Storage.TIME, key=True),
        Column("frequency", Storage.TEXT, key=True),
        Column("volume", Storage.INTEGER),
        Column("note", Storage.TEXT),
        Column("other_fields", Storage.JSON),
    ),
    "day",
)
DAY = NOON.date()
REPLACED = Coverage("day", DAY, DAY + timedelta(days=1), ("code", "frequency"), [("A", "Daily"), ("7", "Daily")])


@pytest.fixture(params=POSTGRES_DRIVERS)
def database(request: pytest.FixtureRequest, postgres: Any) -> PostgresDatabase:
    return PostgresDatabase(postgres, request.param)


def bar(code: str = "A", days: int = 0, **fields: Any) -> dict[str, Any]:
    later = timedelta(days=days, microseconds=500_000 * days)
    row = dict.fromkeys(column.name for column in BARS.columns[:-1])
    return {**row, "code": code, "day": DAY + timedelta(days=days), "at": NOON + later, "frequency": "Daily"} | fields


def create_bars(database: Database, key: str = "PRIMARY KEY (code, day, at, frequency)", **columns: str) -> None:
    """Create a table.

    :param columns: types that differ.
    """
    database.execute("CREATE TYPE frequency AS ENUM ('Daily', 'Weekly')")
    database.execute("CREATE DOMAIN often AS frequency")
    kinds = {"code": "text", "day": "date", "at": "timestamptz", "frequency": "text", "volume": "bigint"}
    kinds |= {"note": "text", "other_fields": "jsonb"} | columns
    parts = [*(f"{name} {kind}" for name, kind in kinds.items()), *filter(None, [key])]
    database.execute(f"CREATE TABLE things ({', '.join(parts)})")


def found(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT code::text, day::text, note::text FROM things ORDER BY code, day")


@pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("frequency", "frequency"),
        ("frequency", "often"),
        ("frequency", "varchar(9)"),
        ("day", "text"),
        ("day", "varchar(10)"),
        ("day", "timestamptz"),
        ("at", "text"),
        ("code", "bigint"),
    ],
)
def test_a_key_of_another_type_that_holds_its_values(database, column, kind, mode):
    # Neither may change how a date is written as text.
    database.execute(f"ALTER DATABASE {database.name} SET datestyle = 'German'")
    database.execute(f"ALTER DATABASE {database.name} SET timezone = 'Australia/Sydney'")
    create_bars(database, **{column: kind})
    codes = ("7", "8") if column == "code" else ("A", "B")
    # First into an empty table, then over rows.
    for note in "123":
        rows = [bar(codes[0], 0, note=note), bar(codes[0], 1, note=note), bar(codes[1], 0, note=note)]
        if mode == UPSERT:
            assert load(database, rows, layout=BARS) == 3
        else:
            load(database, rows[:1], mode=mode, layout=BARS, replaced=REPLACED)
    expected = 3 if mode == UPSERT else 1
    assert database.execute("SELECT count(*), min(note), max(note) FROM things") == [(expected, "3", "3")]
    if column == "day" and kind == "text":
        assert database.execute("SELECT min(day) FROM things") == [("2026-03-02",)]


def test_without_a_unique_key_they_are_replaced_too(database):
    create_bars(database, key="", frequency="frequency", day="text")
    for note in "12":
        rows = [bar("A", note=note), bar("a", note=note)]
        load(database, rows, mode=REPLACE_RANGE, layout=BARS, replaced=REPLACED)
    assert found(database) == [("A", "2026-03-02", "2"), ("a", "2026-03-02", "2")]


def test_a_value_that_the_type_does_not_have_is_named(database):
    create_bars(database, frequency="frequency")
    with pytest.raises(OpenmarketsDatabaseError, match=r"row 2 \(code=B, .*invalid input value for enum.*Hourly"):
        load(database, [bar("A"), bar("B", frequency="Hourly")], layout=BARS)
    assert found(database) == []


class TestViews:
    @pytest.fixture
    def view(self, database: PostgresDatabase) -> None:
        load(database, [thing("A", note="old")], table="behind")
        database.execute("CREATE VIEW things AS SELECT * FROM behind")

    def test_an_upsert_needs_the_table_and_the_other_modes_are_named(self, database, view):
        with pytest.raises(OpenmarketsDatabaseError, match=r"things: this is a view.*mode='replace_range'") as refused:
            load(database, [thing()])
        assert "CREATE UNIQUE INDEX" not in str(refused.value)

    def test_its_range_is_replaced(self, database, view):
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",)])
        for note in "12":
            load(database, [thing("A", note=note)], mode=REPLACE_RANGE, replaced=replaced)
        assert database.execute("SELECT code, note FROM behind") == [("A", "2")]

    def test_rows_are_appended(self, database):
        load(database, mode=APPEND, table="behind")
        database.execute("CREATE VIEW things AS SELECT * FROM behind")
        for load_id in ("a", "b", "b"):
            load(database, [thing("A")], mode=APPEND, load_id=load_id)
        assert database.execute("SELECT load_id FROM behind ORDER BY 1") == [("a",), ("b",)]


class TestNames:
    @pytest.mark.parametrize("made", ["CREATE TABLE things (x int)", "CREATE VIEW things AS SELECT 1 AS x"])
    def test_a_table_is_not_created_beside_one_whose_name_differs_by_case(self, database, made):
        database.execute(made)
        with pytest.raises(
            OpenmarketsDatabaseError, match=r"Things: the table does not exist.*another case does: 'things'"
        ):
            load(database, [thing()], table="Things")
        assert len(database.tables()) == 1

    def test_in_another_schema_it_may(self, database):
        database.execute("CREATE TABLE things (x int)")
        database.execute("CREATE SCHEMA market")
        assert load(database, [thing()], table="market.Things") == 1

    def test_sqlite_takes_both_for_one_table(self, tmp_path):
        database = SqliteDatabase(tmp_path / "test.db")
        load(database, [thing("A")])
        with pytest.raises(OpenmarketsDatabaseError, match=r"Things: the table does not exist.*'things'"):
            load(database, [thing("B")], table="Things")
