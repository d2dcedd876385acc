"""Quotes of many triggers in one call, and securities that it fails for."""

from __future__ import annotations

from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import (
    OpenmarketsApiError,
    OpenmarketsInvalidResponse,
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
)
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.triggers import _quote_batching as batching
from openmarkets_provider.triggers import _shared_polls as module
from tests.support.polls import (
    QUOTES,
    at_once,
    codes_of,
    full,
    market_data,
    take,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


async def test_a_security_that_is_not_known_is_the_error_of_who_asked_for_it(openmarkets_sandbox):
    hook = OpenmarketsHook()
    codes = [row["security_code"] for row in await hook.arun(queries.securities())][:99]
    with pytest.raises(OpenmarketsQueryError) as alone:
        await hook.arun(queries.quotes(["BHP", "ZZZZZ"]))
    await hook.aclose()
    openmarkets_sandbox.reset()
    (bad,), (worse,), *good = await at_once(
        take(queries.quotes(["BHP", "ZZZZZ"])),
        take(queries.quotes(["ZZZZZ", "YYYYY"])),
        *(take(queries.quotes(code)) for code in codes),
    )
    assert str(bad.error) == str(alone.value)
    assert bad.error.securities == alone.value.securities == full("ZZZZZ")
    assert worse.error.securities == full("ZZZZZ", "YYYYY")
    assert [codes_of(reading) for (reading,) in good] == [[code] for code in codes]
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 2


async def test_with_warn_a_security_that_is_not_known_is_left_out_and_told(openmarkets_sandbox, caplog):
    (bad,), (good,) = await at_once(
        *(take(queries.quotes(codes, on_invalid="warn")) for codes in (["BHP", "ZZZZZ"], "CBA"))
    )
    assert codes_of(bad) == ["BHP"]
    assert codes_of(good) == ["CBA"]
    assert openmarkets_sandbox.stats()["by_path"][QUOTES] == 1
    (line,) = [record for record in caplog.records if record.name == module.__name__]
    assert line.getMessage() == "quotes: the reply has nothing for ['ZZZZZ.ASX@TM']."


@pytest.mark.parametrize(
    ("offence", "kind"), [("refused", OpenmarketsApiError), ("malformed", OpenmarketsInvalidResponse)]
)
async def test_a_security_that_a_call_fails_for_is_found_and_disturbs_nobody(offended, offence, kind):
    codes = [f"A{number:03d}" for number in range(100)]
    getattr(offended, offence).update(full("A037", "A038"))
    seen = await at_once(*(take(queries.quotes(code)) for code in codes))
    failed = [code for code, (reading,) in zip(codes, seen, strict=True) if reading.error is not None]
    assert failed == ["A037", "A038"]
    assert all(isinstance(seen[number][0].error, kind) for number in (37, 38))
    assert all(
        codes_of(reading) == [code] for code, (reading,) in zip(codes, seen, strict=True) if reading.error is None
    )
    # All together, then each alone.
    assert len(offended.calls) == 1 + len(codes)


async def test_when_nothing_works_few_calls_show_it(offended):
    codes = [f"A{number:03d}" for number in range(200)]
    offended.refused.update(full(*codes))
    seen = await at_once(*(take(queries.quotes(code)) for code in codes))
    assert {reading.error.status for (reading,) in seen} == {400}
    assert len(offended.calls) == batching.MAX_FAILURES


async def test_a_row_of_a_security_that_nobody_asked_for_goes_to_who_gets_it_alone(offended):
    offended.stray.update(full("A1", "A2"))
    seen = await at_once(*(take(queries.quotes(code)) for code in ("A0", "A1", "A2", "A3")))
    assert [codes_of(reading) for (reading,) in seen] == [["A0"], ["A1NEW"], ["A2NEW"], ["A3"]]
    assert len(offended.calls) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "calls"),
    [
        ({"status": 403}, OpenmarketsApiError, 1),
        ({"status": 503, "retry_after": 0}, OpenmarketsServerError, 4),
        ({"status": 429, "retry_after": 100}, OpenmarketsRateLimited, 1),
    ],
    ids=["permanent", "transient", "throttled"],
)
async def test_an_error_that_concerns_everyone_is_everyones_at_once(openmarkets_sandbox, fault, kind, calls):
    openmarkets_sandbox.fault(target="market_data", kind="status", times=None, **fault)
    seen = await at_once(*(take(queries.quotes(code)) for code in ("BHP", "CBA", "RIO", "WBC")))
    assert all(isinstance(reading.error, kind) for (reading,) in seen)
    assert market_data(openmarkets_sandbox) == calls


class Api:
    """Answers calls for quotes as an API that refuses some securities."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(full(*refused))
        self.calls: list[list[str]] = []

    async def __call__(self, query: Any) -> list[dict[str, Any]]:
        self.calls.append(query["securities"])
        if self.refused & set(query["securities"]):
            raise OpenmarketsApiError("refused", status=400)
        return [{"security_code": each.partition(".")[0], "exchange": "ASX"} for each in query["securities"]]


async def failures_of(api: Api, codes: list[str]) -> list[str]:
    """Poll for a basket of each code, and return the codes that got an error."""
    baskets = [batching.find_basket(queries.quotes(code)) for code in codes]
    outcomes = await batching.poll(api, queries.quotes(codes), baskets)
    assert outcomes.keys() == set(baskets)
    return [code for code, basket in zip(codes, baskets, strict=True) if outcomes[basket].error is not None]


async def test_after_a_refusal_each_is_asked_for_alone_and_once():
    api = Api("A1", "A3")
    assert await failures_of(api, ["A0", "A1", "A2", "A3"]) == ["A1", "A3"]
    assert api.calls == [full("A0", "A1", "A2", "A3"), *(full(code) for code in ("A0", "A1", "A2", "A3"))]


@pytest.mark.parametrize(("first", "calls"), [("GOOD", 1 + 41), ("BAD", batching.MAX_FAILURES)])
async def test_failures_end_a_poll_only_before_one_succeeds(first: str, calls: int):
    bad = [f"B{number:02d}" for number in range(40)]
    api = Api("BAD", *bad)
    failed = await failures_of(api, [first, *bad])
    assert failed == ([] if first == "GOOD" else [first]) + bad
    assert len(api.calls) == calls


async def test_a_basket_that_is_alone_is_not_asked_for_again():
    api = Api("BAD")
    assert await failures_of(api, ["BAD"]) == ["BAD"]
    assert api.calls == [full("BAD")]
