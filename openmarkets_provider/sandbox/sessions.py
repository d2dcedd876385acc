"""Made-up trading sessions: pure functions of a security and a day.

All prices and volumes of a session are generated together, so bars need no trade records. Prices are in points,
hundredths of a cent; times are exchange time without an offset. Shares trade from 10:00 to 16:00 on every trading
day.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from operator import mul
from typing import NamedTuple

from openmarkets_provider.sandbox.chance import share_of
from openmarkets_provider.sandbox.securities import LISTED, Security
from openmarkets_provider.sessions.calendar import ASX, EXCHANGE_ZONE, OPEN_TIME

FIRST_DAY = date.fromisoformat(LISTED)
SESSION_END = time(16)

_SESSION_MILLISECONDS = 6 * 3600 * 1000
_MILLISECOND = timedelta(milliseconds=1)
_FEWEST_TRADES, _MOST_TRADES = 40, 80


class Trade(NamedTuple):
    """A trade; the price is in points."""

    number: int
    at: datetime
    price: int
    volume: int


class Session(NamedTuple):
    """The trades of a security on a day, or the first of them; `planned` is the number of the whole day."""

    day: date
    planned: int
    prices: list[int]
    volumes: list[int]

    @property
    def start(self) -> datetime:
        """When the exchange opens."""
        return datetime.combine(self.day, OPEN_TIME)

    def until(self, moment: datetime) -> Session:
        """Return the session up to a moment."""
        count = bisect_right(range(len(self.prices)), (moment - self.start) // _MILLISECOND, key=self._offset)
        return self._replace(prices=self.prices[:count], volumes=self.volumes[:count])

    def trade(self, index: int) -> Trade:
        """Return a trade by its index."""
        return Trade(
            number=int(f"{self.day:%Y%m%d}0001") + index,
            at=self.start + self._offset(index) * _MILLISECOND,
            price=self.prices[index],
            volume=self.volumes[index],
        )

    def trades(self) -> Iterator[Trade]:
        """Yield the trades in order of time."""
        return map(self.trade, range(len(self.prices)))

    def _offset(self, index: int) -> int:
        return _SESSION_MILLISECONDS * index // self.planned


def to_gmt(moment: datetime) -> str:
    """Format an exchange time as UTC without an offset."""
    return stamp(moment.replace(tzinfo=EXCHANGE_ZONE).astimezone(UTC).replace(tzinfo=None))


def stamp(moment: datetime) -> str:
    """Format a time as in the APIs."""
    return moment.isoformat(timespec="milliseconds")


def tick(points: float) -> int:
    """Return the exchange's price step: 0.1 cent below 10 cents, half a cent below 2 dollars, else a cent."""
    if points < 1000:
        return 10
    return 50 if points < 20_000 else 100


def snap(points: float) -> int:
    """Return the nearest price that the exchange allows."""
    step = tick(points)
    return max(step, round(points / step) * step)


def lot(security: Security, day: date = date.max) -> int:
    """Return a number of shares with a value of about a thousand dollars."""
    return max(1, int(100_000 * security.factor(day) // security.base))


def worth(prices: Iterable[int], volumes: Iterable[int]) -> int:
    """Return the total value of volumes at their prices, in points."""
    return sum(map(mul, prices, volumes))


def day_before(day: date) -> date:
    """Return the last trading day before a day, but not before FIRST_DAY: there are no data before it."""
    return ASX.previous_session(day) if day > FIRST_DAY else FIRST_DAY


@lru_cache(maxsize=16_384)
def close_price(security: Security, day: date) -> int:
    """Return the day's last price: two slow waves and some noise around the base price."""
    slow, fast = _phases(security)
    number = day.toordinal()
    wave = (
        0.10 * math.sin(math.tau * (number / 251 + slow))
        + 0.04 * math.sin(math.tau * (number / 23 + fast))
        + 0.012 * (share_of(security.code, number) - 0.5)
    )
    return snap(security.base_price * (1 + wave) / float(security.factor(day)))


@lru_cache(maxsize=4096)
def session_of(security: Security, day: date) -> Session:
    """Return the whole session of a trading day."""
    if not security.traded:
        return Session(day, 0, [], [])
    noise = hashlib.shake_128(f"{security.code} {day}".encode()).digest(2 + 2 * _MOST_TRADES)
    count = _FEWEST_TRADES + noise[0] * (_MOST_TRADES - _FEWEST_TRADES) // 256
    before = day_before(day)
    change = float(security.factor(before) / security.factor(day))
    opening = close_price(security, before) * change * (1 + (noise[1] - 128) / 32_000)
    closing = close_price(security, day)
    # One price step for the day, valid at its highest price: coarse steps are multiples of finer ones.
    step = tick(max(opening, closing) * 1.01)
    first, rise = opening / step, (closing - opening) / step / (count - 1)
    # A byte changes a price by at most 0.6 %.
    prices = [
        step * round((first + rise * index) * (0.994 + byte / 21_333))
        for index, byte in enumerate(noise[2 : 2 + count])
    ]
    prices[0], prices[-1] = snap(opening), closing
    unit = lot(security, day)
    volumes = [unit * (1 + byte % 40) for byte in noise[-count:]]
    return Session(day, count, prices, volumes)


def sessions(security: Security, first: date, last: date, now: datetime) -> Iterator[Session]:
    """Yield the sessions from first to last, inclusive, up to the current time."""
    first, last = max(first, FIRST_DAY), min(last, now.date())
    for day in ASX.sessions_in_range(first, last) if first <= last else ():
        session = session_of(security, day)
        yield session.until(now) if day == now.date() else session


def current_session(security: Security, now: datetime) -> Session:
    """Return the current session up to now, or the last one."""
    day = now.date()
    if not ASX.is_session(day) or now.time() < OPEN_TIME:
        day = day_before(day)
    return session_of(security, day).until(now)


def last_price(security: Security, now: datetime) -> int:
    """Return the price of the last trade, in points, or a made-up price if there is no trade."""
    session = current_session(security, now)
    return session.prices[-1] if session.prices else close_price(security, day_before(session.day))


def next_close(moment: datetime) -> datetime:
    """Return when the exchange next closes."""
    days = ASX.sessions_in_range(moment.date(), moment.date() + timedelta(days=14))
    closes = (datetime.combine(day, SESSION_END) for day in days)
    return next(close for close in closes if moment < close)


def trades_between(security: Security, first: datetime, last: datetime) -> Iterator[Trade]:
    """Yield the trades from first to last, inclusive."""
    for session in sessions(security, first.date(), last.date(), last):
        yield from (trade for trade in session.trades() if first <= trade.at)


@lru_cache(maxsize=4096)
def _phases(security: Security) -> tuple[float, float]:
    return share_of(security.code, "slow"), share_of(security.code, "fast")
