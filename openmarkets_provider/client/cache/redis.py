"""The store that all hosts share: Redis, with locks that expire."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from openmarkets_provider.client.cache.store import MAX_BYTES
from openmarkets_provider.query.arguments import abbreviate

if TYPE_CHECKING:
    import redis
    from redis.lock import Lock

TIMEOUT = 1.0
"""Seconds that a connection or a reply may take. If Redis is slower, the file store is used."""
LEASE = 5.0
"""Seconds after which the lock of a dead owner expires."""
HEARTBEAT = 1.0
"""Seconds between extensions of a lease."""
LOCK_POLL = 0.05
CLOCK_TOLERANCE = 60.0
"""Seconds for which an outdated entry stays, because the clocks of hosts differ."""
DEFAULT_PORT = 6379

_FLAGS = ("ssl", "ssl_check_hostname")
_TEXTS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_keyfile", "ssl_certfile")
_CERT_REQS = ("required", "optional", "none")
_DIGITS = 9
"""Most digits of a database number."""

# If the lock is missing and nobody else acquired it (Redis was restarted), the first save must succeed.
_SAVE_LEASED = """
local owner = redis.call('get', KEYS[2])
if owner == ARGV[3] or (not owner and redis.call('exists', KEYS[1]) == 0) then
    redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
"""

_clients: dict[str, redis.Redis] = {}


def reset() -> None:
    """Close and forget the clients."""
    while _clients:
        _clients.popitem()[1].close()


# The connections belong to the parent: a forked process opens its own.
os.register_at_fork(after_in_child=_clients.clear)


def redis_options(
    *, host: str | None, port: int | None, login: str | None, password: str | None, extra: Any
) -> dict[str, Any]:
    """Turn the fields of an Airflow connection to Redis into arguments of ``redis.Redis``.

    They have the same meaning as in Airflow's own Redis hook. As there, other fields of Extra are ignored.

    :param extra: the decoded Extra: ``db``, ``ssl``, ``ssl_cert_reqs``, ``ssl_ca_certs``, ``ssl_keyfile``,
        ``ssl_certfile``, ``ssl_check_hostname``.
    :raises ValueError: a field is missing or not allowed; the message names it.
    """
    if not isinstance(extra, Mapping):
        raise ValueError('Extra is not a JSON object; write {"db": 0}.')
    if not host:
        raise ValueError("host is empty; set it to the name or address of the Redis server.")
    if set("/@") & set(host):
        # Do not show the value: a URL may contain a password.
        raise ValueError("host must be a server's name or address only, without redis://, port or password.")
    fields = {name: value for name, value in extra.items() if value is not None and value != ""}
    if _flag("cluster", fields.get("cluster", False)):
        raise ValueError("cluster: Redis in cluster mode is not supported; use a single server, or one with replicas.")
    options: dict[str, Any] = {
        "host": host,
        "port": port or DEFAULT_PORT,
        "db": _database(fields.get("db", 0)),
        "username": login or None,
        "password": None if str(password).lower() in ("none", "false", "") else password,
    }
    options |= {name: _flag(name, fields[name]) for name in _FLAGS if name in fields}
    options |= {name: _text(name, fields[name]) for name in _TEXTS if name in fields}
    if options.get("ssl"):
        # redis-py before 6 has a different default.
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    if options.get("ssl_cert_reqs", _CERT_REQS[0]) not in _CERT_REQS:
        value = abbreviate(options["ssl_cert_reqs"])
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}, not {value}.")
    return options


def _database(value: Any) -> int:
    # In a connection from a URI all values are text.
    short = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _DIGITS
    number = int(value) if short else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**_DIGITS:
        raise ValueError(f"db must be the number of a database, not {abbreviate(value)}.")
    return number


def _flag(name: str, value: Any) -> bool:
    # Text in a connection from a URI.
    flag = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise ValueError(f"{name} must be true or false, not {abbreviate(value)}.")
    return flag


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {abbreviate(value)}.")
    return value


class RedisStore:
    """Stores entries in Redis, which deletes them soon after they are outdated.

    A lock is a key with an owner and an expiry. Its owner keeps extending the expiry. If the owner is paused until the
    lock expires, its saves are dropped.

    :param options: from :func:`redis_options`.
    """

    name = "redis"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def load(self, key: str) -> bytes | None:
        """Read an entry; None if it is missing or has another type."""
        from redis.exceptions import ResponseError

        with self._errors():
            try:
                # A longer value is not ours, so do not read all of it.
                data: Any = self._client().getrange(_entry(key), 0, MAX_BYTES - 1)
            except ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                return None
        # Redis returns an empty text for a missing key.
        return bytes(data) or None

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace an entry, unless the lease has expired. Create a missing one, unless the lock has another owner."""
        milliseconds = max(1, int((seconds + CLOCK_TOLERANCE) * 1000))
        with self._errors():
            if lease is None:
                self._client().set(_entry(key), data, px=milliseconds)
            else:
                self._client().eval(_SAVE_LEASED, 2, _entry(key), _lock(key), data, milliseconds, lease)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Acquire the lock of the key. A thread extends it until its release."""
        owner = os.urandom(16).hex()
        with self._errors():
            lock = self._client().lock(_lock(key), timeout=LEASE, sleep=LOCK_POLL, thread_local=False)
            acquired = lock.acquire(blocking_timeout=timeout, token=owner)
        if not acquired:
            yield None
            return
        process = os.getpid()
        released = threading.Event()
        threading.Thread(target=_extend, args=(lock, released), name="openmarkets-lease", daemon=True).start()
        try:
            yield owner
        finally:
            released.set()
            # A child that was forked since leaves the lock to its parent. A lock that can't be released expires.
            if os.getpid() == process:
                with suppress(OSError), self._errors():
                    lock.release()

    def _client(self) -> redis.Redis:
        """Return the client that the stores of this process with the same options share."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        name = json.dumps(self._options, sort_keys=True)
        if name not in _clients:
            # With protocol version 3, redis-py doesn't notice connections that the server has closed.
            client = redis.Redis(
                **self._options,
                protocol=2,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                retry=Retry(NoBackoff(), 0),
            )
            return _clients.setdefault(name, client)
        return _clients[name]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of Redis and of the network into OSError."""
        from redis.exceptions import RedisError

        try:
            yield
        # UnicodeError: the host name can't be encoded.
        except (RedisError, OSError, UnicodeError) as error:
            # A server may quote part of a command that it did not understand, and with it a password.
            text = re.split(r",\s*with\s+args", str(error), maxsplit=1)[0] or type(error).__name__
            if password := self._options.get("password"):
                text = text.replace(password, "***")
            raise OSError(f"{self._options['host']}:{self._options['port']}: {text}") from None


def _extend(lock: Lock, released: threading.Event) -> None:
    """Extend a lock until it is released or lost."""
    from redis.exceptions import LockError, RedisError

    while not released.wait(HEARTBEAT):
        try:
            lock.reacquire()
        except LockError:
            return
        except (RedisError, OSError):
            # The next try may succeed before the lock expires.
            continue


def _entry(key: str) -> str:
    # Braces put both keys into the same hash slot of a Redis cluster.
    return f"openmarkets:{{{key}}}:entry"


def _lock(key: str) -> str:
    return f"openmarkets:{{{key}}}:lock"
