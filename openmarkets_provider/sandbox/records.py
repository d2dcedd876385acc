"""A user's records, which replace made-up ones. They have the API's fields and units."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from openmarkets_provider.sandbox import accounts, data
from openmarkets_provider.sandbox.accounts import Directory, Portfolio
from openmarkets_provider.sandbox.fields import check_names, is_scalar
from openmarkets_provider.sandbox.securities import (
    DATA_SOURCE,
    EXCHANGE,
    SECURITIES,
    Record,
    Security,
    find,
    well_formed,
)
from openmarkets_provider.sessions.calendar import EXCHANGE_ZONE


class Kind(NamedTuple):
    """A kind of record.

    :ivar name: plural name.
    :ivar fields: the fields of a made-up record.
    :ivar required: a text field that each record must have.
    :ivar defaults: values of missing fields; other missing fields are null.
    """

    name: str
    fields: tuple[str, ...]
    required: str
    defaults: Record


_TODAY = date(2026, 3, 5)
_OPEN, _NOON = map(datetime.fromisoformat, ("2026-03-05T10:00", "2026-03-05T12:00"))
_SHARE, _PORTFOLIO = SECURITIES["BHP"], accounts.PORTFOLIOS["SBX0001P"]


def _fields(record: Record) -> tuple[str, ...]:
    return tuple(name for name in record if name not in data.UNKNOWN_FIELD)


_DAYS = Kind(
    "bars",
    _fields(data.time_series(_SHARE, _TODAY, _TODAY, weekly=False, now=_NOON)[0]),
    "timeSeriesDate",
    {"adjustmentFactor": 1},
)
_MINUTES = Kind(
    "bars",
    _fields(data.intraday_series(_SHARE, _OPEN, _NOON, minutes=60, now=_NOON)[0]),
    "timeSeriesDateTime",
    {},
)
BARS = {"Daily": _DAYS, "Weekly": _DAYS, "Minutes": _MINUTES}
"""By the frequency in requests."""
POSITIONS = Kind(
    "positions",
    _fields(accounts.position_record(_PORTFOLIO, _SHARE, _NOON)),
    "securityCode",
    {"exchange": EXCHANGE},
)
CASH = Kind("cash", _fields(accounts.cash_record(_PORTFOLIO, _NOON)), "currencyCode", {"currencyCode": "AUD"})
INFORMATION = tuple(name for name in data.information(_SHARE) if name not in ("securityCode", "exchange"))
MULTIPLIERS = (1, 0.1, 0.01, 0.001, 0.0001)
ACCOUNTS = Kind("accounts", _fields(accounts.account_record(accounts.ACCOUNTS["SBX0001"])), "accountCode", {})


class Own(NamedTuple):
    """A user's records, and the moment of ``time.monotonic()`` at which they were set."""

    records: list[Record]
    moment: float


