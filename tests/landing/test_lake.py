"""What tables of Delta and Iceberg have in common, as destinations. tests/transfers has them as tasks."""

from __future__ import annotations

from datetime import UTC, date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.destination import LoadResult
from openmarkets_provider.landing.incremental import NothingNew, load_incrementally
from openmarkets_provider.landing.lake import TRIES, commit_again
from openmarkets_provider.landing.modes import APPEND, REPLACE_RANGE, UPSERT
from openmarkets_provider.query.endpoints import ENDPOINTS
from tests.support.lakes import DeltaLake, IcebergLake, Lake

WEEK = {"start": "2026-03-02", "end": "2026-03-07"}
BARS = queries.time_series(["BHP", "CBA"], **WEEK)


@pytest.fixture(params=[DeltaLake, pytest.param(IcebergLake, marks=pytest.mark.since("3.2"))])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    made: Lake = request.param(tmp_path)
    return made


class TestWhatIsLanded:
    def test_the_rows_of_the_query_exactly(self, openmarkets_sandbox, lake):
        assert not lake.destination().exists()
        result = lake.land(BARS)
        assert result == LoadResult(lake.name, 10, None, [], {"start": "2026-03-02", "end": "2026-03-07"}, [])
        assert lake.destination().exists()
        pulled = [(*row.values(), None) for row in OpenmarketsHook().run(BARS)]
        assert lake.rows() == sorted(pulled, key=str)
        assert {type(price) for (price,) in lake.rows("open_price")} == {Decimal}

    @pytest.mark.parametrize("partition", [None, "day", "month", "year"])
    def test_a_repeat_changes_nothing_and_is_one_commit(self, openmarkets_sandbox, lake, partition):
        lake.land(BARS, partition=partition)
        before = lake.rows()
        lake.land(BARS, partition=partition)
        assert lake.rows() == before
        assert len(before) == 10
        assert lake.commits() == 2

    def test_an_overlap_gives_each_row_once(self, openmarkets_sandbox, lake):
        lake.land(queries.time_series(["BHP", "CBA"], start="2026-02-23", end="2026-03-05"), partition="month")
        lake.land(queries.time_series(["CBA", "RIO"], start="2026-03-02", end="2026-03-10"), partition="month")
        bhp = queries.time_series("BHP", start="2026-02-23", end="2026-03-05")
        cba = queries.time_series("CBA", start="2026-02-23", end="2026-03-10")
        rio = queries.time_series("RIO", start="2026-03-02", end="2026-03-10")
        pulled = [row for query in (bhp, cba, rio) for row in OpenmarketsHook().run(query)]
        assert lake.rows(*pulled[0]) == sorted((tuple(row.values()) for row in pulled), key=str)
        assert lake.commits() == 2

    def test_a_row_that_the_api_no_longer_has_goes_and_all_others_stay(self, openmarkets_sandbox, lake):
        lake.land(queries.time_series(["BHP", "CBA"], start="2026-02-27", end="2026-03-07"))
        openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/BHP.ASX@TM", kind="body", body=[])
        assert lake.land(queries.time_series("BHP", start="2026-03-02", end="2026-03-05")).rows == 0
        days = lake.rows("security_code", "time_series_date")
        assert [day.day for code, day in days if code == "BHP"] == [27, 5, 6]
        assert [day.day for code, day in days if code == "CBA"] == [27, 2, 3, 4, 5, 6]

    def test_rows_of_a_security_that_is_left_out_stay(self, openmarkets_sandbox, lake):
        lake.land(BARS)
        openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/CBA.ASX@TM", kind="status", status=404)
        before = lake.rows()
        assert lake.land(queries.time_series(["BHP", "CBA"], **WEEK, on_invalid="warn")).skipped == ["CBA.ASX@TM"]
        assert lake.rows() == before

    def test_bars_of_several_lengths_share_a_table(self, openmarkets_sandbox, lake):
        week = queries.time_series("BHP", start="2026-02-28", end="2026-03-07", frequency="Weekly")
        for query in (BARS, week, BARS, week):
            lake.land(query, partition="year")
        lengths = [length for (length,) in lake.rows("frequency")]
        assert lengths == ["Daily"] * 10 + ["Weekly"]

    def test_trades_of_other_accounts_that_come_along_are_there_once_and_the_rest_stays(
        self, openmarkets_sandbox, lake
    ):
        one, other = [row["account_code"] for row in OpenmarketsHook().run(queries.accounts())][:2]
        lake.land(queries.order_trades([one, other], **WEEK))
        before = lake.rows("account_code", "trade_number", "order_number")
        assert len(before) > 2
        own, along = (OpenmarketsHook().run(queries.order_trades(each, **WEEK, raw=True)) for each in (one, other))
        path = ENDPOINTS["order_trades"].path.replace("{account}", one)
        openmarkets_sandbox.fault(target=f"/oms/{path}", kind="body", body=[*own, along[0]])
        lake.land(queries.order_trades(one, **WEEK))
        assert lake.rows("account_code", "trade_number", "order_number") == before

    def test_a_value_that_does_not_fit_leaves_the_table_as_it_was(self, openmarkets_sandbox, lake):
        lake.land(BARS)
        before = lake.rows()
        bar = OpenmarketsHook().run(queries.time_series("BHP", **WEEK, raw=True))[0]
        openmarkets_sandbox.fault(
            target="/market-data/pricing/timeseries/BHP.ASX@TM", kind="body", body=[bar | {"totalVolume": 10**20}]
        )
        with pytest.raises(OpenmarketsError, match=r"column total_volume, row 1 .* does not fit 64 bits"):
            lake.land(BARS)
        assert lake.rows() == before


