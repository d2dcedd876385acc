"""What the arguments of a query may hold. Pure.

Every check names the query and the argument, and returns the value in the form that planning needs. Values that are
not final yet, templates and results of upstream tasks, are left alone while the DAG is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from urllib.parse import unquote

from openmarkets_provider.exceptions import OpenmarketsQueryError
from openmarkets_provider.query.exchange_time import MAX_DAYS, exchange_date, first_of_week, floor, read_moment

DEFAULT_EXCHANGE = "ASX"
DEFAULT_DATA_SOURCE = "TM"
FREQUENCIES = ("Daily", "Weekly")
ON_INVALID = ("error", "warn")
MAX_LEVELS = 100
ALL = "*"
"""For accounts: all that the client sees. Said in words, so that a template that renders None does not mean it."""

_SECURITY = re.compile(r"(?P<code>[\w-]{1,50})(?:\.(?P<exchange>[\w-]{1,50}))?(?:@(?P<source>[\w-]{1,50}))?", re.ASCII)
_WORD = re.compile(r"[\w-]{1,50}", re.ASCII)
_JINJA = re.compile(r"\{[{%#]")
_MAX_CODE = 100
_NO_CODE = set("/\\[]'\"*")


Final = Callable[[Any], bool]
"""Tells whether a value is final, or comes to be known later."""


def is_literal(value: Any) -> bool:
    """Tell whether a value is known while the DAG is parsed: no Jinja template, no upstream result."""
    if isinstance(value, str):
        return _JINJA.search(value) is None
    return not hasattr(value, "resolve")


def is_security(text: str) -> bool:
    """Tell whether a text is a security that the API can be asked about."""
    return _SECURITY.fullmatch(text) is not None


def aligned(name: str, given: Mapping[str, Any], moment: datetime) -> date | datetime:
    """Return what a bound of a query's range means: of bars the one that it is in, else the moment itself.

    :param given: the query's arguments in their final form.
    :return: for daily bars the exchange date, for weekly ones that of the Saturday before, else an aware datetime.
    """
    if name == "time_series":
        day = exchange_date(moment)
        return first_of_week(day) if given["frequency"] == "Weekly" else day
    return floor(moment, given["interval"]) if name == "intraday_time_series" else moment


def check_range(name: str, arguments: Mapping[str, Any], start: Any, end: Any) -> None:
    """Refuse a range that holds nothing.

    :param start: aligned.
    :param end: aligned.
    :raises OpenmarketsQueryError: end is not after start, or both are in the same bar.
    """
    if start < end:
        return
    said = f"start {arguments['start']!r} and end {arguments['end']!r}"
    raise OpenmarketsQueryError(
        f"{name}: {said} are an empty or reversed range. end must be after start; of bars it must be in a later one "
        "(another exchange day, week or interval, Australia/Sydney), which is not part of the range."
    )


def _check_securities(name: str, argument: str, value: Any, final: Final) -> list[str] | None:
    """Return the final ones of the securities in full form, each once, in the order given."""
    return _codes(name, argument, value, final, "BHP", _full_security)


def _check_codes(name: str, argument: str, value: Any, final: Final) -> list[str] | str | None:
    if argument == "accounts" and value == ALL:
        return ALL
    return _codes(name, argument, value, final, "12345", _code)


def _codes(
    name: str, argument: str, value: Any, final: Final, example: str, read: Callable[[str, str, Any], str]
) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, list | tuple):
        raise OpenmarketsQueryError(
            f"{name}: {argument} must be a list such as ['{example}'] or a text such as '{example}' with commas "
            f"between several, not {kind(value)}."
        )
    if not value:
        raise OpenmarketsQueryError(f"{name}: {argument} is empty; name at least one.")
    return list(dict.fromkeys(read(name, argument, item) for item in value if final(item)))


def _full_security(name: str, argument: str, value: Any) -> str:
    match = _SECURITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise OpenmarketsQueryError(
            f"{name}: {argument}: {shown(value)} is malformed; write 'BHP', 'BHP.ASX' or 'BHP.ASX@TM'."
        )
    code, exchange, source = match.group("code", "exchange", "source")
    return f"{code}.{exchange or DEFAULT_EXCHANGE}@{source or DEFAULT_DATA_SOURCE}"


def _code(name: str, argument: str, value: Any) -> str:
    code = value.strip() if isinstance(value, str) else ""
    # Cut, since text that was encoded very often takes as many rounds.
    plain = decode_percent(code[:_MAX_CODE])
    if not code or len(code) > _MAX_CODE or not plain.isprintable() or plain in (".", "..") or set(plain) & _NO_CODE:
        raise OpenmarketsQueryError(
            f"{name}: {argument}: {shown(value)} is malformed; a code is a text such as '12345', without slashes, "
            "brackets and quotes. Is it a list that a template turned into text?"
        )
    return code


def _check_exchange(name: str, argument: str, value: Any, final: Final) -> str | None:
    if value is None and name != "securities":
        return None
    match = _WORD.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise OpenmarketsQueryError(f"{name}: {argument} must be a code such as 'ASX', not {shown(value)}.")
    return match.group()


def _check_moment(name: str, argument: str, value: Any, final: Final) -> datetime:
    try:
        if isinstance(value, str):
            return read_moment(value)
        problem = kind(value)
    except ValueError:
        problem = shown(value)
    raise OpenmarketsQueryError(
        f"{name}: {argument} must be a date or a time such as '2026-01-05' or '2026-01-05T10:00:00+11:00' "
        f"(exchange time, Australia/Sydney, where it has no offset), not {problem}."
    )


def _check_number(name: str, argument: str, value: Any, allowed: Sequence[int], words: str) -> int:
    # What a template renders is text.
    short = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10
    number = int(value) if short else value
    if not isinstance(number, int) or isinstance(number, bool) or number not in allowed:
        raise OpenmarketsQueryError(f"{name}: {argument} must be {words}, not {value!r:.50}.")
    return number


def _check_interval(name: str, argument: str, value: Any, final: Final) -> int:
    return _check_number(name, argument, value, list(MAX_DAYS), f"one of {', '.join(map(str, MAX_DAYS))} (minutes)")


def _check_levels(name: str, argument: str, value: Any, final: Final) -> int:
    return _check_number(name, argument, value, range(1, MAX_LEVELS + 1), f"a whole number from 1 to {MAX_LEVELS}")


def _one_of(allowed: Sequence[str]) -> Callable[[str, str, Any, Final], Any]:
    def check_choice(name: str, argument: str, value: Any, final: Final) -> Any:
        if isinstance(value, str) and value in allowed:
            # Not value itself: a member of an Enum of texts would be sent as its name.
            return next(choice for choice in allowed if value == choice)
        words = ", ".join(map(repr, allowed))
        raise OpenmarketsQueryError(f"{name}: {argument} must be one of {words}, not {value!r:.50}.")

    return check_choice


def _check_flag(name: str, argument: str, value: Any, final: Final) -> bool:
    # What a template renders is text.
    flags = {True: True, False: False, "True": True, "False": False}
    flag = flags.get(value) if isinstance(value, bool | str) else None
    if flag is None:
        raise OpenmarketsQueryError(f"{name}: {argument} must be True or False, not {value!r:.50}.")
    return flag


CHECKS: Mapping[str, Callable[[str, str, Any, Final], Any]] = {
    "securities": _check_securities,
    "accounts": _check_codes,
    "portfolios": _check_codes,
    "exchange": _check_exchange,
    "start": _check_moment,
    "end": _check_moment,
    "frequency": _one_of(FREQUENCIES),
    "interval": _check_interval,
    "levels": _check_levels,
    "include_child_orders": _check_flag,
    "include_same_cash_account": _check_flag,
    "on_invalid": _one_of(ON_INVALID),
    "raw": _check_flag,
}
"""Argument of a typed query to the function that checks it and returns what the planner needs."""


def decode_percent(text: str) -> str:
    """Undo percent-encoding, however often it was done."""
    while (further := unquote(text)) != text:
        text = further
    return text


def check_json(arguments: Mapping[str, Any], final: Final) -> None:
    """Refuse what is not JSON-able among the final values.

    :raises OpenmarketsQueryError: an argument holds such a value.
    """

    def later(value: Any) -> None:
        if final(value):
            raise TypeError(f"{kind(value)} is not JSON-able")

    for key, value in arguments.items():
        if value is None or isinstance(value, bool):
            continue
        try:
            # Encoded, because a lone surrogate is a text that can't be sent.
            json.dumps(value, allow_nan=False, ensure_ascii=False, default=later).encode()
        except (TypeError, ValueError, RecursionError) as error:
            name = key if isinstance(key, str) and key.isidentifier() else brief(key)
            problem = "nested too deep" if isinstance(error, RecursionError) else error
            raise OpenmarketsQueryError(
                f"query: argument {name:.100}: {problem}; a query holds texts, numbers, booleans, None, lists and "
                "dicts only (times as ISO 8601 texts)."
            ) from None


def listed(value: Any) -> Any:
    """Turn a sequence that loads its items when asked, as the results of mapped tasks do, into a list."""
    lazy = isinstance(value, Sequence) and not isinstance(value, str | bytes | list | tuple)
    return list(value) if lazy else value


def shown(value: Any) -> str:
    """Return what an error tells of a value: a text itself, cut, or what kind of value it is."""
    text = brief(value)
    return text if isinstance(value, str) or text == kind(value) else f"{kind(value)} ({text})"


def brief(value: Any) -> str:
    """Return a value as Python writes it, cut, or what kind of value it is where that may be long or impossible."""
    if isinstance(value, str):
        return f"{value!r:.200}"
    # Python writes no int of thousands of digits.
    return repr(value) if isinstance(value, int | float) and abs(value) < 10**18 else kind(value)


def kind(value: Any) -> str:
    """Return what kind of value it is, in words."""
    return "None" if value is None else f"a value of type {type(value).__name__}"
