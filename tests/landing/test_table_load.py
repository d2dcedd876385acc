"""Rows into tables of real databases, without Airflow."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsDatabaseError,
    OpenmarketsError,
    OpenmarketsInvalidResponse,
)
from openmarkets_provider.landing import database as databases
from openmarkets_provider.landing import spool, table_load
from openmarkets_provider.landing.database import Database as LoadDatabase
from openmarkets_provider.landing.database import TableName
from openmarkets_provider.landing.layout import Column, Columns, Layout, Storage, layout_of
from openmarkets_provider.landing.merging import upsert_of
from openmarkets_provider.landing.modes import APPEND, MODES, REPLACE_RANGE, UPSERT, Coverage
from openmarkets_provider.landing.spool import Spool, open_scratch
from openmarkets_provider.landing.table_load import Loader
from openmarkets_provider.landing.tables import rounding_types, stage_of, table_of
from tests.support.batches import values_of
from tests.support.databases import POSTGRES_DRIVERS, Database, MariadbDatabase, PostgresDatabase, SqliteDatabase
from tests.support.postgres import Postgres
from tests.support.queries import of_every_kind

DIALECTS = [postgresql.dialect(), sqlite.dialect(), mysql.dialect()]
THINGS = Layout(
    "things",
    (
        Column("code", Storage.TEXT, key=True),
        Column("at", Storage.TIME, "UTC", key=True),
        Column("price", Storage.DECIMAL),
        Column("volume", Storage.INTEGER),
        Column("day", Storage.DATE),
        Column("is_open", Storage.BOOLEAN),
        Column("note", Storage.TEXT),
        Column("other_fields", Storage.JSON),
    ),
    "at",
)
DAYS = {"start": "2026-03-02", "end": "2026-03-04"}
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


on_mariadb_too = pytest.mark.parametrize("database", [*POSTGRES_DRIVERS, "sqlite", "mariadb"], indirect=True)
by_both_names = pytest.mark.parametrize("database", [*POSTGRES_DRIVERS, "sqlite", "mariadb", "mysql"], indirect=True)
"""The last two are MariaDB by the names that SQLAlchemy has for it."""


@pytest.fixture(params=[*POSTGRES_DRIVERS, "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path / "test.db")
    if request.param in ("mariadb", "mysql"):
        return MariadbDatabase(request.getfixturevalue("mariadb"), request.param)
    return PostgresDatabase(request.getfixturevalue("postgres"), request.param)


@pytest.fixture
def in_postgres(postgres: Postgres) -> PostgresDatabase:
    return PostgresDatabase(postgres)


@pytest.fixture
def in_sqlite(tmp_path: Path) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "test.db")


def thing(code: str | None = "A", hours: float = 0, **fields: Any) -> dict[str, Any]:
    row = dict.fromkeys(column.name for column in THINGS.columns[:-1])
    return {**row, "code": code, "at": NOON + timedelta(hours=hours), **fields}


def engine_of(database: Database) -> sa.Engine:
    return sa.create_engine(database.url, poolclass=NullPool, hide_parameters=True)


def things_in(database: Database) -> LoadDatabase:
    return LoadDatabase(engine_of(database), "things")


def loader_of(database: Database, mode: str = UPSERT) -> Loader:
    return Loader(things_in(database), THINGS, mode)


@contextmanager
def spool_of(*batches: Columns) -> Iterator[Spool[None]]:
    with open_scratch() as file:
        rows: Spool[None] = Spool(file, "here")
        for columns in batches:
            rows.add(None, columns)
        yield rows


def load(
    database: Database,
    *batches: Sequence[dict[str, Any]],
    mode: str = UPSERT,
    table: str = "things",
    layout: Layout = THINGS,
    replaced: Coverage | None = None,
    conn_id: str = "",
    **options: Any,
) -> int:
    engine = engine_of(database)
    try:
        loader = Loader(LoadDatabase(engine, table, conn_id), layout, mode, **{"load_id": "dag/run/task/-1", **options})
        loader.rehearse()
        with spool_of(*(values_of(layout, batch) for batch in batches)) as rows:
            return loader.load(rows, replaced)
    finally:
        engine.dispose()


def time_in(database: Database) -> str:
    return "timestamp with time zone" if isinstance(database, PostgresDatabase) else "datetime"


def create_things(database: Database, *more: str) -> None:
    """Create a table of the user's own."""
    columns = "price numeric, volume bigint, day date, is_open boolean, note text, other_fields text"
    database.execute(f"CREATE TABLE things ({', '.join([f'code text, at {time_in(database)}, {columns}', *more])})")


def add_trigger(
    database: Database, body: str, when: str = "BEFORE INSERT ON things FOR EACH ROW", kind: str = "TRIGGER"
) -> None:
    database.execute(
        f"CREATE FUNCTION react() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$; "
        f"CREATE {kind} t {when} EXECUTE FUNCTION react()"
    )


