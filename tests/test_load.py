"""Ten thousand requests, one in ten of which fails in one of all the ways that servers fail."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsInvalidResponse
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from tests.support.faulty_server import FAULTS, RARE, WRITE_FAULTS, FaultyServer, volume_of

pytestmark = pytest.mark.slow

TASKS, SECURITIES = 20, 500
"""Each security is a call."""
AT_ONCE = 4
"""Tasks: one alone would mostly wait for its failed calls, since it runs a few calls ahead of its rows only."""
WRITES = 650
RETRIES = 3
"""Of a task, as Airflow has them."""
DAYS = (2, 3, 4)


class Sent(logging.Handler):
    """Counts the requests and the replies that httpcore logs, those for tokens included."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.statuses: Counter[int] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        step, _, details = record.getMessage().partition(" ")
        if step == "send_request_headers.started":
            self.requests += 1
        elif step == "receive_response_headers.complete":
            self.statuses[int(details.split(", ", 2)[1])] += 1

    def without_tokens(self, tokens: dict[str, int]) -> tuple[int, Counter[int]]:
        """Return how many requests and which statuses the APIs had, given what the identity server answered."""
        identity = Counter({int(kind.split()[0]): count for kind, count in tokens.items()})
        return self.requests - identity.total(), self.statuses - identity


@pytest.fixture
def sent() -> Iterator[Sent]:
    handler, logger = Sent(), logging.getLogger("httpcore.http11")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        extra = {"market_data_url": running.url, "oms_url": running.url, "scopes": ["market-data-api", "oms-api"]}
        extra["orders"] = "on"
        connection = {"conn_type": "openmarkets", "host": running.url, "login": "load", "password": "load-secret"}
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps({**connection, "extra": extra}))
        yield running


def statuses_of(answers: dict[str, int]) -> Counter[int]:
    """Return how many replies of each status the server's counts mean; what was dropped had none."""
    statuses: Counter[int] = Counter()
    for kind, count in answers.items():
        first = kind.split()[0]
        if kind == "half gzip":
            statuses[503] += count
        elif kind not in ("dropped", "reset later"):
            statuses[int(first) if first.isdigit() else 200] += count
    return statuses


def test_of_10_000_calls_none_is_lost_or_doubled_and_every_request_is_accounted_for(
    server: FaultyServer, sent: Sent, capsys
):
    failures: Counter[str] = Counter()

    def task(number: int) -> list[dict[str, Any]]:
        hook = OpenmarketsHook(concurrency=16)
        codes = [f"S{security}" for security in range(number * SECURITIES, (number + 1) * SECURITIES)]
        query = queries.time_series(codes, start="2026-03-02", end="2026-03-05")
        try:
            for attempt in range(1 + RETRIES):
                try:
                    return [row for batch in hook.stream(query) for row in batch]
                except OpenmarketsInvalidResponse as error:
                    # The reply is invalid, so the call is not retried, and the rows so far are dropped.
                    failures["field" if "field" in str(error) else "not JSON"] += 1
                    if attempt == RETRIES:
                        raise
        finally:
            hook.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        landed = [row for rows in pool.map(task, range(TASKS)) for row in rows]
    counts = server.counts()
    answers = counts["answers"]
    with capsys.disabled():
        print(f"\n{'answer':30} {'requests':>9}")
        for kind, count in sorted(answers.items()):
            print(f"{kind:30} {count:9,}")
        print(f"{'all':30} {sum(answers.values()):9,}; {len(landed):,} rows; tokens: {counts['tokens']}")
    assert {(row["security_code"], row["time_series_date"].day): row["total_volume"] for row in landed} == {
        (f"S{number}", day): volume_of(f"S{number}", day) for number in range(TASKS * SECURITIES) for day in DAYS
    }
    assert len(landed) == TASKS * SECURITIES * len(DAYS)
    requests, got = sent.without_tokens(counts["tokens"])
    assert requests == sum(answers.values()) >= 10_000
    # A reply that is reset after its first bytes may have arrived, or not.
    expected = statuses_of(answers)
    assert got.keys() <= expected.keys() | {200}
    assert {status: count for status, count in got.items() if status != 200} == {
        status: count for status, count in expected.items() if status != 200
    }
    assert expected[200] <= got[200] <= expected[200] + answers["reset later"]
    assert set(answers) == {"200", *FAULTS, *RARE}
    faults = sum(count for kind, count in answers.items() if kind != "200")
    assert faults >= 1000
    assert failures == {"not JSON": answers["not JSON"], "field": answers["wrong type"]}
    # One for the start and one for the refusal, each failed once.
    assert counts["tokens"] == {"503 at once": 2, "200": 2}


def test_a_write_is_never_sent_again_once_it_may_have_arrived(server: FaultyServer, sent: Sent):
    hook = OpenmarketsHook()

    def write(number: int) -> OpenmarketsError | None:
        order = {"accountCode": "A", "securityCode": "BHP", "side": "Buy", "orderVolume": 1, "notes": f"n{number}"}
        try:
            assert hook.run(queries.request("oms", "POST", "orders/v4", json=order)) is not None
        except OpenmarketsError as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(write, range(WRITES)))
    hook.close()
    counts = server.counts()
    answers, arrived, refused = counts["answers"], counts["writes"], counts["refused"]
    assert set(arrived) == {f"n{number}" for number in range(WRITES)}
    assert set(arrived.values()) == {1}
    # What was refused was not carried out, and came again with another token.
    assert sum(refused.values()) == answers["401 for an expired token"]
    requests, _ = sent.without_tokens(counts["tokens"])
    assert requests == sum(answers.values()) == WRITES + sum(refused.values())
    failed = [error for error in outcomes if error is not None]
    assert all(error.sent for error in failed)
    harmless = {"200", "slow", "401 for an expired token", "wrong type"}
    assert len(failed) == sum(count for kind, count in answers.items() if kind not in harmless)
    assert set(answers) == {"200", *WRITE_FAULTS}