class Records:
    """The user's records, and all accounts."""

    def __init__(self) -> None:
        """Start without records, with the default accounts."""
        self.clear()

    def clear(self) -> None:
        """Remove all."""
        self.directory = accounts.DIRECTORY
        self._added: dict[str, Security] = {}
        self._information: dict[Security, Record] = {}
        self._bars: dict[tuple[Security, str], list[tuple[date, Record]]] = {}
        self._positions: dict[str, Own] = {}
        self._cash: dict[str, Own] = {}

    def add_security(self, text: str, fields: Mapping[str, Any]) -> None:
        """Add a security with fields of its information. Everything else is made up.

        :raises ValueError: an argument is invalid, as in the other methods; the message names it.
        """
        code = text.partition(".")[0]
        if not well_formed(text) or text != f"{code}.{EXCHANGE}@{DATA_SOURCE}" or self.find(text):
            raise ValueError(
                f"a new security must be written like NEW.{EXCHANGE}@{DATA_SOURCE} and not exist yet; it is {text!r}"
            )
        check_names(fields, INFORMATION)
        _check_values(fields)
        multiplier = fields.get("priceMultiplier", 0.01)
        if multiplier not in (*MULTIPLIERS, None):
            raise ValueError(f"priceMultiplier must be one of {', '.join(map(str, MULTIPLIERS))}, or null")
        name = str(fields.get("securityDescription") or f"Security {code}")
        security = Security(code, name, None, 1000, Decimal(str(float(multiplier or 0.01))))
        self._added[text], self._information[security] = security, dict(fields)

    @property
    def new_securities(self) -> list[Security]:
        """The added securities."""
        return list(self._added.values())

    def find(self, text: str) -> Security | None:
        """Return the security with a name, or None."""
        return self._added.get(text) or find(text)

    def describe(self, security: Security, record: Record) -> Record:
        """Return a record of a security with the fields that it was added with."""
        return record | {name: value for name, value in self._information.get(security, {}).items() if name in record}

    def require(self, text: str) -> Security:
        """Return the security with a name.

        :raises ValueError: there is none.
        """
        security = self.find(text)
        if security is None:
            raise ValueError(f"the sandbox doesn't know the security {text!r}; write it like BHP.ASX@TM")
        return security

    def set_bars(self, security: str, records: object, frequency: str) -> None:
        """Set all bars of a security for a frequency."""
        share = self.require(security)
        if frequency not in BARS:
            raise ValueError(f"frequency must be one of {', '.join(BARS)}")
        kind = BARS[frequency]
        bars = _checked(kind, records, {})
        self._bars[share, frequency] = [(_moment(kind, bar), bar) for bar in bars]

    def bars(self, security: Security, frequency: str, first: date, last: date) -> list[Record] | None:
        """Return the user's bars from first to last, inclusive; None if there are none.

        The range is exchange days, or exchange times without an offset for minutes.
        """
        bars = self._bars.get((security, frequency))
        return None if bars is None else [bar for at, bar in bars if first <= at <= last]

    def set_positions(self, code: str, records: object) -> None:
        """Set all positions of a portfolio."""
        portfolio = self._portfolio(code)
        owner = {"accountCode": portfolio.account, "portfolioCode": portfolio.code}
        self._positions[code] = Own(_checked(POSITIONS, records, owner), time.monotonic())

    def positions(self, portfolio: Portfolio) -> Own | None:
        """Return the user's positions, or None."""
        return self._positions.get(portfolio.code)

    def set_cash(self, code: str, records: object) -> None:
        """Set the cash of a portfolio, a record for each currency."""
        portfolio = self._portfolio(code)
        owner = {
            "accountCode": portfolio.account,
            "portfolioCode": portfolio.code,
            "portfolioCashCode": portfolio.cash,
            "portfolioCashName": portfolio.name,
        }
        self._cash[code] = Own(_checked(CASH, records, owner), time.monotonic())

    def cash(self, portfolio: Portfolio) -> Own | None:
        """Return the user's cash, or None."""
        return self._cash.get(portfolio.code)

    def set_accounts(self, records: object) -> None:
        """Replace all accounts, portfolios, positions and cash.

        Each account has one empty portfolio of the same code.
        """
        self.directory = Directory.of(_checked(ACCOUNTS, records, {}))
        self._positions, self._cash = {}, {code: Own([], time.monotonic()) for code in self.directory.portfolios}

    def _portfolio(self, code: str) -> Portfolio:
        portfolios = self.directory.portfolios
        if code not in portfolios:
            raise ValueError(f"the sandbox has no portfolio {code!r}; it has {', '.join(portfolios)}")
        return portfolios[code]


def _checked(kind: Kind, records: object, owner: Mapping[str, object]) -> list[Record]:
    """Check records of a kind, and complete their fields."""
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{kind.name} must be a list of objects with the fields {', '.join(kind.fields)}")
    return [_complete(kind, record, owner) for record in records]


def _complete(kind: Kind, record: Record, owner: Mapping[str, object]) -> Record:
    check_names(record, kind.fields, f" in {kind.name}")
    complete = {**dict.fromkeys(kind.fields), **kind.defaults, **owner, **record}
    _check_values(complete)
    if not isinstance(complete[kind.required], str) or not complete[kind.required]:
        raise ValueError(f"each of the {kind.name} needs {kind.required}, a string")
    return complete


def _check_values(record: Mapping[str, object]) -> None:
    for name, value in record.items():
        if not is_scalar(value):
            raise ValueError(f"{name} must be a string, a number, true, false or null; it is {value!r}")


def _moment(kind: Kind, bar: Record) -> date:
    """Return the exchange day of a bar, or the exchange time without an offset of an intraday bar."""
    text = str(bar[kind.required])
    try:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo is None else at.astimezone(EXCHANGE_ZONE).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise ValueError(f"{kind.required} must be an ISO 8601 date or time; it is {text!r}") from None
    return at if kind is _MINUTES else at.date()
