"""The securities of the sandbox: real ASX companies, and invented shares and options.

Only the codes and names of the companies are real. Everything else (typical price, listing date, identifiers, price
multiplier, invented shares, options) is made up or derived from the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache, cached_property

from openmarkets_provider.sandbox.chance import share_of

EXCHANGE = "ASX"
DATA_SOURCE = "TM"
LISTED = "2000-01-04"
POINTS_PER_DOLLAR = 10_000

_INVENTED = 2000
_PATTERN = re.compile(r"([A-Z0-9]{1,6})\.([A-Z]{1,4})@([A-Z]{1,4})")

Record = dict[str, object]


@dataclass(frozen=True)
class Option:
    """The terms of an option on a share; the exercise price is in points."""

    underlying: str
    kind: str
    exercise_price: int
    maturity: str


@dataclass(frozen=True)
class Action:
    """A split, consolidation or dividend. Earlier prices times the factor are comparable with later ones."""

    first_day: date
    factor: Decimal


# Compared by identity, which is fast: securities are keys of caches.
@dataclass(frozen=True, eq=False)
class Security:
    """A listed share or option. Its price varies around `base`, in cents.

    `base` is the level after its `action`. A price in dollars is the native price times `multiplier`; points are
    hundredths of a cent. A security that isn't `traded` has never had a trade.
    """

    code: str
    name: str
    gics: str | None
    base: int
    multiplier: Decimal = Decimal("0.01")
    option: Option | None = None
    traded: bool = True
    action: Action | None = None

    def factor(self, day: date, today: date = date.max) -> Decimal:
        """Return the factor that makes a price of a day comparable with today's prices."""
        if self.action is not None and day < self.action.first_day <= today:
            return self.action.factor
        return Decimal(1)

    @property
    def text(self) -> str:
        """The name in requests, such as BHP.ASX@TM."""
        return f"{self.code}.{EXCHANGE}@{DATA_SOURCE}"

    @property
    def type(self) -> str:
        """The type in the APIs."""
        return "Equity" if self.option is None else "Option"

    @property
    def issuer(self) -> Security:
        """The underlying share of an option, or the share itself."""
        return self if self.option is None else SECURITIES[self.option.underlying]

    @property
    def base_price(self) -> int:
        """The price around which it varies, in points."""
        return self.base * 100

    @property
    def isin(self) -> str | None:
        """The ISIN; None for options."""
        return isin(self.code) if self.option is None else None

    @cached_property
    def _native_points(self) -> int:
        return int(self.multiplier * POINTS_PER_DOLLAR)

    def native(self, points: int) -> int | float:
        """Convert a price from points to native units; an int if it is whole."""
        whole, rest = divmod(points, self._native_points)
        return whole if rest == 0 else points / self._native_points

    def average(self, value: int, volume: int) -> float:
        """Return the average price in native units, from a value in points and a volume."""
        return round(value / (volume * self._native_points), 6)


_COMPANIES = (
    Security("AGL", "AGL Energy Limited", "5510", 1050),
    Security("ALL", "Aristocrat Leisure Limited", "2530", 6500),
    Security("ANZ", "ANZ Group Holdings Limited", "4010", 3000),
    Security("BHP", "BHP Group Limited", "1510", 4400),
    Security("BRN", "BrainChip Holdings Ltd", "4530", 22),
    Security("BXB", "Brambles Limited", "2020", 1900),
    Security("CBA", "Commonwealth Bank of Australia", "4010", 15500),
    Security("COH", "Cochlear Limited", "3510", 29000),
    Security("COL", "Coles Group Limited", "3010", 2000),
    Security("CSL", "CSL Limited", "3520", 24000),
    Security("FMG", "Fortescue Ltd", "1510", 1900),
    Security("GMG", "Goodman Group", "6010", 3300),
    Security("IAG", "Insurance Australia Group Limited", "4030", 800),
    Security("JBH", "JB Hi-Fi Limited", "2550", 9500),
    Security("LKE", "Lake Resources N.L.", "1510", 5),
    Security("MGR", "Mirvac Group", "6010", 220),
    Security("MPL", "Medibank Private Limited", "4030", 390),
    Security("MQG", "Macquarie Group Limited", "4020", 20000),
    Security("MSB", "Mesoblast Limited", "3520", 170),
    Security("NAB", "National Australia Bank Limited", "4010", 3900),
    Security("ORG", "Origin Energy Limited", "5510", 1000),
    Security("QAN", "Qantas Airways Limited", "2030", 850),
    Security("QBE", "QBE Insurance Group Limited", "4030", 1900),
    Security("REA", "REA Group Ltd", "5020", 23000),
    Security("RIO", "Rio Tinto Limited", "1510", 11800),
    Security("RMD", "ResMed Inc", "3510", 3600),
    Security("S32", "South32 Limited", "1510", 350),
    Security("SCG", "Scentre Group", "6010", 350),
    Security("SHL", "Sonic Healthcare Limited", "3510", 2700),
    Security("STO", "Santos Limited", "1010", 690),
    Security("SUN", "Suncorp Group Limited", "4030", 1900),
    Security("SYR", "Syrah Resources Limited", "1510", 35),
    Security("TCL", "Transurban Group", "2030", 1350),
    Security("TLS", "Telstra Group Limited", "5010", 420),
    Security("WBC", "Westpac Banking Corporation", "4010", 3300),
    Security("WDS", "Woodside Energy Group Ltd", "1010", 2500),
    Security("WES", "Wesfarmers Limited", "2550", 7500),
    Security("WOW", "Woolworths Group Limited", "3010", 3100),
    Security("WTC", "WiseTech Global Limited", "4510", 11000),
    Security("XRO", "Xero Limited", "4510", 16000),
)