def notes(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT code, note FROM things ORDER BY code, at, note")


class TestTypes:
    @by_both_names
    def test_a_table_has_the_types_of_the_database_and_keeps_what_is_already_there(self, database):
        assert load(database, [thing()]) == 1
        assert database.columns("things") == [column.name for column in THINGS.columns]
        assert load(database, [thing("B")]) == 1
        assert [code for code, _ in notes(database)] == ["A", "B"]

    def test_on_postgresql_they_are_exact_and_tell_their_unit(self, in_postgres):
        load(in_postgres)
        types = in_postgres.execute(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_name = 'things' ORDER BY ordinal_position"
        )
        assert types == [
            ("code", "text", "NO"),
            ("at", "timestamp with time zone", "NO"),
            ("price", "numeric", "YES"),
            ("volume", "bigint", "YES"),
            ("day", "date", "YES"),
            ("is_open", "boolean", "YES"),
            ("note", "text", "YES"),
            ("other_fields", "jsonb", "YES"),
        ]
        assert in_postgres.execute("SELECT col_description('things'::regclass, 2)") == [("UTC",)]

    @pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
    @pytest.mark.parametrize("mode", MODES)
    def test_every_query_has_a_table_in_every_dialect(self, dialect, mode):
        for query in of_every_kind("2026-03-02", "2026-03-03").values():
            self.assert_has_a_table(layout_of(query), mode, dialect)

    def assert_has_a_table(self, layout: Layout, mode: str, own: Any) -> None:
        table = table_of(layout, TableName.of("market.things"), mode, own.name)
        made = str(CreateTable(table).compile(dialect=own))
        assert ("PRIMARY KEY" in made) == (mode != APPEND)
        assert ("load_id" in made) == (mode == APPEND)
        indexes = [str(CreateIndex(index).compile(dialect=own)) for index in table.indexes]
        assert len(indexes) == (mode == APPEND)
        stage = str(CreateTable(stage_of(layout)).compile(dialect=own))
        assert "PRIMARY KEY" not in stage
        if own.name == "mysql":
            keys = [line for line in made.splitlines() if "NOT NULL" in line]
            assert all("(" in line for line in keys if "CHAR" in line.upper())
            assert not any(" TEXT" in line or "CLOB" in line for line in keys)

    def test_times_keep_their_microseconds_where_the_usual_type_would_not(self):
        def type_of(dialect: Any) -> str:
            table = table_of(THINGS, TableName.of("things"), UPSERT, dialect.name)
            return table.c.at.type.compile(dialect)

        assert type_of(mysql.dialect()) == "DATETIME(6)"

    @pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
    def test_rows_go_over_those_with_the_same_key_in_every_dialect(self, dialect):
        table, stage = table_of(THINGS, TableName.of("things"), UPSERT, dialect.name), stage_of(THINGS)
        chosen = sa.select(*(stage.c[column.name] for column in THINGS.columns)).where(stage.c.load_row == 1)
        made = str(upsert_of(dialect.name)(table, THINGS.key, chosen).compile(dialect=dialect))
        own_words = {"postgresql": "ON CONFLICT", "sqlite": "ON CONFLICT", "mysql": "ON DUPLICATE KEY UPDATE"}
        assert own_words[dialect.name] in made


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> PostgresDatabase:
    return PostgresDatabase(postgres, name="values_test")


class TestValues:
    # PostgreSQL has no NUL in a text, and UTF-8 no half of a character; both are tested below.
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.sampled_from(
        [
            "",
            "\\N",
            "\\.",
            "\t\n\r\\",
            "'; DROP TABLE things; --",
            '"',
            "NULL",
            "%s",
            "\N{PILE OF POO}",
            "\u2028",
            "\x85",
        ]
    )
    decimals = st.decimals(allow_nan=False, allow_infinity=False, places=None) | st.sampled_from(
        [Decimal("1E+30"), Decimal("-0"), Decimal("0.000"), Decimal("123456789.123456789012345678901234567890")]
    )
    things = st.fixed_dictionaries(
        {
            "code": texts,
            "at": st.datetimes(timezones=st.just(UTC)),
            "price": st.none() | decimals.filter(lambda value: abs(value.adjusted()) < 1000),
            "volume": st.none() | st.integers(-(2**63), 2**63 - 1),
            "day": st.none() | st.dates(),
            "is_open": st.none() | st.booleans(),
            "note": st.none() | texts,
            "extra": st.none() | st.dictionaries(texts, st.none() | texts | st.booleans(), min_size=1),
        }
    )

    @settings(max_examples=40, deadline=None)
    @given(rows=st.lists(things, max_size=8, unique_by=lambda row: (row["code"], row["at"])))
    def test_postgresql_gives_back_exactly_what_was_loaded(self, tables, rows):
        tables.execute("DROP TABLE IF EXISTS things")
        assert load(tables, rows) == len(rows)
        with tables.server.connect(tables.name) as connection:
            connection.execute("SET TIME ZONE 'UTC'")
            found = connection.execute("SELECT *, price::text AS digits FROM things").fetchall()
        there = {(code, at): values for code, at, *values in found}
        assert there.keys() == {(row["code"], row["at"]) for row in rows}
        for row in rows:
            price, volume, day, is_open, note, other, digits = there[row["code"], row["at"]]
            assert (price, volume, day, is_open, note) == tuple(
                row[name] for name in ("price", "volume", "day", "is_open", "note")
            )
            assert digits is None or Decimal(digits) == row["price"]
            extra = {} if row["extra"] is None else {"extra": row["extra"]}
            assert (other or {}) == extra

    @settings(max_examples=40, deadline=None)
    @given(rows=st.lists(things, max_size=8, unique_by=lambda row: (row["code"], row["at"])))
    def test_sqlite_gives_back_the_same_but_for_the_digits_of_decimals(self, tmp_path_factory, rows):
        database = SqliteDatabase(tmp_path_factory.mktemp("sqlite") / "test.db")
        fit = [{**row, "price": row["price"] if abs(row["price"] or 0) < 10**19 else None} for row in rows]
        assert load(database, fit) == len(rows)
        found = database.execute("SELECT code, at, price, volume, day, is_open, note FROM things")
        there = {(code, datetime.fromisoformat(at).replace(tzinfo=UTC)): values for code, at, *values in found}
        for row in fit:
            price, volume, day, is_open, note = there[row["code"], row["at"]]
            assert price == (None if row["price"] is None else pytest.approx(float(row["price"]), rel=1e-15, abs=1e-18))
            assert (volume, note) == (row["volume"], row["note"])
            assert day == (None if row["day"] is None else row["day"].isoformat())
            assert is_open == (None if row["is_open"] is None else int(row["is_open"]))

    def test_digits_of_json_are_not_rounded_on_postgresql(self, in_postgres):
        load(in_postgres, [thing(extra=Decimal("1.2345678901234567890123456789"))])
        assert in_postgres.execute("SELECT other_fields ->> 'extra' FROM things") == [
            ("1.2345678901234567890123456789",)
        ]

    def test_times_are_utc_whatever_their_zone_and_the_sessions(self, in_postgres):
        in_postgres.execute(f"ALTER DATABASE {in_postgres.name} SET timezone = 'Australia/Sydney'")
        in_postgres.execute(
            "CREATE TABLE things (code varchar(9), at timestamp, price double precision, volume int, day timestamp, "
            "is_open boolean, note varchar(3), other_fields text, PRIMARY KEY (at, code))"
        )
        load(in_postgres, [thing(price=Decimal("1.5"), volume=7, day=date(2026, 3, 2), note="abc", extra=1)])
        assert in_postgres.execute("SELECT * FROM things") == [
            ("A", NOON.replace(tzinfo=None), 1.5, 7, NOON.replace(tzinfo=None, hour=0), None, "abc", '{"extra": 1}')
        ]

    def test_other_databases_round_to_18_digits_and_say_so_once_a_column(self, in_sqlite, caplog):
        rows = [thing(str(number), price=Decimal("0.1234567890123456785")) for number in range(3)]
        load(in_sqlite, rows[:2], rows[2:])
        assert in_sqlite.execute("SELECT DISTINCT price FROM things") == [(0.123456789012345678,)]
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "things: column price is rounded to 18 digits after the point."
        ]

    def test_other_databases_refuse_a_number_that_is_too_large_and_name_it(self, in_sqlite):
        rows = [thing(str(number)) for number in range(3)] + [thing("big", price=Decimal("123456789012345678901"))]
        with pytest.raises(
            OpenmarketsInvalidResponse, match=r"column price, row 4 \(code big.*20 digits before the point"
        ):
            load(in_sqlite, rows)
        assert in_sqlite.tables() == []


