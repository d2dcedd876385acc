"""Checks of the arguments of a query. Pure.

Each check takes the names of the query and the argument for the text of its error. It returns the value in the form
that planning needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.adjust import DEFAULT_METHOD, METHODS
from openmarkets_provider.query.endpoints import MAX_DAYS
from openmarkets_provider.query.exchange_time import exchange_date, first_of_week, floor, read_moment
from openmarkets_provider.sessions.calendar import ASX

DEFAULT_EXCHANGE = "ASX"
DEFAULT_DATA_SOURCE = "TM"
FREQUENCIES = ("Daily", "Weekly")
ON_INVALID = ("error", "warn")
ON_MISSING_MULTIPLIER = ("error", "cents")
ON_MISSING_FIELD = ("warn", "error")
MAX_LEVELS = 100
ALL = "*"
"""For accounts: all that the client sees. Explicit, so that a template that renders None does not mean all."""

_SECURITY = re.compile(r"(?P<code>[\w-]{1,50})(?:\.(?P<exchange>[\w-]{1,50}))?(?:@(?P<source>[\w-]{1,50}))?", re.ASCII)
_WORD = re.compile(r"[\w-]{1,50}", re.ASCII)
_JINJA = re.compile(r"\{[{%#]")
_MAX_CODE = 100
_NO_CODE = set("/\\[]'\"*")


Predicate = Callable[[Any], bool]


def is_literal(value: Any) -> bool:
    """Tell whether a value is known while the DAG is parsed: no Jinja template, no upstream result."""
    if isinstance(value, str):
        return _JINJA.search(value) is None
    return not hasattr(value, "resolve")


def is_literal_at_run(value: Any) -> bool:
    """Replace :func:`is_literal` when a query runs: everything in a rendered query is literal."""
    return True


def is_security(text: str) -> bool:
    """Tell whether a text can be sent to the API as a security."""
    return _SECURITY.fullmatch(text) is not None


def align(arguments: Mapping[str, Any], moment: datetime) -> date | datetime:
    """Align a bound of a range with bars: return the start of the bar that contains it.

    :param arguments: of the query, in the form that planning needs.
    :param moment: aware.
    :return: the exchange date for daily bars, the date of the Saturday before for weekly bars, else an aware datetime.
    """
    if "frequency" in arguments:
        day = exchange_date(moment)
        return first_of_week(day) if arguments["frequency"] == "Weekly" else day
    return floor(moment, arguments["interval"]) if "interval" in arguments else moment


def check_range(name: str, arguments: Mapping[str, Any], start: Any, end: Any) -> None:
    """Refuse an empty range.

    :param arguments: of the query, as its author wrote them.
    :param start: aligned; see :func:`align`.
    :param end: aligned.
    :raises OpenmarketsQueryError: end is not after start, or both are in the same bar.
    """
    if start >= end:
        bounds = f"start {arguments['start']!r} and end {arguments['end']!r}"
        raise OpenmarketsQueryError(
            f"{name}: {bounds} are an empty or reversed range. end is exclusive: it must be after start and, for "
            "bars, in a later bar (exchange day, week or interval, Australia/Sydney)."
        )


def check_argument(name: str, argument: str, value: Any, is_literal: Predicate) -> Any:
    """Check an argument of a typed query and return it in the form that planning needs.

    :return: None if the value is not literal; for a list of codes, the literal ones.
    """
    if argument in _CODES and isinstance(value, list | tuple) and not all(map(is_literal, value)):
        value = list(filter(is_literal, value)) or None
    return _CHECKS[argument](name, argument, value) if is_literal(value) else None


def check_moment(name: str, argument: str, value: Any) -> datetime:
    """Return a bound of a range in UTC.

    :raises OpenmarketsQueryError: it is not an ISO 8601 date or time.
    """
    try:
        if isinstance(value, str):
            return read_moment(value)
        problem = describe_type(value)
    except ValueError:
        problem = describe(value)
    raise OpenmarketsQueryError(
        f"{name}: {argument} must be a date or a time such as '2026-01-05' or '2026-01-05T10:00:00+11:00' "
        f"(without an offset: Australia/Sydney), not {problem}."
    )


def check_session(name: str, argument: str, value: Any) -> tuple[date, date]:
    """Return a session as a range of exchange dates: its day, and the day after it.

    :raises OpenmarketsQueryError: it is malformed, or the exchange does not trade on that day.
    """
    moment = check_moment(name, argument, value)
    try:
        day = ASX.check_session(moment)
    except ValueError as error:
        raise OpenmarketsQueryError(f"{name}: {argument}: {error} To query such a day, use start and end.") from None
    return day, day + timedelta(days=1)


def _check_securities(name: str, argument: str, value: Any) -> list[str] | None:
    return _check_codes(name, argument, value, "BHP", check_security)


def _check_accounts(name: str, argument: str, value: Any) -> list[str] | str | None:
    return ALL if value == ALL else _check_portfolios(name, argument, value)


def _check_portfolios(name: str, argument: str, value: Any) -> list[str] | None:
    return _check_codes(name, argument, value, "12345", check_code)


def _check_codes(
    name: str, argument: str, value: Any, example: str, read: Callable[[str, str, Any], str]
) -> list[str] | None:
    """Return the codes in their order, without duplicates."""
    if value is None:
        return None
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, list | tuple):
        raise OpenmarketsQueryError(
            f"{name}: {argument} must be a list such as ['{example}'] or a comma-separated string such as "
            f"'{example}', not {describe_type(value)}."
        )
    if not value:
        raise OpenmarketsQueryError(f"{name}: {argument} is empty; set at least one.")
    return list(dict.fromkeys(read(name, argument, code) for code in value))


def check_security(name: str, argument: str, value: Any) -> str:
    """Return a security in full form.

    :raises OpenmarketsQueryError: it is malformed.
    """
    match = _SECURITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise OpenmarketsQueryError(
            f"{name}: {argument}: {describe(value)} is malformed; write 'BHP', 'BHP.ASX' or 'BHP.ASX@TM'."
        )
    code, exchange, source = match.group("code", "exchange", "source")
    return f"{code}.{exchange or DEFAULT_EXCHANGE}@{source or DEFAULT_DATA_SOURCE}"


def check_code(name: str, argument: str, value: Any) -> str:
    """Return the code of an account or a portfolio.

    :raises OpenmarketsQueryError: it is malformed.
    """
    code = value.strip() if isinstance(value, str) else ""
    # Cut, because text that is encoded many times takes as many rounds.
    plain = decode_percent(code[:_MAX_CODE])
    if not code or len(code) > _MAX_CODE or not plain.isprintable() or plain in (".", "..") or set(plain) & _NO_CODE:
        raise OpenmarketsQueryError(
            f"{name}: {argument}: {describe(value)} is malformed; a code is a string such as '12345', without "
            "slashes, brackets and quotes. If a template rendered a list, set "
            "render_template_as_native_obj=True."
        )
    return code


def _check_exchange(name: str, argument: str, value: Any) -> str | None:
    if value is None and name != "securities":
        return None
    match = _WORD.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise OpenmarketsQueryError(f"{name}: {argument} must be a code such as 'ASX', not {describe(value)}.")
    return match.group()


def _number_in(allowed: Sequence[int], words: str) -> Callable[[str, str, Any], int]:
    def check_number(name: str, argument: str, value: Any) -> int:
        # A template renders text.
        short = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10
        number = int(value) if short else value
        if not isinstance(number, int) or isinstance(number, bool) or number not in allowed:
            raise OpenmarketsQueryError(f"{name}: {argument} must be {words}, not {value!r:.50}.")
        return number

    return check_number


def _one_of(allowed: Sequence[str]) -> Callable[[str, str, Any], Any]:
    def check_choice(name: str, argument: str, value: Any) -> Any:
        if isinstance(value, str) and value in allowed:
            # Not value itself: a member of an Enum of texts would be sent as its name.
            return next(choice for choice in allowed if value == choice)
        words = ", ".join(map(repr, allowed))
        raise OpenmarketsQueryError(f"{name}: {argument} must be one of {words}, not {value!r:.50}.")

    return check_choice


def _check_flag(name: str, argument: str, value: Any) -> bool:
    # A template renders text.
    flags = {True: True, False: False, "True": True, "False": False}
    flag = flags.get(value) if isinstance(value, bool | str) else None
    if flag is None:
        raise OpenmarketsQueryError(f"{name}: {argument} must be True or False, not {value!r:.50}.")
    return flag


def _check_adjusted(name: str, argument: str, value: Any) -> str | bool:
    """Return the method of the adjustment, or False for none."""
    # A template renders text.
    methods: dict[Any, str | bool] = {
        True: DEFAULT_METHOD,
        "True": DEFAULT_METHOD,
        False: False,
        "False": False,
        **{method: method for method in METHODS},
    }
    if not isinstance(value, bool | str) or value not in methods:
        allowed = ", ".join(map(repr, METHODS))
        raise OpenmarketsQueryError(f"{name}: {argument} must be True, False or one of {allowed}, not {value!r:.50}.")
    return methods[value]


_CHECKS: Mapping[str, Callable[[str, str, Any], Any]] = {
    "securities": _check_securities,
    "accounts": _check_accounts,
    "portfolios": _check_portfolios,
    "exchange": _check_exchange,
    "start": check_moment,
    "end": check_moment,
    "frequency": _one_of(FREQUENCIES),
    "interval": _number_in(list(MAX_DAYS), f"one of {', '.join(map(str, MAX_DAYS))} (minutes)"),
    "adjusted": _check_adjusted,
    "levels": _number_in(range(1, MAX_LEVELS + 1), f"a whole number from 1 to {MAX_LEVELS}"),
    "include_child_orders": _check_flag,
    "include_same_cash_account": _check_flag,
    "on_invalid": _one_of(ON_INVALID),
    "on_missing_multiplier": _one_of(ON_MISSING_MULTIPLIER),
    "on_missing_field": _one_of(ON_MISSING_FIELD),
    "raw": _check_flag,
}
"""The checks of typed queries, by argument."""
_CODES = ("securities", "accounts", "portfolios")


def decode_percent(text: str) -> str:
    """Undo percent-encoding, even if it was applied several times."""
    while (further := unquote(text)) != text:
        text = further
    return text


def check_json(arguments: Mapping[str, Any], is_literal: Predicate) -> None:
    """Refuse literal values that are not JSON-able.

    :raises OpenmarketsQueryError: an argument contains such a value.
    """

    def refuse(value: Any) -> None:
        if is_literal(value):
            raise TypeError(f"{describe_type(value)} can't be written as JSON")

    for key, value in arguments.items():
        if value is None or isinstance(value, bool):
            continue
        try:
            # Encoded, because a lone surrogate is a text that can't be sent.
            json.dumps(value, allow_nan=False, ensure_ascii=False, default=refuse).encode()
        except (TypeError, ValueError, RecursionError) as error:
            name = key if isinstance(key, str) and key.isidentifier() else abbreviate(key)
            problem = "nested too deeply" if isinstance(error, RecursionError) else error
            raise OpenmarketsQueryError(
                f"query: argument {name:.100}: {problem}; a query has only strings, numbers, booleans, None, "
                "lists and dicts (times as ISO 8601 strings)."
            ) from None


def to_list(value: Any) -> Any:
    """Turn a lazy sequence, such as the results of a mapped task, into a list; leave anything else as it is."""
    lazy = isinstance(value, Sequence) and not isinstance(value, str | bytes | list | tuple)
    return list(value) if lazy else value


def describe(value: Any) -> str:
    """Describe a value for an error: a text, cut to 200 characters, or the type, and the value if it is short."""
    text = abbreviate(value)
    return text if isinstance(value, str) or text == describe_type(value) else f"{describe_type(value)} ({text})"


def abbreviate(value: Any) -> str:
    """Return the ``repr`` of a text, cut to 200 characters, or of a short number, else the type."""
    if isinstance(value, str):
        return f"{value!r:.200}"
    # Python refuses to write an int of thousands of digits.
    return repr(value) if isinstance(value, int | float) and abs(value) < 10**18 else describe_type(value)


def describe_type(value: Any) -> str:
    """Describe the type of a value for an error."""
    return "None" if value is None else f"a value of type {type(value).__name__}"
