"""The state of the sandbox: time, clients, tokens, counts, faults, and a user's settings and announcements.

The server's thread and the threads of Python callers share it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from starlette.requests import Request

from openmarkets_provider.sandbox import data, securities
from openmarkets_provider.sandbox.clock import Clock
from openmarkets_provider.sandbox.faults import Fault, Faults
from openmarkets_provider.sandbox.fields import check_names, is_scalar
from openmarkets_provider.sandbox.orders import OrderBook
from openmarkets_provider.sandbox.records import Records
from openmarkets_provider.sandbox.replies import Replies
from openmarkets_provider.sandbox.sessions import last_price

SCOPES = ("market-data-api", "news-api", "oms-api")


@dataclass(frozen=True)
class Client:
    """A client of the identity server, and the scopes in its plan."""

    client_id: str
    client_secret: str = field(repr=False)
    scopes: tuple[str, ...] = SCOPES


CLIENTS = (
    Client("sandbox-client", "sandbox-secret"),
    Client("sandbox-market-data-client", "sandbox-market-data-secret", ("market-data-api",)),
)


class Tokens:
    """The valid tokens."""

    def __init__(self, lifetime: int) -> None:
        """Start without tokens; `lifetime` is in seconds."""
        self.lifetime = lifetime
        self._granted: dict[str, tuple[frozenset[str], float]] = {}
        self._issued: list[str] = []
        self._lock = threading.Lock()

    def issue(self, scopes: Collection[str]) -> str:
        """Return a new token for the scopes."""
        token = secrets.token_hex(32)
        with self._lock:
            self._granted[token] = frozenset(scopes), time.monotonic() + self.lifetime
            self._issued.append(token)
        return token

    def list_issued(self) -> list[str]:
        """Return all issued tokens, valid or not."""
        with self._lock:
            return list(self._issued)

    def scopes(self, token: str) -> frozenset[str] | None:
        """Return the scopes of a token, or None if it isn't valid."""
        with self._lock:
            scopes, end = self._granted.get(token, (None, 0.0))
        return scopes if time.monotonic() < end else None

    def revoke_all(self) -> int:
        """Make all tokens invalid, and return their number."""
        with self._lock:
            count = len(self._granted)
            self._granted.clear()
        return count


class Visit:
    """A request that is being served."""

    def __init__(self, stats: Stats, target: str | None) -> None:
        """Start to serve a request."""
        self._stats, self._target = stats, target
        self._open = True

    def close(self, outcome: str) -> None:
        """Count the request's outcome; only the first one counts."""
        if self._open:
            self._open = False
            self._stats.leave(self._target, outcome)


class Stats:
    """Counts of requests, without those to the control paths."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._running = 0
        self.reset()

    def reset(self) -> None:
        """Reset the counts. Requests that are being served still count as concurrent."""
        with self._lock:
            self._requests: Counter[str] = Counter()
            self._paths: Counter[str] = Counter()
            self._scopes: Counter[str] = Counter()
            self._outcomes: Counter[str] = Counter()
            self._token_errors = 0
            self._most = self._running

    def enter(self, target: str | None, request: str, scopes: Sequence[str]) -> Visit:
        """Count a request at its start."""
        with self._lock:
            self._running += 1
            self._most = max(self._most, self._running)
            self._paths[request] += 1
            self._scopes.update(scopes)
            if target is not None:
                self._requests[target] += 1
        return Visit(self, target)

    def leave(self, target: str | None, outcome: str) -> None:
        """Count a request at its end."""
        with self._lock:
            self._running -= 1
            self._outcomes[outcome] += 1
            if target == "identity" and outcome != "200":
                self._token_errors += 1

    def report(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        with self._lock:
            return {
                "token_requests": dict(self._scopes),
                "token_requests_total": self._requests["identity"],
                "token_errors": self._token_errors,
                "requests": {name: self._requests[name] for name in ("market_data", "news", "oms")},
                "by_path": dict(self._paths),
                "by_status": dict(self._outcomes),
                "max_concurrent": self._most,
            }


class Overrides:
    """A user's quote fields.

    A value is a JSON scalar or a schedule: a list of `[value, seconds]` steps. Each step lasts for its seconds,
    starting when the schedule is set. The last step has null seconds and stays.
    """

    FIELDS = tuple(
        name
        for name in data.quote(securities.SECURITIES["BHP"], datetime.fromisoformat("2026-03-05T12:00"))
        if name not in ("securityCode", "exchange", "dataSource")
    )

    def __init__(self, records: Records) -> None:
        """Start empty."""
        self._records = records
        self._steps: dict[str, dict[str, list[tuple[object, float]]]] = {}
        self._lock = threading.Lock()

    def set(self, security: str, fields: Mapping[str, Any]) -> None:
        """Override fields of a security's quote. Its other overrides stay."""
        self._records.require(security)
        check_names(fields, self.FIELDS)
        steps = {name: _steps(name, value) for name, value in fields.items()}
        with self._lock:
            self._steps.setdefault(security, {}).update(steps)

    def current(self, security: str) -> dict[str, object]:
        """Return the current values."""
        now = time.monotonic()
        with self._lock:
            fields = dict(self._steps.get(security, {}))
        return {name: next(value for value, end in steps if now < end) for name, steps in fields.items()}

    def clear(self) -> None:
        """Forget all overrides."""
        with self._lock:
            self._steps.clear()