class TestModes:
    @pytest.mark.parametrize(("mode", "volumes"), [(REPLACE_RANGE, [3, 2]), (UPSERT, [3, 2]), (APPEND, [1, 2, 3])])
    def test_a_row_that_a_reply_has_twice(self, openmarkets_sandbox, lake, mode, volumes):
        one, other = OpenmarketsHook().run(queries.time_series("BHP", **WEEK, raw=True))[:2]
        body = [{**bar, "totalVolume": number} for number, bar in enumerate([one, other, one], 1)]
        openmarkets_sandbox.fault(target="/market-data/pricing/timeseries/BHP.ASX@TM", kind="body", body=body)
        assert lake.land(queries.time_series("BHP", **WEEK), mode, load_id="one").rows == len(volumes)
        assert sorted(volume for (volume,) in lake.rows("total_volume")) == sorted(volumes)

    def test_an_upsert_replaces_rows_of_the_same_key(self, openmarkets_sandbox, lake):
        for codes in (["BHP", "CBA"], ["CBA", "RIO"]):
            lake.land(queries.quotes(codes), UPSERT)
        assert lake.rows("security_code") == [("BHP",), ("CBA",), ("RIO",)]

    def test_an_upsert_of_many_rows_is_refused(self, openmarkets_sandbox, lake, monkeypatch):
        monkeypatch.setattr("openmarkets_provider.landing.lake.MAX_KEYS", 9)
        with pytest.raises(OpenmarketsQueryError, match=r"takes at most 9 rows.* Use mode='replace_range'"):
            lake.land(BARS, UPSERT)

    def test_a_load_that_is_appended_replaces_its_own_rows(self, openmarkets_sandbox, lake):
        for load_id in ("one", "two", "two"):
            lake.land(queries.quotes(["BHP", "CBA"]), APPEND, load_id=load_id)
        assert lake.rows("security_code", "load_id") == [
            ("BHP", "one"),
            ("BHP", "two"),
            ("CBA", "one"),
            ("CBA", "two"),
        ]

    def test_records_as_the_api_sends_them(self, openmarkets_sandbox, lake):
        lake.land(queries.quotes("BHP", raw=True), APPEND, load_id="one")
        ((record, load_id),) = lake.rows()
        assert record.startswith("{")
        assert load_id == "one"

    @pytest.mark.parametrize(
        ("query", "mode", "partition", "problem"),
        [
            (queries.quotes("BHP"), REPLACE_RANGE, None, "needs a query with a range"),
            (queries.quotes("BHP"), UPSERT, "day", "no time to partition by"),
            (queries.quotes("BHP", raw=True), UPSERT, None, "needs rows with a key"),
        ],
    )
    def test_what_does_not_go_together_is_refused_before_anything_is_asked(
        self, openmarkets_sandbox, lake, query, mode, partition, problem
    ):
        with pytest.raises(OpenmarketsQueryError, match=problem):
            lake.land(query, mode, partition=partition)
        assert openmarkets_sandbox.stats()["by_path"] == {}

    def test_what_is_new_is_what_is_pulled(self, lake):
        new = date(2026, 3, 4), date(2026, 3, 6)
        assert lake.destination().range_to_pull(BARS, *new, watermark="2026-03-05") == new


