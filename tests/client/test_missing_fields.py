"""Fields of the schema that no record of a run has."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse
from openmarkets_provider.sandbox.server import SandboxServer
from tests.client.conftest import MakeClient, Runner
from tests.support.queries import of_every_kind

DAYS = {"start": "2026-03-02", "end": "2026-03-04"}
BARS = queries.time_series(["BHP", "CBA"], **DAYS)
QUOTES = queries.quotes(["BHP", "CBA"])


def records_of(run: Runner, client: Any, query: queries.Query, **more: Any) -> list[dict[str, Any]]:
    """Return what the API sends, with some fields changed; a field that is ... is not there at all."""
    records = [record | more for record in run(client, {**query, "raw": True})]
    return [{name: value for name, value in record.items() if value is not ...} for record in records]


def answer(sandbox: SandboxServer, code: str, records: list[dict[str, Any]]) -> None:
    sandbox.fault(target=f"/market-data/pricing/timeseries/{code}", kind="body", body=records, times=None)


def report(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "none of the" in message]


@pytest.mark.parametrize("name", of_every_kind("2026-01-05", "2026-01-06"))
def test_replies_with_all_fields_are_fine_whatever_is_null(run, make_client: MakeClient, sandbox, caplog, name):
    query = of_every_kind("2026-03-02", "2026-03-03", account="SBX0001", portfolio="SBX0001P")[name]
    assert run(make_client(), {**query, "on_missing_field": "error"})
    run(make_client(), query)
    assert report(caplog) == []


@pytest.mark.parametrize("unknown", [{}, {"newField": 1}])
def test_a_field_that_no_record_has_is_one_warning(run, make_client: MakeClient, sandbox, caplog, unknown):
    client = make_client()
    records = records_of(run, client, BARS, marketVwap=..., adjustmentFactor=..., **unknown)
    answer(sandbox, "BHP", records)
    answer(sandbox, "CBA", records)
    rows = run(client, BARS)
    assert {row["market_vwap"] for row in rows} == {None}
    assert report(caplog) == [
        f"time_series: none of the {2 * len(records)} records that the API sent has the fields adjustmentFactor, "
        "marketVwap. Their columns are None."
    ]


def test_it_can_be_an_error(run, make_client: MakeClient, sandbox):
    client = make_client()
    records = records_of(run, client, BARS, marketVwap=...)
    answer(sandbox, "BHP", records)
    answer(sandbox, "CBA", records)
    with pytest.raises(OpenmarketsInvalidResponse, match="has the fields marketVwap") as caught:
        run(client, {**BARS, "on_missing_field": "error"})
    assert not caught.value.transient


@pytest.mark.parametrize("unknown", [{}, {"newField": 1}])
def test_one_record_in_any_reply_that_has_it_is_enough(run, make_client: MakeClient, sandbox, caplog, unknown):
    client = make_client()
    without = records_of(run, client, BARS, marketVwap=..., **unknown)
    answer(sandbox, "BHP", without)
    answer(sandbox, "CBA", [*without[1:], without[0] | {"marketVwap": None}])
    rows = run(client, {**BARS, "on_missing_field": "error"})
    assert {row["market_vwap"] for row in rows} == {None}
    assert report(caplog) == []


def test_a_reply_that_wraps_its_records(run, make_client: MakeClient, sandbox, caplog):
    client = make_client()
    records = records_of(run, client, QUOTES, tradeCount=...)
    sandbox.fault(target="/market-data/pricing/quotes", kind="body", body={"quotes": records}, times=None)
    assert [row["trade_count"] for row in run(client, QUOTES)] == [None, None]
    (warning,) = report(caplog)
    assert "has the fields tradeCount." in warning


def test_a_price_multiplier_that_is_missing_is_looked_up(run, make_client: MakeClient, sandbox, caplog):
    client = make_client()
    records = records_of(run, client, QUOTES, priceMultiplier=...)
    sandbox.fault(target="/market-data/pricing/quotes", kind="body", body={"quotes": records}, times=None)
    rows = run(client, {**QUOTES, "on_missing_field": "error"})
    assert {row["price_multiplier"] for row in rows} == {Decimal("0.01")}


def test_without_records_nothing_is_known(run, make_client: MakeClient, sandbox, caplog):
    weekend = queries.time_series("BHP", start="2026-03-07", end="2026-03-09", on_missing_field="error")
    assert run(make_client(), weekend) == []
    assert report(caplog) == []


def test_records_as_they_are_have_no_columns(run, make_client: MakeClient, sandbox, caplog):
    client = make_client()
    records = records_of(run, client, BARS, marketVwap=...)
    answer(sandbox, "BHP", records)
    answer(sandbox, "CBA", records)
    assert run(client, {**BARS, "raw": True, "on_missing_field": "error"}) == 2 * records
