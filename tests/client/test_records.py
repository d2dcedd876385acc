from __future__ import annotations

from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.client.planning import plan
from openmarkets_provider.client.records import records, result
from openmarkets_provider.exceptions import OpenmarketsInvalidResponse, OpenmarketsQueryError

ACCOUNTS = queries.accounts()
QUOTES = queries.quotes("BHP")


@pytest.mark.parametrize("reply", [None, [], {"quotes": 5}, "x", 0])
def test_the_reply_to_a_request_is_handed_on_untouched(reply: Any):
    query = queries.request("news", "GET", "x")
    (call,) = plan(query)
    assert result(query, [(call, reply)]) is reply


def test_batches_are_put_together_in_the_order_of_the_plan():
    query = queries.quotes([f"S{number}" for number in range(2001)])
    replies = [{"quotes": [{"n": 2}, {"n": 1}]}, {"quotes": []}, {"quotes": [{"n": 3}], "invalidSecurities": []}]
    assert result(query, list(zip(plan(query), replies, strict=True))) == [{"n": 2}, {"n": 1}, {"n": 3}]


@pytest.mark.parametrize("rows", [[], [{"accountCode": "1"}, {"accountCode": "2"}]])
def test_a_list_is_the_records_themselves(rows: list[Any]):
    assert result(ACCOUNTS, [(plan(ACCOUNTS)[0], rows)]) == rows


@pytest.mark.parametrize("reply", [None, {}, {"accounts": []}, "[]", 5, True])
def test_anything_but_the_promised_list_is_an_invalid_response(reply: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match=r"^GET oms accounts/v1: expected a list of records, got") as e:
        records(plan(ACCOUNTS)[0], reply)
    assert e.value.endpoint == "GET oms accounts/v1"
    assert not e.value.transient


@pytest.mark.parametrize("reply", [None, [], {}, {"Quotes": []}, "quotes", ["quotes"], 5])
def test_quotes_without_their_wrapping_are_an_invalid_response(reply: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="expected an object with 'quotes', got") as caught:
        records(plan(QUOTES)[0], reply)
    assert caught.value.endpoint == "POST market_data pricing/quotes/v3"


@pytest.mark.parametrize("rows", [None, {}, "x", 5])
def test_wrapped_quotes_must_be_a_list(rows: Any):
    with pytest.raises(OpenmarketsInvalidResponse, match="expected a list of records, got"):
        records(plan(QUOTES)[0], {"quotes": rows})


@pytest.mark.parametrize("invalid", [None, [], ""])
def test_no_invalid_security_is_no_error(invalid: Any):
    assert records(plan(QUOTES)[0], {"quotes": [{}], "invalidSecurities": invalid}) == [{}]


@pytest.mark.parametrize("rows", [[], [{"securityCode": "BHP"}], None])
def test_securities_that_the_api_does_not_know_are_a_query_error(rows: Any):
    with pytest.raises(OpenmarketsQueryError, match=r"does not know the securities \['XYZ.ASX@TM'\]") as caught:
        records(plan(QUOTES)[0], {"quotes": rows, "invalidSecurities": ["XYZ.ASX@TM"]})
    assert not caught.value.transient


def test_the_list_of_unknown_securities_is_cut_and_stays_on_its_line():
    with pytest.raises(OpenmarketsQueryError) as caught:
        records(plan(QUOTES)[0], {"quotes": [], "invalidSecurities": ["A\nB"] * 1000})
    assert len(str(caught.value)) < 1200
    assert str(caught.value).isprintable()
