"""The securities that the sandbox knows: codes and names of real ASX companies.

Everything else about them (typical price, listing date, identifiers) is made up or derived from the code.
"""

from __future__ import annotations

import re
from typing import NamedTuple

EXCHANGE = "ASX"
DATA_SOURCE = "TM"
LISTED = "2000-01-04"

_PATTERN = re.compile(r"([A-Z0-9]{1,6})\.([A-Z]{1,4})@([A-Z]{1,4})")


class Security(NamedTuple):
    """A listed share; `base` is the cents that its price moves around."""

    code: str
    name: str
    gics: str
    base: int


_TABLE = (
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
SECURITIES = {security.code: security for security in _TABLE}


def well_formed(security: str) -> bool:
    """Whether the text is written `CODE.EXCHANGE@DATASOURCE`."""
    return _PATTERN.fullmatch(security) is not None


def find(security: str) -> Security | None:
    """Return the security written so, or None when the sandbox doesn't know it."""
    match = _PATTERN.fullmatch(security)
    if match is None or match.group(2, 3) != (EXCHANGE, DATA_SOURCE):
        return None
    return SECURITIES.get(match.group(1))


def isin(code: str) -> str:
    """Return the Australian ISIN that follows from a code; the check digit is right."""
    stem = f"AU000000{code}"
    digits = "".join(str(int(character, 36)) for character in stem)
    doubled = (int(digit) * (2 - index % 2) for index, digit in enumerate(reversed(digits)))
    return f"{stem}{-sum(part // 10 + part % 10 for part in doubled) % 10}"


def listing(security: Security) -> dict[str, object]:
    """Return the record that the list of securities has."""
    return {
        "securityCode": security.code,
        "exchange": EXCHANGE,
        "securityDescription": security.name,
        "securityType": "Equity",
        "firstListedDate": LISTED,
        "lastListedDate": None,
        "issuerCode": security.code,
        "issuerExchange": EXCHANGE,
        "issuerName": security.name,
        "gicsCode": security.gics,
        "isin": isin(security.code),
        "sedol": None,
        "cusip": None,
    }