class TestModes:
    @on_mariadb_too
    def test_an_upsert_changes_what_is_there_adds_the_rest_and_keeps_columns_of_the_user(self, database):
        load(database, [thing("A", note="old"), thing("B", note="old")])
        database.execute("ALTER TABLE things ADD COLUMN mine text")
        database.execute("UPDATE things SET mine = 'kept'")
        assert load(database, [thing("B", note="new"), thing("C", note="new")]) == 2
        assert database.execute("SELECT code, note, mine FROM things ORDER BY code") == [
            ("A", "old", "kept"),
            ("B", "new", "kept"),
            ("C", "new", None),
        ]

    @by_both_names
    def test_an_upsert_updates_every_other_column_of_the_row_with_the_whole_key(self, database):
        old = {"price": Decimal("1.5"), "volume": 1, "day": date(2026, 3, 2), "is_open": False, "note": "old"}
        new = {"price": Decimal("2.5"), "volume": 2, "day": date(2026, 3, 3), "is_open": True, "note": "new"}
        load(database, [thing("A", hours, **old) for hours in (0, 1)] + [thing("B", 0, **old)])
        assert load(database, [thing("A", 1, **new, extra=1)]) == 1
        rows = database.execute(
            "SELECT code, price, volume, CAST(day AS char(10)), is_open, note, other_fields IS NULL "
            "FROM things ORDER BY code, at"
        )
        before = ("A", Decimal("1.5"), 1, "2026-03-02", False, "old", True)
        assert rows == [before, ("A", Decimal("2.5"), 2, "2026-03-03", True, "new", False), ("B", *before[1:])]

    @on_mariadb_too
    @pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
    def test_of_rows_with_one_key_the_last_one_counts_and_the_log_says_so(self, database, mode, caplog):
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",)])
        first, second = [thing(note="1"), thing("B", note="2"), thing(note="3")], [thing("C"), thing(note="4")]
        assert load(database, first, second, mode=mode, replaced=replaced) == 3
        assert notes(database) == [("A", "4"), ("B", "2"), ("C", None)]
        assert "2 of 5 rows have the same key (code, at) as a later row" in caplog.text

    @on_mariadb_too
    def test_replacing_takes_away_what_is_covered_and_nothing_else(self, database):
        load(database, [thing(code, hours, note="old") for code in "ABC" for hours in (-1, 0, 1, 2)])
        replaced = Coverage("at", NOON, NOON + timedelta(hours=2), ("code",), [("A",), ("B",)])
        assert load(database, [thing("A", 0, note="new")], mode=REPLACE_RANGE, replaced=replaced) == 1
        left = database.execute("SELECT code, note FROM things ORDER BY code, at")
        assert left == [
            *[("A", "old"), ("A", "new"), ("A", "old")],
            *[("B", "old")] * 2,
            *[("C", "old")] * 4,
        ]

    @on_mariadb_too
    def test_replacing_by_nothing_empties_the_range(self, database):
        load(database, [thing(code) for code in "AB"])
        replaced = Coverage("at", NOON, NOON + timedelta(hours=2), ("code",), [("A",)])
        assert load(database, mode=REPLACE_RANGE, replaced=replaced) == 0
        assert notes(database) == [("B", None)]

    def test_without_a_unique_key_rows_that_a_reply_names_otherwise_are_there_once(self, database):
        create_things(database)
        # Asked for in small letters, and answered in capitals.
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("a",)])
        for note in "12":
            load(database, [thing("A", note=note)], mode=REPLACE_RANGE, replaced=replaced)
        assert notes(database) == [("A", "2")]

    def test_replacing_needs_no_key_in_a_table_of_the_user(self, database):
        create_things(database)
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",)])
        for _ in range(2):
            load(database, [thing(note="1"), thing(note="2")], mode=REPLACE_RANGE, replaced=replaced)
        assert notes(database) == [("A", "2")]
        with pytest.raises(OpenmarketsDatabaseError, match=r"CREATE UNIQUE INDEX things_key ON things \(code, at\);"):
            load(database, [thing()])

    @on_mariadb_too
    def test_appending_keeps_every_load_and_replaces_the_same_ones(self, database):
        for load_id, note in (("one", "1"), ("two", "2"), ("one", "3")):
            assert load(database, [thing(note=note), thing(note=note)], mode=APPEND, load_id=load_id) == 2
        left = database.execute("SELECT code, note, load_id FROM things ORDER BY load_id")
        assert left == [("A", "3", "one")] * 2 + [("A", "2", "two")] * 2
        indexes = {
            index["name"]: index["column_names"] for index in sa.inspect(engine_of(database)).get_indexes("things")
        }
        assert indexes == {"ix_things_load_id": ["load_id"]}

    def test_records_without_a_schema_are_appended_as_they_are(self, database):
        layout = layout_of(queries.request("oms", "GET", "accounts/v1"))
        load(database, [{"a": [1, "\\\t\n"]}, "x", None, 1.5], mode=APPEND, layout=layout)
        found = database.execute("SELECT CAST(record AS text) FROM things")
        assert [text.replace(" ", "") for (text,) in found] == ['{"a":[1,"\\\\\\t\\n"]}', '"x"', "null", "1.5"]