class TestPartitions:
    def test_a_trading_day_is_sydneys(self, openmarkets_sandbox, lake):
        # In March the exchange opens at 23:00 UTC of the day before.
        trades = queries.trades("BHP", start="2026-03-03", end="2026-03-04")
        lake.land(trades, partition="day")
        assert {day for (day,) in lake.rows("exchange_date")} == {date(2026, 3, 3)}
        first = min(moment for (moment,) in lake.rows("trade_date_time"))
        assert first.date() == date(2026, 3, 2)
        assert first == min(row["trade_date_time"] for row in OpenmarketsHook().run(trades))
        assert first.utcoffset() == UTC.utcoffset(None)

    def test_part_of_a_trading_day_is_replaced(self, openmarkets_sandbox, lake):
        lake.land(queries.trades("BHP", start="2026-03-03", end="2026-03-04"), partition="day")
        before = lake.rows()
        lake.land(queries.trades("BHP", start="2026-03-03T10:30", end="2026-03-03T11:00"), partition="day")
        assert lake.rows() == before

    def test_another_partition_than_the_table_has_is_refused(self, openmarkets_sandbox, lake):
        lake.land(BARS, partition="month")
        with pytest.raises(OpenmarketsConfigurationError, match=r"is partitioned by .*month.*, but partition=None"):
            lake.land(BARS)


class TestSchemas:
    def test_a_column_that_is_new_is_added(self, openmarkets_sandbox, lake):
        lake.land(BARS)
        older = lake.scan().drop("market_vwap", "other_fields").collect().to_arrow()
        lake.write(older)
        lake.land(queries.time_series("RIO", **WEEK))
        assert {code: vwap is None for code, vwap in lake.rows("security_code", "market_vwap")} == {
            "BHP": True,
            "CBA": True,
            "RIO": False,
        }

    def test_a_column_of_the_table_that_rows_do_not_have_is_empty(self, openmarkets_sandbox, lake):
        lake.land(BARS)
        lake.write(lake.scan().with_columns(note=pl.lit("mine")).collect().to_arrow())
        lake.land(queries.time_series("BHP", **WEEK))
        assert set(lake.rows("security_code", "note")) == {("BHP", None), ("CBA", "mine")}

    @pytest.mark.parametrize(("name", "kind"), [("total_volume", pl.String), ("close_price", pl.Decimal(18, 2))])
    def test_a_column_of_another_type_is_refused(self, openmarkets_sandbox, lake, name, kind):
        lake.land(BARS)
        other = lake.scan().with_columns(pl.col(name).cast(kind)).collect().to_arrow()
        lake.write(other)
        with pytest.raises(OpenmarketsConfigurationError, match=f"column {name} is .*, but the rows have"):
            lake.land(BARS)


class TestCommits:
    def test_conflicts_without_end_are_a_transient_error(self):
        tries = []

        def commit() -> None:
            tries.append(1)
            raise KeyError("taken")

        with pytest.raises(
            OpenmarketsError, match=r"^lake: other loads changed .* of 10 attempts to commit\."
        ) as caught:
            commit_again("lake", commit, KeyError)
        assert len(tries) == TRIES
        assert caught.value.transient

    def test_another_error_is_not_tried_again(self):
        with pytest.raises(ZeroDivisionError):
            commit_again("lake", lambda: print(1 / 0), KeyError)


class TestIncrementalLoads:
    def test_what_is_new_and_what_was_left_out(self, openmarkets_sandbox, lake):
        store = Store()

        def load(end: str, run: str) -> LoadResult:
            query = queries.time_series(["BHP", "CBA"], start="2026-03-02", end=end, on_invalid="warn")
            return load_incrementally(
                OpenmarketsHook(),
                query,
                lake.destination(partition="month"),
                store,
                store_name="asset 'lake'",
                owner="dag.load",
                run=run,
                overlap=timedelta(days=1),
            )

        series = "/market-data/pricing/timeseries/CBA.ASX@TM"
        openmarkets_sandbox.fault(target=series, kind="status", status=404)
        assert load("2026-03-05", "one").skipped == ["CBA.ASX@TM"]
        assert lake.rows("security_code") == [("BHP",)] * 3
        assert load("2026-03-07", "two").skipped == []
        keys = lake.rows("security_code", "time_series_date")
        assert len(keys) == len(set(keys)) == 10
        with pytest.raises(NothingNew):
            load("2026-03-07", "three")


class Store(dict[str, Any]):
    """Keeps state, as an asset's store does."""

    set = dict.__setitem__

    def delete(self, key: str) -> None:
        self.pop(key, None)
