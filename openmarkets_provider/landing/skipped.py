"""Securities that incremental loads leave out (``on_invalid="warn"``), and how their rows are added later.

A list of them has each security with the moment from which its rows are missing, as text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.claims import Claim, align_moment, resolve_open
from openmarkets_provider.landing.destination import Destination, LoadResult, Source, name_codes, with_range
from openmarkets_provider.query.exchange_time import read_moment, to_text
from openmarkets_provider.query.query import Query

log = logging.getLogger(__name__)

MAX_SKIPPED = 1000
"""Most securities that a state lists. They fit the 64 KiB that Airflow's REST API accepts."""
MAX_ADDED = timedelta(days=366)
"""Longest past range that one load adds."""


def add_skipped(
    source: Source, query: Query, destination: Destination, listed: Mapping[str, str], pulled: Claim, watermark: str
) -> tuple[dict[str, str], LoadResult | None]:
    """Add the rows that earlier loads left out, for securities that this load did not leave out.

    :param listed: the securities, each with the moment from which its rows are missing, as text.
    :param pulled: the range that this load has pulled.
    :return: the securities whose rows are still missing, in the same form; and the result of what was added, if any.
    """
    arguments = resolve_open(query)
    reached = end = align_moment(arguments, read_moment(watermark))
    if pulled.end >= reached:
        reached = pulled.start
    missing = {each: align_moment(arguments, read_moment(since)) for each, since in listed.items()}
    missing = {each: since for each, since in missing.items() if since < reached}
    if not missing:
        return {}, None
    start = min(missing.values())
    named = name_codes(source, with_range(query, start, end))["securities"]
    if gone := sorted(missing.keys() - named):
        log.warning(
            "%s: the query no longer names %.1000r; the rows that were left out will not be loaded.",
            destination.name,
            gone,
        )
    if not (asked := sorted(missing.keys() & named)):
        return {}, None
    until = min(reached, align_moment(arguments, read_moment(to_text(start)) + MAX_ADDED))
    start, until = destination.range_to_pull(query, start, until, watermark)
    log.info("Adding the rows from %s to %s that earlier loads left out for %.1000r.", start, until, asked)
    past = {**query, "securities": asked, "exchange": None, "on_invalid": "warn"}
    try:
        added = destination.add(source, with_range(past, start, until))
    except OpenmarketsQueryError as error:
        # All of them are left out again.
        if error.securities is None or not set(asked).issubset(error.securities):
            raise
        added = None
    still = asked if added is None else added.skipped
    since = {each: missing[each] if each in still else max(missing[each], until) for each in asked}
    return {each: to_text(moment) for each, moment in since.items() if each in still or moment < reached}, added


def replace_skipped(
    skipped: Mapping[str, str], listed: Mapping[str, str], missing: Mapping[str, str]
) -> dict[str, str]:
    """Return the list of a state after rows were added. Changes by another run in the meantime stay.

    :param skipped: the current list.
    :param listed: the earlier entries.
    :param missing: the entries that replace them.
    """
    same = {each for each, since in listed.items() if skipped.get(each) == since}
    return {
        each: missing[each] if each in same else since
        for each, since in skipped.items()
        if each not in same or each in missing
    }


def combine(result: LoadResult, added: LoadResult) -> LoadResult:
    """Return the result of a load that has also added rows of the past."""
    if not added.rows:
        return result
    ranges: Any = result.range, added.range
    return result._replace(
        rows=result.rows + added.rows,
        bytes=None if result.bytes is None or added.bytes is None else result.bytes + added.bytes,
        files=list(dict.fromkeys([*added.files, *result.files])),
        range={
            "start": min((each["start"] for each in ranges), key=read_moment),
            "end": max((each["end"] for each in ranges), key=read_moment),
        },
    )