class TestTablesThatAreThere:
    @on_mariadb_too
    def test_missing_columns_are_named_with_the_statement_that_adds_them(self, database):
        load(database, [thing()])
        for name in ("price", "note"):
            database.execute(f"ALTER TABLE things DROP COLUMN {name}")
        with pytest.raises(OpenmarketsDatabaseError, match=r"has no column price, note\. To add it: ALTER") as refused:
            load(database, [thing("B", note="new")])
        assert not refused.value.transient
        for statement in str(refused.value).partition("To add it: ")[2].split("; "):
            database.execute(statement)
        load(database, [thing("B", note="new")])
        assert notes(database) == [("A", None), ("B", "new")]

    @pytest.mark.parametrize("key", ["UNIQUE (at, code)", "PRIMARY KEY (at, code)", ""])
    def test_any_unique_key_of_these_columns_will_do_and_no_other(self, database, key):
        create_things(database, *filter(None, [key]))
        if not key:
            for useless in ("(code)", "(code, at, note)", "(code, at) WHERE volume > 0"):
                database.execute(f"CREATE UNIQUE INDEX i{len(useless)} ON things {useless}")
            with pytest.raises(
                OpenmarketsDatabaseError, match=r"needs a primary key.*exactly the columns code, at"
            ) as refused:
                load(database, [thing()])
            database.execute(str(refused.value).partition("To add one: ")[2])
        load(database, [thing(note="1")])
        load(database, [thing(note="2")])
        assert notes(database) == [("A", "2")]

    @pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
    @pytest.mark.parametrize("kind", ["UNIQUE", "PRIMARY KEY"])
    @pytest.mark.parametrize("when", ["DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
    def test_one_that_may_be_looked_at_later_will_not_do(self, postgres, driver, when, kind):
        database = PostgresDatabase(postgres, driver)
        load(database)
        database.execute(
            f"ALTER TABLE things DROP CONSTRAINT things_pkey, ADD CONSTRAINT late {kind} (code, at) {when}"
        )
        loader = loader_of(database)
        with pytest.raises(OpenmarketsDatabaseError, match=r"exactly the columns code, at.*To add one: ") as refused:
            loader.rehearse()
        database.execute(str(refused.value).partition("To add one: ")[2])
        # PostgreSQL also refuses an upsert while the constraint exists.
        with pytest.raises(OpenmarketsDatabaseError, match="exactly the columns code, at"):
            loader.rehearse()
        with pytest.raises(OpenmarketsDatabaseError, match="code, at is unique in the table"):
            loader_of(database, APPEND).rehearse()
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",)])
        for note in "12":
            load(database, [thing(note="0"), thing(note=note)], mode=REPLACE_RANGE, replaced=replaced)
        assert notes(database) == [("A", "2")]
        database.execute("ALTER TABLE things DROP CONSTRAINT late")
        load(database, [thing(note="3")])
        assert notes(database) == [("A", "3")]

    def test_its_name_may_have_a_percent_sign(self, database):
        for _ in range(2):
            assert load(database, [thing()], table="100%") == 1
        database.execute('ALTER TABLE "100%" DROP COLUMN note')
        with pytest.raises(OpenmarketsDatabaseError, match=r'ALTER TABLE "100%" ADD note'):
            load(database, [thing()], table="100%")
        with pytest.raises(OpenmarketsDatabaseError, match=r'or: CREATE TABLE "50%"'):
            load(database, [thing()], table="50%", create=False)

    @on_mariadb_too
    def test_it_is_there_when_it_has_a_row(self, database):
        things = things_in(database)
        assert not things.has_rows()
        load(database)
        assert not things.has_rows()
        load(database, [thing()])
        assert things.has_rows()
        things.engine.dispose()

    @on_mariadb_too
    def test_a_table_that_may_not_be_made_is_shown(self, database):
        with pytest.raises(
            OpenmarketsDatabaseError, match=r"does not exist\. create_table=True creates it, or: CREATE"
        ) as no:
            load(database, [thing()], create=False)
        database.execute(str(no.value).partition("or: ")[2])
        assert load(database, [thing()], create=False) == 1

    def test_a_schema_that_is_not_there_is_named(self, database):
        # SQLAlchemy 1.4 passes on SQLite's own words.
        is_told_by_sqlite = isinstance(database, SqliteDatabase) and sa.__version__ < "2"
        report = 'unknown database "market"' if is_told_by_sqlite else "schema 'market' does not exist"
        with pytest.raises(OpenmarketsDatabaseError, match=rf"market\.things: {report}"):
            load(database, [thing()], table="market.things")

    def test_a_schema_that_is_there_is_used(self, in_postgres):
        in_postgres.execute("CREATE SCHEMA market")
        for _ in range(2):
            load(in_postgres, [thing()], table="market.things")
        assert in_postgres.execute("SELECT count(*) FROM market.things") == [(1,)]
        assert in_postgres.tables() == []

    def test_a_rehearsal_finds_out_whether_the_table_may_be_made_and_leaves_nothing(self, in_postgres):
        in_postgres.execute("DROP ROLE IF EXISTS nobody")
        in_postgres.execute("CREATE ROLE nobody LOGIN PASSWORD 'nothing'")
        in_postgres.url = in_postgres.url.replace(f"loader:{in_postgres.server.password}", "nobody:nothing")
        with pytest.raises(OpenmarketsDatabaseError, match="permission denied for schema public") as refused:
            loader_of(in_postgres).rehearse()
        assert (refused.value.transient, refused.value.row) == (False, None)
        in_postgres.execute("GRANT CREATE ON SCHEMA public TO nobody")
        loader_of(in_postgres).rehearse()
        assert in_postgres.tables() == []

    @pytest.mark.parametrize(
        ("mode", "change", "said"),
        [
            (
                UPSERT,
                "ALTER TABLE things ALTER COLUMN volume TYPE text[] USING NULL",
                'column "volume" is of type text',
            ),
            (UPSERT, "REVOKE INSERT ON things FROM loader", "permission denied for table things"),
            (APPEND, "REVOKE SELECT ON things FROM loader", "permission denied for table things"),
            (APPEND, "REVOKE DELETE ON things FROM loader", "permission denied for table things"),
            (REPLACE_RANGE, "REVOKE DELETE ON things FROM loader", "permission denied for table things"),
            (
                UPSERT,
                "REVOKE TEMPORARY ON DATABASE test FROM public, loader",
                "permission denied to create temporary tables",
            ),
            (
                UPSERT,
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
                "AS $$ BEGIN RAISE 'books are closed'; END $$; "
                "CREATE TRIGGER t BEFORE INSERT ON things FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
                r"^things: books are closed\. Nothing was changed\.$",
            ),
        ],
    )
    def test_a_rehearsal_finds_out_what_would_be_refused_whatever_the_rows_are(self, in_postgres, mode, change, said):
        in_postgres.execute("DROP ROLE IF EXISTS somebody")
        in_postgres.execute("CREATE ROLE somebody LOGIN PASSWORD 'something'")
        in_postgres.execute("GRANT CREATE ON SCHEMA public TO somebody")
        as_owner = in_postgres.url
        in_postgres.url = as_owner.replace(f"loader:{in_postgres.server.password}", "somebody:something")
        load(in_postgres, mode=mode)
        in_postgres.execute(change.replace("loader", "somebody"))
        try:
            with pytest.raises(OpenmarketsDatabaseError, match=said) as refused:
                loader_of(in_postgres, mode).rehearse()
        finally:
            in_postgres.execute("GRANT TEMPORARY ON DATABASE test TO public")
        assert (refused.value.row, refused.value.transient) == (None, False)

    def test_a_database_that_undoes_no_table_is_not_asked_to_make_one(self, in_postgres, monkeypatch):
        monkeypatch.setattr(table_load, "_UNDOES_DDL", ())
        in_postgres.execute("REVOKE CREATE ON SCHEMA public FROM public")
        loader_of(in_postgres).rehearse()

    def test_a_table_that_lacks_most_columns_is_another_querys(self, database):
        load(database, layout=layout_of(queries.quotes("BHP")))
        with pytest.raises(
            OpenmarketsDatabaseError,
            match=r"looks like the table of another query: it lacks 7 of the 8 columns of things",
        ):
            load(database, [thing()])

    @pytest.mark.parametrize("key", ["PRIMARY KEY (code, at)", "UNIQUE (code, at)", "UNIQUE (at)"])
    def test_rows_are_not_appended_where_a_key_is_unique(self, database, key):
        database.execute(f"CREATE TABLE things (code text, at {time_in(database)}, {key})")
        with pytest.raises(OpenmarketsDatabaseError, match=r"at is unique in the table.*Use another table") as refused:
            load(database, [thing()], mode=APPEND)
        assert "ALTER TABLE" not in str(refused.value)

    def test_rows_are_appended_where_something_else_is_unique(self, database):
        load(database, mode=APPEND)
        database.execute("CREATE UNIQUE INDEX one ON things (load_id, code, at)")
        for load_id in "ab":
            load(database, [thing()], mode=APPEND, load_id=load_id)
        assert len(notes(database)) == 2

    @on_mariadb_too
    @pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
    def test_a_table_for_appending_takes_no_other_mode(self, database, mode):
        load(database, mode=APPEND)
        with pytest.raises(
            OpenmarketsDatabaseError, match=r"the table was created for mode='append'.*Use another table"
        ):
            load(database, mode=mode)

    def test_a_column_of_the_user_that_needs_a_value_is_found_before_there_are_rows(self, database):
        load(database)
        database.execute("ALTER TABLE things ADD source text DEFAULT 'us' NOT NULL")
        assert load(database, [thing()]) == 1
        database.execute("DROP TABLE things")
        create_things(database, "source text NOT NULL", "PRIMARY KEY (code, at)")
        with pytest.raises(OpenmarketsDatabaseError, match=r"column source is NOT NULL without a default"):
            loader_of(database).rehearse()

    @pytest.mark.parametrize(
        ("postgresql", "sqlite"),
        [
            ("serial PRIMARY KEY", "INTEGER PRIMARY KEY NOT NULL"),
            ("int NOT NULL GENERATED ALWAYS AS IDENTITY", "int NOT NULL DEFAULT 7"),
            ("int NOT NULL GENERATED ALWAYS AS (1 + 1) STORED", "int NOT NULL GENERATED ALWAYS AS (1 + 1)"),
        ],
    )
    def test_a_column_of_the_user_that_fills_itself_is_in_nobodys_way(self, database, postgresql, sqlite):
        own = postgresql if isinstance(database, PostgresDatabase) else sqlite
        create_things(database, f"id {own}", "UNIQUE (code, at)")
        assert load(database, [thing()]) == 1


def test_a_server_that_is_too_old_is_refused_with_another_way(in_postgres):
    things = things_in(in_postgres)
    with things.transaction(commit=False):
        pass
    # As Amazon Redshift says of itself.
    things.engine.dialect.server_version_info = (8, 0, 2)
    with pytest.raises(
        OpenmarketsDatabaseError, match=r"needs PostgreSQL .* the server is 8\.0\.2 .*the database's own operator"
    ) as refused:
        Loader(things, THINGS, UPSERT).rehearse()
    assert not refused.value.transient
    things.engine.dispose()


class TestTypesOfTheUser:
    """What a database would round without a word is refused; what keeps every digit is not."""

    @pytest.mark.parametrize(
        ("column", "kind", "needed"),
        [
            ("price", "integer", "NUMERIC"),
            ("price", "bigint", "NUMERIC"),
            ("price", "numeric(10, 0)", "NUMERIC"),
            ("price", "whole", "NUMERIC"),
            ("at", "date", "TIMESTAMP WITH TIME ZONE"),
            ("at", "time", "TIMESTAMP WITH TIME ZONE"),
        ],
    )
    def test_a_type_that_holds_none_is_refused_before_there_are_rows(self, in_postgres, column, kind, needed):
        load(in_postgres)
        in_postgres.execute("CREATE DOMAIN whole AS integer")
        in_postgres.execute(f"ALTER TABLE things ALTER COLUMN {column} TYPE {kind}")
        with pytest.raises(
            OpenmarketsDatabaseError, match=f"column {column} has the type .*would round values. Change it to {needed}"
        ):
            loader_of(in_postgres).rehearse()

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize(
        ("column", "kind", "fits", "does_not"),
        [
            ("price", "numeric(4, 1)", Decimal("49.5"), Decimal("49.06")),
            ("price", "numeric(4, 1)", Decimal("49.5"), Decimal("12345")),
            ("price", "numeric(38, 18)", Decimal("1E-18"), Decimal("1E-19")),
            ("price", "cents", Decimal("49.06"), Decimal("49.065")),
            ("price", "money", Decimal("49.06"), Decimal("49.065")),
            ("price", "real", Decimal("49.06"), Decimal("123456.78")),
            ("volume", "real", 2**16, 2**24 + 1),
            ("volume", "numeric(5, -2)", 1200, 1250),
            ("at", "timestamp(0)", NOON, NOON.replace(microsecond=1)),
            ("at", "timestamptz(3)", NOON.replace(microsecond=1000), NOON.replace(microsecond=1)),
        ],
    )
    def test_a_row_that_would_be_rounded_is_named(self, in_postgres, mode, column, kind, fits, does_not):
        load(in_postgres, mode=mode)
        in_postgres.execute("CREATE DOMAIN cents AS numeric(12, 2)")
        in_postgres.execute(f"ALTER TABLE things ALTER COLUMN {column} TYPE {kind} USING NULL")
        rows = [thing("A", **{column: fits}), thing("B", **{column: does_not}), thing("C")]
        assert load(in_postgres, rows[::2], mode=mode) == 2
        with pytest.raises(
            OpenmarketsDatabaseError, match=r"things: the database refuses row 2 \(code=B, .*"
        ) as refused:
            load(in_postgres, rows[:1], rows[1:], mode=mode)
        assert (refused.value.row, refused.value.transient) == (2, False)
        if does_not != 12345:
            assert re.search(rf"{column} is .*, which its column \(.*\) would round\. Change", str(refused.value))
        assert [code for code, _ in notes(in_postgres)] == ["A", "C"]

    @pytest.mark.parametrize("kind", ["numeric(8, 4)", "numeric(38, 18)", "text", "double precision", "float(53)"])
    def test_a_type_that_holds_them_will_do(self, in_postgres, kind):
        load(in_postgres)
        in_postgres.execute(f"ALTER TABLE things ALTER COLUMN price TYPE {kind}")
        load(in_postgres, [thing(price=Decimal("49.0625"))])
        assert in_postgres.execute("SELECT price::text FROM things")[0][0].rstrip("0") == "49.0625"

    def test_the_types_of_a_table_of_our_own_are_not_looked_at_value_by_value(self, in_postgres):
        load(in_postgres)
        with engine_of(in_postgres).connect() as connection:
            ours = table_of(THINGS, TableName.of("things"), UPSERT, "postgresql")
            assert rounding_types(connection, ours, THINGS) == {}

    def test_double_precision_is_taken_as_it_is(self, in_postgres):
        load(in_postgres)
        in_postgres.execute("ALTER TABLE things ALTER COLUMN price TYPE double precision")
        load(in_postgres, [thing(price=Decimal("12.345678901234567891"))])
        assert in_postgres.execute("SELECT price FROM things") == [(12.345678901234567891,)]

    @pytest.mark.parametrize("kind", ["integer", "numeric(4, 1)", "real"])
    def test_sqlite_keeps_the_digits_whatever_the_type(self, in_sqlite, kind):
        columns = "volume bigint, day date, is_open boolean, note text, other_fields text, PRIMARY KEY (code, at)"
        in_sqlite.execute(f"CREATE TABLE things (code text, at date, price {kind}, {columns})")
        load(in_sqlite, [thing(price=Decimal("49.06"))])
        assert in_sqlite.execute("SELECT price, at FROM things") == [(49.06, "2026-03-02 12:00:00.000000")]


class TestBadRows:
    """If a database refuses a value, the row is named, and nothing is changed."""

    @pytest.fixture
    def before(self, database: Database) -> Iterator[None]:
        load(database, [thing(str(number), note="old") for number in range(4)])
        yield
        assert notes(database) == [(str(number), "old") for number in range(4)]
        assert database.tables() == ["things"]
        load(database, [thing("4", note="new")])
        database.execute("DELETE FROM things WHERE note = 'new'")

    @pytest.mark.parametrize("place", [0, 1, 2, 4, 10, 11])
    def test_a_constraint_of_the_user(self, in_postgres, place):
        load(in_postgres)
        in_postgres.execute("ALTER TABLE things ADD CONSTRAINT sold CHECK (volume > 0)")
        rows = [thing(f"C{number}", volume=-1 if number == place else 1) for number in range(12)]
        with pytest.raises(OpenmarketsDatabaseError) as refused:
            load(in_postgres, rows[:5], rows[5:])
        assert str(refused.value).startswith(
            f"things: the database refuses row {place + 1} (code=C{place}, at=2026-03-02 12:00:00+00:00): "
        )
        assert 'violates check constraint "sold"' in str(refused.value)
        assert (refused.value.row, refused.value.key["code"]) == (place + 1, f"C{place}")
        assert not refused.value.transient
        assert in_postgres.execute("SELECT count(*) FROM things") == [(0,)]

    @pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
    @pytest.mark.parametrize("constraint", ["ADD CHECK (volume > 0)", "ALTER note SET NOT NULL"])
    def test_what_else_is_in_the_row_is_not_told(self, postgres, driver, constraint):
        database = PostgresDatabase(postgres, driver)
        load(database)
        database.execute(f"ALTER TABLE things {constraint}")
        row = thing(volume=-1, price=Decimal("98765.43"))
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 1 \(code=A, .*violates.*constraint") as refused:
            load(database, [row])
        assert "98765.43" not in "".join(traceback.format_exception(refused.value))

    def test_a_unique_column_of_the_user_that_two_rows_share(self, database, before):
        database.execute("CREATE UNIQUE INDEX volumes ON things (volume)")
        rows = [thing(f"C{number}", volume=number % 7) for number in range(9)]
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 8 \(code=C7.*(volumes|volume)"):
            load(database, rows)

    @pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
    def test_a_unique_column_of_the_user_by_which_mariadb_would_change_another_row(self, mariadb, mode):
        database = MariadbDatabase(mariadb)
        load(database, [thing("A", note="old", volume=1)])
        database.execute("CREATE UNIQUE INDEX volumes ON things (volume)")
        with pytest.raises(
            OpenmarketsDatabaseError, match=r"things: volume is another unique key of the table"
        ) as refused:
            load(database, [thing("B", note="new", volume=1)], mode=mode)
        assert not refused.value.transient
        assert notes(database) == [("A", "old")]
        # Neither of these can be another row's.
        database.execute("DROP INDEX volumes ON things")
        database.execute("CREATE UNIQUE INDEX wider ON things (code, at, volume)")
        database.execute("ALTER TABLE things ADD id int NOT NULL AUTO_INCREMENT UNIQUE")
        load(database, [thing("B", note="new", volume=1)], mode=mode)
        assert notes(database) == [("A", "old"), ("B", "new")]

    def test_a_trigger_of_the_user(self, in_postgres):
        load(in_postgres)
        add_trigger(in_postgres, "IF NEW.volume < 0 THEN RAISE EXCEPTION 'no short volumes'; END IF")
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 2 \(code=B.*no short volumes"):
            load(in_postgres, [thing("A"), thing("B", volume=-1)])

    @on_mariadb_too
    def test_a_text_that_is_none(self, database, before):
        rows = [thing(f"C{number}", note="\ud800" if number == 5 else "fine") for number in range(7)]
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 6 \(code=C5.*surrogates not allowed"):
            load(database, rows)

    def test_a_nul_which_postgresql_can_not_hold(self, in_postgres):
        rows = [thing(f"C{number}", note="a\0b" if number == 5 else "fine") for number in range(7)]
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 6 \(code=C5.*invalid byte sequence.*0x00"):
            load(in_postgres, rows)
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 1 \(code=A.*\\u0000"):
            load(in_postgres, [thing(extra="a\0b")])
        assert in_postgres.tables() == []

    @on_mariadb_too
    def test_a_key_that_is_missing(self, database, before):
        with pytest.raises(
            OpenmarketsInvalidResponse,
            match=r"column code, row 3 .* is not allowed, because the column is part of the key",
        ):
            load(database, [thing("A"), thing("B")], [thing(None)])

    def test_a_record_without_a_key(self, in_postgres):
        layout = layout_of(queries.request("oms", "GET", "accounts/v1"))
        load(in_postgres, mode=APPEND, layout=layout)
        in_postgres.execute("ALTER TABLE things ADD CONSTRAINT few CHECK (record <> '3')")
        with pytest.raises(OpenmarketsDatabaseError, match=r'refuses row 3: .*"few"') as refused:
            load(in_postgres, [1, 2, 3, 4], mode=APPEND, layout=layout)
        assert (refused.value.row, refused.value.key) == (3, {})

    def test_a_number_that_does_not_fit_into_a_column_of_the_user(self, in_postgres):
        load(in_postgres)
        in_postgres.execute("ALTER TABLE things ALTER COLUMN volume TYPE integer")
        with pytest.raises(OpenmarketsDatabaseError, match=r"row 2 \(code=B.*integer out of range"):
            load(in_postgres, [thing("A"), thing("B", volume=2**40)])

    def test_rows_that_are_refused_only_together(self, in_postgres):
        load(in_postgres)
        add_trigger(
            in_postgres,
            "IF (SELECT count(*) FROM added) > 2 THEN RAISE EXCEPTION 'too many'; END IF",
            "AFTER INSERT ON things REFERENCING NEW TABLE AS added FOR EACH STATEMENT",
        )
        with pytest.raises(OpenmarketsDatabaseError, match="the database refuses the rows: too many") as refused:
            load(in_postgres, [thing(code) for code in "ABCD"])
        assert refused.value.row is None
        assert in_postgres.execute("SELECT count(*) FROM things") == [(0,)]


class TestTwoAtOnce:
    @on_mariadb_too
    @pytest.mark.parametrize("mode", MODES)
    def test_loads_of_a_table_that_is_not_there_yet(self, database, mode):
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",), ("B",)])
        rows = [thing(code, note="x") for code in "AB"]

        def work(number: int) -> int:
            return load(database, rows, mode=mode, replaced=replaced)

        for _ in range(4):
            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(work, range(4))) == [2] * 4
            assert notes(database) == [("A", "x"), ("B", "x")]
            database.execute("DROP TABLE things")

    def test_a_load_that_waits_in_vain_for_another_one_is_a_failure_that_may_pass(self, mariadb):
        def lose_patience(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> Any:
            is_lock = "get_lock" in statement
            return statement, {
                name: 0 if value == 600 else value for name, value in values.items()
            } if is_lock else values

        database = MariadbDatabase(mariadb)
        load(database, [thing(note="old")])
        other, impatient = things_in(database), things_in(database)
        sa.event.listen(impatient.engine, "before_cursor_execute", lose_patience, retval=True)
        with (
            spool_of(values_of(THINGS, [thing(note="new")])) as rows,
            other.transaction(commit=False),
            pytest.raises(OpenmarketsDatabaseError, match="another load of the table") as refused,
        ):
            Loader(impatient, THINGS, UPSERT).load(rows)
        assert refused.value.transient
        assert notes(database) == [("A", "old")]
        for each in (other, impatient):
            each.engine.dispose()

    def test_a_load_waits_ten_minutes_for_a_lock_at_the_most(self, in_postgres):
        things = things_in(in_postgres)
        with things.transaction(commit=False) as connection:
            assert connection.execute(sa.text("SHOW lock_timeout")).scalar_one() == "10min"
        things.engine.dispose()

    @pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
    def test_a_load_that_waits_can_be_ended(self, postgres, driver):
        database = PostgresDatabase(postgres, driver)
        load(database, [thing(note="old")])
        things, new = things_in(database), values_of(THINGS, [thing(note="new")])
        with spool_of(new) as rows, ThreadPoolExecutor(1) as pool, postgres.connect("test") as blocker:
            blocker.autocommit = False
            blocker.execute("UPDATE things SET note = 'never'")
            loading = pool.submit(Loader(things, THINGS, UPSERT).load, rows)
            while not any(waits_for == "Lock" for _, _, waits_for, _ in database.others()):
                assert not loading.done()
            things.cancel()
            with pytest.raises(OpenmarketsDatabaseError, match="canceling statement") as cancelled:
                loading.result(60)
            blocker.rollback()
        assert cancelled.value.transient
        assert notes(database) == [("A", "old")]

    def test_a_database_that_stays_locked_is_a_failure_that_may_pass(self, in_sqlite, monkeypatch):
        monkeypatch.setattr(databases, "BUSY_WAIT", 0)
        load(in_sqlite, [thing(note="old")])
        other = engine_of(in_sqlite).connect()
        other.connection.driver_connection.isolation_level = None
        other.exec_driver_sql("BEGIN IMMEDIATE")
        loader = loader_of(in_sqlite)
        with spool_of(values_of(THINGS, [thing(note="new")])) as rows:
            for attempt, was_sent in ((loader.rehearse, False), (lambda: loader.load(rows), True)):
                with pytest.raises(
                    OpenmarketsDatabaseError, match=r"things: database is locked\. Nothing was"
                ) as locked:
                    attempt()
                assert (locked.value.transient, locked.value.sent) == (True, was_sent)
        other.close()
        assert notes(in_sqlite) == [("A", "old")]


def test_no_secret_is_in_what_is_said_of_a_database_that_lets_nobody_in(in_postgres):
    in_postgres.url = in_postgres.url.replace(in_postgres.server.password, "wrong-password")
    with pytest.raises(OpenmarketsDatabaseError, match="password authentication failed") as refused:
        load(in_postgres, [thing()])
    assert (refused.value.transient, refused.value.sent) == (True, False)
    assert "wrong-password" not in f"{refused.value} {refused.value.__cause__} {refused.value.__cause__.__cause__}"


def test_a_failure_names_the_connection_and_ends_in_one_mark(in_postgres):
    in_postgres.url = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", in_postgres.url)
    with pytest.raises(OpenmarketsDatabaseError, match=r"things \(conn_id 'db'\): conn.* Nothing was ch") as down:
        load(in_postgres, [thing()], conn_id="db")
    assert not re.search(r"[?!.]\.( |$)", str(down.value))


@pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
@pytest.mark.parametrize(("state", "passes"), [("55000", False), ("55P02", False), ("55006", True), ("55P03", True)])
def test_of_the_states_of_an_object_only_those_that_end_by_themselves_may_pass(postgres, driver, state, passes):
    database = PostgresDatabase(postgres, driver)
    load(database)
    add_trigger(database, f"RAISE SQLSTATE '{state}'")
    with pytest.raises(OpenmarketsDatabaseError, match=state) as refused:
        load(database, [thing()])
    assert refused.value.transient == passes


@pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
@pytest.mark.parametrize(
    ("at_commit", "said", "passes"),
    [
        ("RAISE 'books are closed'", r"books are closed\. Nothing was changed\.$", False),
        (
            "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60)",
            r"\. It is unknown whether the rows were committed; it is safe to run the task again\.$",
            True,
        ),
    ],
    ids=["refused", "lost"],
)
def test_that_nothing_was_changed_is_not_said_when_the_answer_to_the_commit_is_lost(
    postgres, driver, at_commit, said, passes
):
    database = PostgresDatabase(postgres, driver)
    load(database)
    when = "AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    add_trigger(database, at_commit, when, kind="CONSTRAINT TRIGGER")
    with pytest.raises(OpenmarketsDatabaseError, match=said) as failed:
        load(database, [thing()])
    assert failed.value.transient == passes


@pytest.mark.parametrize("place", ["/no/test.db?uri=true", "/test.db?mode=ro&uri=true", "?uri=true"])
def test_a_file_that_can_not_be_written_does_not_pass(in_sqlite, place):
    load(in_sqlite)
    in_sqlite.url = in_sqlite.url.replace("sqlite:///", "sqlite:///file:").replace("/test.db", place)
    with pytest.raises(OpenmarketsDatabaseError, match=r"things: (unable to open|attempt to write a read)") as refused:
        load(in_sqlite, [thing()])
    assert (refused.value.transient, refused.value.sent) == (False, False)


def test_progress_is_told(in_sqlite, monkeypatch, caplog):
    monkeypatch.setattr(table_load, "PROGRESS_EVERY", 0)
    monkeypatch.setattr(spool, "MAX_ROWS", 2)
    with caplog.at_level(logging.INFO):
        load(in_sqlite, [thing("A"), thing("B")], [thing("C")])
    assert "things: 2 of 3 rows sent, " in caplog.text
    assert "things: all 3 rows are sent; moving them into the table." in caplog.text


def test_an_error_of_our_own_passes_as_it_is(in_sqlite):
    class Broken(Spool):
        def batches(self, key: None) -> Any:
            raise OpenmarketsError("of another kind")

    with open_scratch() as file, pytest.raises(OpenmarketsError, match="of another kind"):
        loader_of(in_sqlite).load(Broken(file, "here"))
    assert in_sqlite.tables() == []


class TestCopied:
    """What goes straight into a table of PostgreSQL: rows with keys that it does not have."""

    STATEMENT = "INSERT INTO statements VALUES (left(current_query(), 11))"

    @pytest.fixture
    def statements(self, in_postgres):
        create_things(in_postgres, "PRIMARY KEY (code, at)")
        in_postgres.execute("CREATE TABLE statements (text text)")
        add_trigger(in_postgres, self.STATEMENT)
        return lambda: [text for (text,) in in_postgres.execute("SELECT text FROM statements")]

    def test_rows_are_copied_into_an_empty_table_and_put_over_others_later(self, in_postgres, statements):
        assert load(in_postgres, [thing("A", note="1"), thing("B")], [thing("C")]) == 3
        assert {text[:12] for text in statements()} == {"COPY things"}
        assert load(in_postgres, [thing("A", note="2")]) == 1
        assert statements()[-1] == "INSERT INTO"
        assert notes(in_postgres) == [("A", "2"), ("B", None), ("C", None)]

    def test_rows_with_new_keys_are_copied_beside_others(self, in_postgres, statements):
        load(in_postgres, [thing("A", note="1")])
        in_postgres.execute("DELETE FROM statements")
        assert load(in_postgres, [thing("B", note="2"), thing("C")]) == 2
        assert {text[:12] for text in statements()} == {"COPY things"}
        assert notes(in_postgres) == [("A", "1"), ("B", "2"), ("C", None)]

    def test_of_rows_with_new_and_known_keys_none_is_there_twice(self, in_postgres, statements):
        load(in_postgres, [thing("B", note="1")])
        assert load(in_postgres, [thing("A", note="2")], [thing("B", note="2"), thing("C", note="2")]) == 3
        assert notes(in_postgres) == [("A", "2"), ("B", "2"), ("C", "2")]

    def test_a_range_that_is_replaced_is_copied(self, in_postgres, statements):
        load(in_postgres, [thing(code, hours, note="1") for code in "AB" for hours in (0, 2)])
        in_postgres.execute("DELETE FROM statements")
        replaced = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",), ("B",)])
        for note in "23":
            assert load(in_postgres, [thing("A", note=note)], mode=REPLACE_RANGE, replaced=replaced) == 1
        assert {text[:12] for text in statements()} == {"COPY things"}
        assert notes(in_postgres) == [("A", "3"), ("A", "1"), ("B", "1")]

    def test_the_last_row_of_a_key_counts_in_the_first_load_too(self, in_postgres, statements):
        assert load(in_postgres, [thing("A", note="1"), thing("A", note="2")]) == 1
        assert set(statements()) == {"INSERT INTO"}
        assert notes(in_postgres) == [("A", "2")]

    def test_a_row_that_is_refused_is_named(self, in_postgres):
        create_things(in_postgres, "PRIMARY KEY (code, at)", "CHECK (volume > 0)")
        with pytest.raises(OpenmarketsDatabaseError, match=r"things: the database refuses row 2 \(code=B, "):
            load(in_postgres, [thing("A", volume=1), thing("B", volume=-1)])
        assert notes(in_postgres) == []

    def test_a_row_without_a_part_of_its_key_is_named(self, in_postgres):
        create_things(in_postgres, "UNIQUE (code, at)")
        with pytest.raises(
            OpenmarketsError, match=r"column code, row 2 .* is not allowed, because the column is part of the key"
        ):
            load(in_postgres, [thing("A"), thing(None)])

    def test_a_table_with_row_security_is_loaded_by_insert(self, in_postgres, statements):
        in_postgres.execute("ALTER TABLE things ENABLE ROW LEVEL SECURITY")
        assert load(in_postgres, [thing("A")]) == 1
        assert set(statements()) == {"INSERT INTO"}

    @pytest.mark.parametrize("driver", POSTGRES_DRIVERS)
    def test_each_driver_sends_all_batches(self, postgres, driver):
        database = PostgresDatabase(postgres, driver)
        batches = [[thing(f"{batch}-{row}", note="é\t\\\n" * 50) for row in range(100)] for batch in range(30)]
        assert load(database, *batches) == 3000
        assert {note for _, note in notes(database)} == {"é\t\\\n" * 50}
