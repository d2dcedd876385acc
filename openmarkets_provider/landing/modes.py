"""How a load changes a table, and which rows it replaces. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.landing.layout import Layout, layout_of
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.endpoints import BAR_LENGTH
from openmarkets_provider.query.query import Query, resolve, subject_of, window

APPEND, UPSERT, REPLACE_RANGE = "append", "upsert", "replace_range"
STAGE = "openmarkets_load"
"""The temporary table that rows are sent to first. No other table may have this name."""
MODES = (UPSERT, APPEND, REPLACE_RANGE)
EVOLVE, FREEZE = SCHEMA_POLICIES = ("evolve", "freeze")
"""What to do with a table that lacks a column: add the column, or refuse the table."""


class Coverage(NamedTuple):
    """The rows that a query covers: those in its range, of its securities or accounts, with its length of bars.

    :ivar time: the column of the range.
    :ivar start: the first time or date in the range.
    :ivar end: the first time or date after the range.
    :ivar columns: the columns that identify a security or an account, and the length of bars.
    :ivar subjects: the values of these columns for each security or account.
    """

    time: str
    start: Any
    end: Any
    columns: tuple[str, ...]
    subjects: Sequence[tuple[str | int, ...]]


def check_mode(mode: str, query: Query, *, incremental: bool) -> None:
    """Refuse a mode that does not go with a query. A template is not checked.

    :raises ValueError: there is no such mode, or it does not go with ``incremental``.
    :raises OpenmarketsQueryError: it does not go with the query.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, not {mode!r}.")
    if mode == APPEND and incremental:
        raise ValueError(
            f"mode={APPEND!r} can't be used with incremental: it would load the overlap twice. Use {UPSERT!r}."
        )
    if mode == APPEND or not is_literal(query) or not isinstance(query, dict):
        return
    layout = layout_of(query)
    if not layout.has_schema:
        raise OpenmarketsQueryError(
            f"{layout.name}: mode={mode!r} needs rows with a key, and the API's own records have none. Use "
            f"mode={APPEND!r}."
        )
    if mode == REPLACE_RANGE and layout.time is None:
        raise OpenmarketsQueryError(
            f"{layout.name}: mode={REPLACE_RANGE!r} needs a query with a range (start and end). Use mode={UPSERT!r}."
        )


def coverage_of(query: Query, layout: Layout, skipped: Container[str] = ()) -> Coverage:
    """Return what a query covers.

    :param query: with a range, and with the codes of its securities or accounts.
    :param skipped: securities that were left out, in full form. Their rows are not replaced.
    """
    arguments, time = resolve(query), str(layout.time)
    bounds: Any = window(query)
    if subject_of(query) == "accounts":
        # Rows of other accounts in the same portfolio are included, but not all of them.
        return Coverage(time, bounds[0], bounds[1], ("account_code",), [(code,) for code in arguments["accounts"]])
    lengths = [name for name in BAR_LENGTH if name in arguments]
    columns = ("security_code", "exchange", "data_source", *lengths)
    subjects = [
        (*_parts(security), *(arguments[name] for name in lengths))
        for security in arguments["securities"]
        if security not in skipped
    ]
    return Coverage(time, bounds[0], bounds[1], columns, subjects)


def _parts(security: str) -> tuple[str, ...]:
    listing, _, source = security.partition("@")
    code, _, exchange = listing.partition(".")
    return code, exchange, source
