"""Rows into tables of MariaDB, whose server has all the settings that a load must not depend on."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from openmarkets_provider.exceptions import OpenmarketsDatabaseError
from openmarkets_provider.landing.modes import APPEND, MODES, REPLACE_RANGE, UPSERT, Coverage
from tests.landing.test_table_load import NOON, THINGS, load, loader_of, notes, thing
from tests.support.databases import Database, MariadbDatabase

COLUMNS = {
    "code": "varchar(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "at": "datetime(6)",
    "price": "decimal(38, 18)",
    "volume": "bigint",
    "day": "date",
    "is_open": "boolean",
    "note": "text CHARACTER SET utf8mb4",
    "other_fields": "text",
}
REPLACED = Coverage("at", NOON, NOON + timedelta(hours=1), ("code",), [("A",)])


@pytest.fixture(params=["mariadb", "mysql"])
def database(request: pytest.FixtureRequest, mariadb: Any) -> MariadbDatabase:
    return MariadbDatabase(mariadb, request.param)


def create_things(database: Database, options: str = "ENGINE=InnoDB", key: str = "code, at", **columns: str) -> None:
    """Create a table of the user's own.

    :param columns: types that differ.
    """
    parts = [f"{name} {kind}" for name, kind in (COLUMNS | columns).items()]
    parts += [f"UNIQUE ({key})"] if key else []
    database.execute(f"CREATE TABLE things ({', '.join(parts)}) {options}")


def refused(database: Database, *rows: dict[str, Any], mode: str = UPSERT) -> str:
    with pytest.raises(OpenmarketsDatabaseError) as error:
        load(database, list(rows), mode=mode)
    assert not error.value.transient
    return str(error.value)


@pytest.mark.parametrize("mode", MODES)
def test_a_table_of_ours_keeps_texts_and_times_whatever_the_defaults_of_the_server(database, mode):
    rows = [thing(code, note="\N{PILE OF POO} ć") for code in ("x", "X", "ß", "ss")]
    assert load(database, [*rows, thing("late", 0.5)], mode=mode, replaced=REPLACED) == 5
    found = database.execute("SELECT code, at, note FROM things ORDER BY BINARY code")
    assert [code for code, *_ in found] == ["X", "late", "ss", "x", "ß"]
    assert found[0][1:] == (NOON.replace(tzinfo=None), "\N{PILE OF POO} ć")
    assert found[1][1] == (NOON + timedelta(minutes=30)).replace(tzinfo=None)


def test_a_moment_is_not_shifted_by_the_zone_of_the_server(database):
    create_things(database, at="timestamp(6) NULL")
    load(database, [thing()])
    load(database, [thing(note="again")])
    assert database.execute("SELECT UNIX_TIMESTAMP(at), note FROM things") == [(NOON.timestamp(), "again")]


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("volume", "smallint", 40_000),
        ("code", "varchar(2) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "BHP"),
        ("note", "varchar(4) CHARACTER SET latin1", "ć"),
        ("price", "decimal(4, 1)", Decimal(12345)),
        ("price", "decimal(10, 2) UNSIGNED", Decimal(-1)),
        ("note", "enum('a')", "b"),
        ("price", "decimal(38, 18), CHECK (price < 5)", Decimal(7)),
    ],
)
@pytest.mark.parametrize("mode", [UPSERT, APPEND])
def test_a_value_that_does_not_fit_is_refused_and_its_row_named(database, column, kind, value, mode):
    key = "code, at" if mode == UPSERT else ""
    create_things(database, key=key, **{column: kind})
    if mode == APPEND:
        database.execute("ALTER TABLE things ADD load_id varchar(760) NOT NULL")
    bad = thing("B", hours=1) | {column: value}
    assert refused(database, thing("A"), bad, mode=mode).startswith(
        f"things: the database refuses row 2 (code={bad['code']}, "
    )
    assert notes(database) == []


def test_what_a_trigger_of_the_user_refuses_is_named(database):
    create_things(database)
    database.execute(
        "CREATE TRIGGER books BEFORE INSERT ON things FOR EACH ROW "
        "IF NEW.volume < 0 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no short volumes'; END IF"
    )
    assert "row 2 (code=B, " in (said := refused(database, thing("A"), thing("B", volume=-1)))
    assert "no short volumes" in said


@pytest.mark.parametrize(
    ("column", "kind", "fits", "does_not"),
    [
        ("price", "decimal(10, 2)", Decimal("49.06"), Decimal("49.065")),
        ("price", "decimal(10, 2) UNSIGNED", Decimal("49.06"), Decimal("49.065")),
        ("price", "decimal(10, 2) UNSIGNED ZEROFILL", Decimal("49.06"), Decimal("49.065")),
        ("at", "datetime", NOON, NOON.replace(microsecond=1)),
        ("at", "datetime(3)", NOON.replace(microsecond=1000), NOON.replace(microsecond=1)),
        ("at", "timestamp(3) NULL", NOON.replace(microsecond=1000), NOON.replace(microsecond=1)),
    ],
)
@pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
def test_a_row_that_would_be_rounded_is_named(database, column, kind, fits, does_not, mode):
    create_things(database, **{column: kind})
    rows = [thing("A") | {column: fits}, thing("B") | {column: does_not}]
    assert load(database, rows[:1], mode=mode) == 1
    said = refused(database, *rows, mode=mode)
    assert said.startswith("things: the database refuses row 2 (code=B, ")
    assert f"{column} is " in said
    assert "would round" in said
    assert [code for code, _ in notes(database)] == ["A"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("price", "float"),
        ("price", "float UNSIGNED"),
        ("volume", "float"),
        ("price", "int"),
        ("price", "decimal(9, 0)"),
        ("at", "date"),
    ],
)
def test_a_type_that_rounds_is_refused_before_there_are_rows(database, column, kind):
    create_things(database, **{column: kind})
    with pytest.raises(OpenmarketsDatabaseError, match=f"column {column} has the type .*which would round values"):
        loader_of(database).rehearse()


@pytest.mark.parametrize("kind", ["double", "double UNSIGNED", "decimal(20, 6) UNSIGNED", "text", "varchar(40)"])
def test_a_type_that_holds_them_will_do(database, kind):
    create_things(database, price=kind, volume="bigint UNSIGNED")
    load(database, [thing(price=Decimal("49.0625"), volume=2**40)])
    ((price, volume),) = database.execute("SELECT price + 0, volume FROM things")
    assert (float(price), volume) == (49.0625, 2**40)


@pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
@pytest.mark.parametrize("kind", ["varchar(64) CHARACTER SET utf8mb4", "varchar(9) CHARACTER SET latin1"])
def test_a_key_that_takes_two_texts_for_one_is_refused_with_the_statement(database, kind, mode):
    create_things(database, code=kind)
    loader = loader_of(database, mode)
    with pytest.raises(OpenmarketsDatabaseError, match="compares code ") as error:
        loader.rehearse()
    database.execute(str(error.value).partition("To change that: ")[2])
    loader.rehearse()
    assert load(database, [thing("x"), thing("X")], mode=mode, replaced=REPLACED) == 2


@pytest.mark.parametrize("kind", ["varbinary(64)", "varchar(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"])
@pytest.mark.parametrize("key", ["code, at", ""])
def test_other_keys_that_tell_all_texts_apart_will_do(database, kind, key):
    create_things(database, code=kind, key=key)
    for note in "12":
        load(database, [thing("x", note=note), thing("X")], mode=UPSERT if key else REPLACE_RANGE, replaced=REPLACED)
    assert database.execute("SELECT note FROM things ORDER BY note") == [(None,), ("2",)]


def test_an_engine_without_transactions_is_refused_with_the_statement(database):
    create_things(database, "ENGINE=Aria")
    with pytest.raises(OpenmarketsDatabaseError, match=r"Aria can't roll back") as error:
        loader_of(database).rehearse()
    database.execute(str(error.value).partition("To change that: ")[2])
    assert load(database, [thing()]) == 1


def test_the_layout_of_these_tests_is_that_of_the_others():
    assert list(COLUMNS) == [column.name for column in THINGS.columns]