_OPTIONS = (
    Security("BHPXA7", "BHP call 44.00", None, 210, Decimal(1), Option("BHP", "Call", 440_000, "2030-12-19")),
    Security("BHPXB7", "BHP put 41.50", None, 120, Decimal("0.01"), Option("BHP", "Put", 415_000, "2030-12-19")),
    Security(
        "BHPXY7", "BHP call 52.50", None, 35, Decimal(1), Option("BHP", "Call", 525_000, "2030-12-19"), traded=False
    ),
    Security("CBAXY7", "CBA put 99.99", None, 6, Decimal("0.001"), Option("CBA", "Put", 999_900, "2030-12-19"), False),
)

# On Mondays, so that all prices of a week have the same factor.
_WITH_ACTIONS = (
    Security("ZSPLIT", "Sandbox split 4:1", None, 1000, action=Action(date(2026, 3, 2), Decimal("0.25"))),
    Security("ZDIV", "Sandbox dividend of 4 %", None, 2500, action=Action(date(2026, 3, 9), Decimal("0.96"))),
    Security("ZCONS", "Sandbox consolidation 1:10", None, 500, action=Action(date(2026, 3, 16), Decimal(10))),
)

# Last digit of an invented share's number, if its multiplier isn't the usual one.
_MULTIPLIERS = {1: Decimal(1), 2: Decimal("0.001"), 3: Decimal("0.0001")}


def _invented() -> Iterator[Security]:
    for number in range(1, _INVENTED + 1):
        code = f"Z{number:04}"
        base = round(2 * 10_000 ** share_of(code, "base"))
        multiplier = _MULTIPLIERS.get(number % 100, Decimal("0.01"))
        yield Security(code, f"Sandbox share {number:04}", None, base, multiplier)


COMPANIES = {security.code: security for security in _COMPANIES}
SECURITIES = {security.code: security for security in (*_COMPANIES, *_OPTIONS, *_WITH_ACTIONS, *_invented())}


def well_formed(security: str) -> bool:
    """Return whether a text has the form `CODE.EXCHANGE@DATASOURCE`."""
    return _PATTERN.fullmatch(security) is not None


def find(security: str) -> Security | None:
    """Return the security with a name, or None."""
    match = _PATTERN.fullmatch(security)
    if match is None or match.group(2, 3) != (EXCHANGE, DATA_SOURCE):
        return None
    return SECURITIES.get(match.group(1))


@cache
def isin(code: str) -> str:
    """Return an Australian ISIN derived from a share's code, with a valid check digit."""
    stem = f"AU{code:0>9}"
    digits = "".join(str(int(character, 36)) for character in stem)
    doubled = (int(digit) * (2 - index % 2) for index, digit in enumerate(reversed(digits)))
    return f"{stem}{-sum(part // 10 + part % 10 for part in doubled) % 10}"


def listing(security: Security) -> Record:
    """Return the record in the list of securities. Invented ones lack `sedol`, which clients must accept."""
    record: Record = {
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "securityDescription": security.name,
        "securityType": security.type,
        "firstListedDate": LISTED,
        "lastListedDate": None,
        "issuerCode": security.issuer.code,
        "issuerExchange": EXCHANGE,
        "issuerName": security.issuer.name,
        "gicsCode": security.gics,
        "isin": security.isin,
        "cusip": None,
    }
    return record | {"sedol": None} if security.code in COMPANIES else record