def _steps(name: str, value: object) -> list[tuple[object, float]]:
    """Return the values of a field, each with its end time."""
    schedule = value if isinstance(value, list) else [[value, None]]
    wrong = ValueError(
        f"{name} must be a string, a number, true, false or null, or a list of [value, seconds] steps, of which "
        "only the last has null seconds"
    )
    steps: list[tuple[object, float]] = []
    end = time.monotonic()
    for number, step in enumerate(schedule, start=1):
        if not isinstance(step, list | tuple) or len(step) != 2 or not is_scalar(step[0]):
            raise wrong
        scalar, seconds = step
        if number == len(schedule):
            if seconds is not None:
                raise wrong
            end = float("inf")
        elif type(seconds) in (int, float) and seconds >= 0:
            end += seconds
        else:
            raise wrong
        steps.append((scalar, end))
    if not steps:
        raise wrong
    return steps


class Announcements:
    """A user's announcements."""

    FIELDS = ("security", "headline", "priceSensitive")

    def __init__(self, clock: Clock) -> None:
        """Start empty."""
        self._clock = clock
        self._published: list[tuple[securities.Security, securities.Record]] = []
        self._count = 0
        self._lock = threading.Lock()

    def publish(self, fields: Mapping[str, Any]) -> securities.Record:
        """Publish an announcement now, and return it.

        `security` is one of the real companies, such as BHP.ASX@TM. `headline`, a text, and `priceSensitive`, true or
        false, are optional.
        """
        check_names(fields, self.FIELDS)
        text = fields.get("security")
        security = securities.find(text) if isinstance(text, str) else None
        if security is None or security.code not in securities.COMPANIES:
            raise ValueError(f"security must be a company that the sandbox knows, like BHP.ASX@TM; it is {text!r}")
        headline = fields.get("headline", f"Published announcement for {security.code}")
        if not isinstance(headline, str):
            raise ValueError("headline must be a string")
        sensitive = fields.get("priceSensitive", False)
        if not isinstance(sensitive, bool):
            raise ValueError("priceSensitive must be true or false")
        with self._lock:
            # Numbers continue after a reset, so that ids are unique.
            self._count += 1
            now = self._clock.exchange_time()
            number = f"{now:%Y%m%d}-{security.code}-{self._count}"
            published = data.announcement(number, security, now, headline, sensitive)
            self._published.insert(0, (security, published))
        return published

    def of(self, companies: Collection[securities.Security]) -> list[securities.Record]:
        """Return the announcements of some companies, newest first."""
        with self._lock:
            return [published for security, published in self._published if security in companies]

    def clear(self) -> None:
        """Remove all."""
        with self._lock:
            self._published.clear()


class State:
    """The state of one sandbox."""

    def __init__(
        self, clients: Sequence[Client] = CLIENTS, token_lifetime: int = 3600, now: datetime | None = None
    ) -> None:
        """Start with clients only, at `now` or the real time."""
        self._first_clients = {client.client_id: client for client in clients}
        self.clients = dict(self._first_clients)
        self.clock = Clock(now)
        self.tokens = Tokens(token_lifetime)
        self.stats = Stats()
        self.faults = Faults()
        self.replies = Replies()
        self.records = Records()
        self.overrides = Overrides(self.records)
        self.announcements = Announcements(self.clock)
        self.orders = OrderBook(self.clock, self.records.find, self._market_price)

    def reset(self) -> None:
        """Reset the counts, the time, orders, secrets, and everything that a user set. Tokens stay valid."""
        self.clock.reset()
        self.stats.reset()
        self.faults.clear()
        self.replies.clear()
        self.overrides.clear()
        self.records.clear()
        self.announcements.clear()
        self.orders.reset()
        self.clients = dict(self._first_clients)

    def set_accounts(self, records: object) -> None:
        """Replace all accounts with empty ones."""
        self.records.set_accounts(records)
        self.orders.reset(self.records.directory.accounts.values())

    def quote(self, security: securities.Security) -> securities.Record:
        """Return the quote of a security, with the user's overrides."""
        return data.quote(security, self.clock.exchange_time()) | self.overrides.current(security.text)

    def _market_price(self, security: securities.Security) -> float:
        """Return the native price at which market orders are filled: that of the quote, if it is a valid price."""
        price = self.quote(security)["lastPrice"]
        if isinstance(price, int | float) and price > 0:
            return price
        return security.native(last_price(security, self.clock.exchange_time()))

    def set_order_behaviour(self, fields: Mapping[str, Any]) -> None:
        """Set the behaviour of new orders, of one security if ``security`` is set."""
        text = fields.get("security")
        behaviour = {name: value for name, value in fields.items() if name != "security"}
        self.orders.set_behaviour(behaviour, None if text is None else self.records.require(text))

    def change_secret(self, client_id: str, fields: Mapping[str, Any]) -> None:
        """Set the secret of a client to `client_secret`."""
        client, secret = self.clients.get(client_id), fields.get("client_secret")
        if client is None:
            raise ValueError(f"the sandbox has no client {client_id!r}; it has {', '.join(self.clients)}")
        if set(fields) != {"client_secret"} or not isinstance(secret, str) or not secret:
            raise ValueError("the body must have client_secret, a string, and nothing else")
        self.clients[client_id] = replace(client, client_secret=secret)

    def fault(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check a fault, activate it and return it. `revoke_tokens` acts immediately."""
        fault = Fault.parse(fields)
        if fault.kind == "revoke_tokens":
            return {"kind": fault.kind, "revoked": self.tokens.revoke_all()}
        self.faults.add(fault)
        return fault.describe()


def state_of(request: Request) -> State:
    """Return the state of the sandbox of a request."""
    state: State = request.app.state.sandbox
    return state
