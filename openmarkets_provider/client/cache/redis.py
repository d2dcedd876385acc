"""The store of all hosts: Redis, with locks that expire."""

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
"""Seconds that a connection, and an answer, may take: for a slower Redis there is the file store."""
LEASE = 5.0
"""Seconds after which the lock of an owner that is gone expires."""
HEARTBEAT = 1.0
"""Seconds between two extensions of a lease."""
LOCK_POLL = 0.05
CLOCK_TOLERANCE = 60.0
"""Seconds that an entry stays past its use: the clocks of hosts differ."""
DEFAULT_PORT = 6379

_FLAGS = ("ssl", "ssl_check_hostname")
_TEXTS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_keyfile", "ssl_certfile")
_CERT_REQS = ("required", "optional", "none")
_DIGITS = 9
"""Most digits of the number of a database."""

# A lock that is gone although nobody acquired it (Redis was restarted) must not stop the first save.
_SAVE_LEASED = """
local owner = redis.call('get', KEYS[2])
if owner == ARGV[3] or (not owner and redis.call('exists', KEYS[1]) == 0) then
    redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
"""

_clients: dict[str, redis.Redis] = {}


def reset() -> None:
    """Close the clients, and forget them."""
    while _clients:
        _clients.popitem()[1].close()


# The connections are the parent's: a forked process opens its own.
os.register_at_fork(after_in_child=_clients.clear)


def redis_options(
    *, host: str | None, port: int | None, login: str | None, password: str | None, extra: Any
) -> dict[str, Any]:
    """Turn the fields of an Airflow connection to Redis into arguments of ``redis.Redis``.

    They mean the same as to Airflow's own hook for Redis, which ignores other fields of Extra, too.

    :param extra: the decoded Extra: ``db``, ``ssl``, ``ssl_cert_reqs``, ``ssl_ca_certs``, ``ssl_keyfile``,
        ``ssl_certfile``, ``ssl_check_hostname``.
    :raises ValueError: a field is missing or not allowed; the text names it.
    """
    if not isinstance(extra, Mapping):
        raise ValueError('Extra is not a JSON object; write {"db": 0}.')
    if not host:
        raise ValueError("host is empty; set it to the name or address of the Redis server.")
    if set("/@") & set(host):
        # The message must not show it: a URL may hold a password.
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
        # redis-py before 6 has another default.
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    if options.get("ssl_cert_reqs", _CERT_REQS[0]) not in _CERT_REQS:
        value = abbreviate(options["ssl_cert_reqs"])
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}, not {value}.")
    return options


def _database(value: Any) -> int:
    # A connection from a URI has texts.
    short = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _DIGITS
    number = int(value) if short else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**_DIGITS:
        raise ValueError(f"db must be the number of a database, not {abbreviate(value)}.")
    return number


def _flag(name: str, value: Any) -> bool:
    # Here, too.
    flag = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise ValueError(f"{name} must be true or false, not {abbreviate(value)}.")
    return flag


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {abbreviate(value)}.")
    return value


class RedisStore:
    """Entries in a Redis, which expire soon after their use.

    A lock is a key with an owner and an expiry, which its owner keeps extending. What an owner saves after its lock
    has expired, because it was paused for too long, is dropped.

    :param options: from :func:`redis_options`.
    """

    name = "redis"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def load(self, key: str) -> bytes | None:
        """Read an entry; None if it is missing or of another type."""
        from redis.exceptions import ResponseError

        with self._errors():
            try:
                # A longer value is not ours, and is not read in full.
                data: Any = self._client().getrange(_entry(key), 0, MAX_BYTES - 1)
            except ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                return None
        # Redis answers an empty text for a missing key.
        return bytes(data) or None

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        """Replace an entry, unless the lease has expired; a missing entry, unless the lock has another owner."""
        milliseconds = max(1, int((seconds + CLOCK_TOLERANCE) * 1000))
        with self._errors():
            if lease is None:
                self._client().set(_entry(key), data, px=milliseconds)
            else:
                self._client().eval(_SAVE_LEASED, 2, _entry(key), _lock(key), data, milliseconds, lease)

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        """Acquire the lock of the key; until its release, a thread extends it."""
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
            # A child forked meanwhile leaves it to its parent. A lock that can't be released expires.
            if os.getpid() == process:
                with suppress(OSError), self._errors():
                    lock.release()

    def _client(self) -> redis.Redis:
        """Return the client that all stores of this process with the same options share."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        name = json.dumps(self._options, sort_keys=True)
        if name not in _clients:
            # With version 3 of the protocol, redis-py doesn't notice connections that the server has closed.
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
        """Turn an error of Redis, or of the network, into OSError."""
        from redis.exceptions import RedisError

        try:
            yield
        # UnicodeError: a host that can't be looked up.
        except (RedisError, OSError, UnicodeError) as error:
            # A server may quote a command that it did not understand, cut off anywhere.
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
            # The next try may come before the lock expires.
            continue


def _entry(key: str) -> str:
    # In braces, so that a Redis in several parts has both keys in one.
    return f"openmarkets:{{{key}}}:entry"


def _lock(key: str) -> str:
    return f"openmarkets:{{{key}}}:lock"
