"""What an incremental load leaves out, and how it comes back, in any order of loads, crashes and clears."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmarkets_provider import queries
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.destination import LoadResult
from openmarkets_provider.landing.incremental import NothingNew, load_incrementally
from openmarkets_provider.landing.skipped import MAX_SKIPPED
from openmarkets_provider.query.query import resolve, window

# Days are any days here.

DAY = timedelta(days=1)
FIRST = date(2000, 1, 1)
SECURITIES = ["BHP.ASX@TM", "CBA.ASX@TM", "RIO.ASX@TM"]


class Crash(Exception):
    pass


class Memory:
    """A destination and a state store in memory.

    :ivar known: the securities that the API knows.
    :ivar days: the existing days of each security.
    :ivar crash: when the load dies: ``before`` or ``after`` the rows have landed, or ``adding`` others.
    """

    name, format, is_exclusive = "memory", "", False

    def __init__(self) -> None:
        self.known = set(SECURITIES)
        self.days: dict[str, set[date]] = {each: set() for each in SECURITIES}
        self.crash: str | None = None
        self.data: dict[str, str] = {}

    def exists(self) -> bool:
        return any(self.days.values())

    def range_to_pull(self, query: Any, start: Any, end: Any, watermark: str | None) -> tuple[Any, Any]:
        return start, end

    def land(self, source: Any, query: queries.Query) -> LoadResult:
        self._die("before")
        result = self._pull(query)
        self._die("after")
        return result

    def add(self, source: Any, query: queries.Query) -> LoadResult:
        self._die("adding")
        return self._pull(query)

    def _pull(self, query: queries.Query) -> LoadResult:
        start, end = window(query) or (FIRST, FIRST)
        securities = resolve(query)["securities"]
        skipped = [each for each in securities if each not in self.known]
        if len(skipped) == len(securities) > 1:
            raise OpenmarketsQueryError("none", securities=skipped)
        for each in self.known.intersection(securities):
            self.days[each].update(start + days * DAY for days in range((end - start).days))
        return LoadResult(self.name, 1, None, [], {"start": str(start), "end": str(end)}, skipped)

    def _die(self, moment: str) -> None:
        if self.crash == moment:
            raise Crash

    def cancel(self) -> None:
        pass

    def get(self, key: str) -> Any:
        return json.loads(self.data.get(key, "null"))

    def set(self, key: str, value: Any) -> None:
        self.data[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self.data.pop(key, None)

    def load(self, end: date, run: str | None = None) -> LoadResult:
        """Load in a separate run, unless one is named."""
        query = queries.time_series(SECURITIES, start=str(FIRST), end=str(end), on_invalid="warn")
        options: Any = {"owner": "dag.task", "run": run or uuid4().hex, "overlap": DAY}
        return load_incrementally(None, query, self, self, store_name="asset 'lake'", **options)  # type: ignore[arg-type]

    def state(self) -> tuple[str, dict[str, Any]]:
        return next((key, json.loads(text)) for key, text in self.data.items() if "watermark" in text)


LOADS = st.lists(
    st.tuples(
        # The new days of a load; None clears an earlier run, which is the second.
        st.none() | st.integers(1, 500),
        st.integers(0, 20),
        st.sampled_from([None, "before", "after", "adding"]),
        st.sets(st.sampled_from(SECURITIES), min_size=1),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60)
@given(loads=LOADS)
def test_whatever_happens_each_day_of_each_security_is_there_once_the_api_knows_it(loads: Any):
    memory, end = Memory(), FIRST
    runs: list[date] = []
    for new, cleared, crash, known in loads:
        if new is not None or not runs:
            end += (new or 1) * DAY
            runs.append(end)
            cleared = len(runs) - 1
        number = cleared % len(runs)
        memory.crash, memory.known = crash, known
        with suppress(Crash, NothingNew):
            memory.load(runs[number], str(number))
        if any("watermark" in text for text in memory.data.values()):
            watermark = date.fromisoformat(memory.state()[1]["watermark"])
            missing = {each for each, days in memory.days.items() if len(days) < (watermark - FIRST).days}
            assert missing <= memory.state()[1]["skipped"].keys()

    memory.crash, memory.known = None, set(SECURITIES)
    for days in range(1, 30):
        result = memory.load(end + days * DAY)
        if not result.skipped:
            break
    assert result.skipped == []
    assert {len(each) for each in memory.days.values()} == {(end + days * DAY - FIRST).days}


def test_a_list_that_is_too_long_is_an_error_and_moves_nothing():
    class Many(Memory):
        def _pull(self, query: queries.Query) -> LoadResult:
            return LoadResult(self.name, 1, None, [], None, [f"X{number}.ASX@TM" for number in range(MAX_SKIPPED + 1)])

    memory = Many()
    with pytest.raises(OpenmarketsError, match="memory lacks rows of 1001 securities") as caught:
        memory.load(FIRST + DAY)
    assert not caught.value.transient
    assert not any("watermark" in text for text in memory.data.values())


@pytest.mark.parametrize(
    ("skipped", "message"),
    [
        (["CBA.ASX@TM"], "skipped: expected a time for each security, got a value of type list"),
        ({"../oms": "2000-01-01"}, "skipped: expected a time for each security, got a value of type dict"),
        ({"CBA.ASX@TM": "yesterday"}, "CBA.ASX@TM: expected a date or a time, got 'yesterday'"),
    ],
    ids=["a list", "a path", "a word"],
)
def test_a_list_that_no_load_wrote_is_told(skipped: Any, message: str):
    memory = Memory()
    memory.load(FIRST + DAY)
    key, state = memory.state()
    memory.set(key, state | {"skipped": skipped})
    with pytest.raises(OpenmarketsError, match="The state of this incremental load is damaged") as caught:
        memory.load(FIRST + 2 * DAY)
    assert message in str(caught.value)


@pytest.mark.parametrize("securities", [["CBA.ASX@TM", "RIO.ASX@TM"], ["CBA.ASX@TM"], None])
def test_those_that_are_all_left_out_again_stay_in_the_list(securities: Any):
    memory = Memory()
    memory.known = {"BHP.ASX@TM"}
    memory.load(FIRST + 5 * DAY)
    memory.known = set(SECURITIES)

    def fail(source: Any, query: queries.Query) -> LoadResult:
        raise OpenmarketsQueryError("none", securities=securities)

    memory.add = fail  # type: ignore[method-assign]
    if securities == ["CBA.ASX@TM", "RIO.ASX@TM"]:
        assert memory.load(FIRST + 7 * DAY).skipped == securities
    else:
        with pytest.raises(OpenmarketsQueryError):
            memory.load(FIRST + 7 * DAY)
    assert memory.state()[1]["skipped"] == dict.fromkeys(["CBA.ASX@TM", "RIO.ASX@TM"], str(FIRST))


def test_what_another_run_lists_meanwhile_stays():
    memory = Memory()
    memory.known = {"BHP.ASX@TM"}
    memory.load(FIRST + 5 * DAY)
    key, state = memory.state()
    memory.known = set(SECURITIES)
    add = memory.add

    def add_beside(source: Any, query: queries.Query) -> LoadResult:
        memory.set(
            key, state | {"skipped": {"CBA.ASX@TM": "1999-12-31", "RIO.ASX@TM": str(FIRST), "XYZ.ASX@TM": "2000-01-03"}}
        )
        return add(source, query)

    memory.add = add_beside  # type: ignore[method-assign]
    assert memory.load(FIRST + 6 * DAY).skipped == ["CBA.ASX@TM", "XYZ.ASX@TM"]
    assert memory.state()[1]["skipped"] == {"CBA.ASX@TM": "1999-12-31", "XYZ.ASX@TM": "2000-01-03"}
