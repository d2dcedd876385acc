from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.landing.modes import APPEND, MODES, REPLACE_RANGE, UPSERT, Coverage, check_mode, coverage_of

DAYS = {"start": "2026-03-02", "end": "2026-03-04"}


class TestCoverage:
    def of(self, query: queries.Query) -> Coverage:
        return coverage_of(query, layout_of(query))

    def test_the_securities_that_are_named_in_the_range(self):
        found = self.of(queries.time_series(["BHP", "CBA.ASX", "RIO.ASX@CXA"], **DAYS))
        assert found == Coverage(
            "time_series_date",
            date(2026, 3, 2),
            date(2026, 3, 4),
            ("security_code", "exchange", "data_source", "frequency"),
            [("BHP", "ASX", "TM", "Daily"), ("CBA", "ASX", "TM", "Daily"), ("RIO", "ASX", "CXA", "Daily")],
        )

    def test_bars_of_the_same_length_alone(self):
        found = self.of(queries.intraday_time_series("BHP", interval=15, **DAYS))
        assert found.columns == ("security_code", "exchange", "data_source", "interval")
        assert found.subjects == [("BHP", "ASX", "TM", 15)]

    def test_trades_have_no_length(self):
        assert self.of(queries.trades("BHP", **DAYS)).subjects == [("BHP", "ASX", "TM")]

    def test_times_are_moments(self):
        found = self.of(queries.trades("BHP", **DAYS))
        sydney = timezone(timedelta(hours=11))
        assert (found.start, found.end) == (datetime(2026, 3, 2, tzinfo=sydney), datetime(2026, 3, 4, tzinfo=sydney))
        assert found.time == "trade_date_time"

    def test_what_was_left_out_is_not_covered(self):
        query = queries.time_series(["BHP", "CBA"], **DAYS, on_invalid="warn")
        assert coverage_of(query, layout_of(query), {"CBA.ASX@TM"}).subjects == [("BHP", "ASX", "TM", "Daily")]

    def test_the_accounts_that_are_named(self):
        found = self.of(queries.order_trades(["A1", "A2"], **DAYS))
        assert (found.columns, found.subjects) == (("account_code",), [("A1",), ("A2",)])


class TestCheckMode:
    def test_there_are_three_modes(self):
        for mode in MODES:
            check_mode(mode, queries.time_series("BHP", start="2026-03-02", end="2026-03-04"), incremental=False)
        with pytest.raises(ValueError, match="mode must be one of 'upsert', 'append', 'replace_range', not 'merge'"):
            check_mode("merge", queries.quotes("BHP"), incremental=False)

    def test_an_incremental_load_is_not_appended(self):
        with pytest.raises(
            ValueError, match="'append' can't be used with incremental: it would load the overlap twice"
        ):
            check_mode(APPEND, queries.quotes("BHP"), incremental=True)

    @pytest.mark.parametrize("mode", [UPSERT, REPLACE_RANGE])
    def test_records_without_a_schema_have_no_key(self, mode):
        for query in (queries.request("oms", "GET", "accounts/v1"), queries.quotes("BHP", raw=True)):
            with pytest.raises(OpenmarketsQueryError, match=r"needs rows with a key.*Use mode='append'"):
                check_mode(mode, query, incremental=False)
            check_mode(APPEND, query, incremental=False)

    def test_replacing_needs_a_range(self):
        with pytest.raises(OpenmarketsQueryError, match="quotes: mode='replace_range' needs a query with a range"):
            check_mode(REPLACE_RANGE, queries.quotes("BHP"), incremental=False)
