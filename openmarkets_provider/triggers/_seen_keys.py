"""What an event trigger remembers of the items that it has seen: digests of their keys; pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

MAX_ITEMS = 5_000
"""Most items of one poll, and most keys that are remembered: 40 kB of text, where Airflow wants less than 64 KiB."""
_DIGEST_BYTES = 6
_DIGEST_LENGTH = len(base64.b64encode(bytes(_DIGEST_BYTES)))
_FORMAT = 1


def digest(key: Any) -> str:
    """Return what is remembered of a key: 48 bits, as 8 letters.

    A new key is taken for one of 5,000 known ones less than once in 10**10.

    :param key: any JSON.
    """
    hashed = hashlib.blake2b(canonical(key).encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES)
    return base64.b64encode(hashed.digest()).decode()


def canonical(value: Any) -> str:
    """Return JSON as a text that is the same for values that are the same.

    :raises TypeError, ValueError, RecursionError: it is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def state_key(*parts: Any) -> str:
    """Return the name under which a watcher's memory is kept, from all that decides what its keys mean."""
    text = canonical(parts).encode(errors="surrogatepass")
    return f"openmarkets_seen_{hashlib.blake2b(text, digest_size=16).hexdigest()}"


@dataclass(frozen=True)
class Memory:
    """Digests of keys, by the last poll that listed them and brought something new, the earliest first."""

    digests: tuple[str, ...] = ()

    def after(self, digests: Iterable[str]) -> Self:
        """Return the memory after a further poll.

        It holds all keys of that poll, else they would be new at the next one, and as many others as fit, so that an
        item that flickers is not new again: those that came last in the order. It is this memory itself, in the same
        order, when it holds them all.

        :param digests: those of all items of the poll, at most ``MAX_ITEMS``.
        """
        latest = dict.fromkeys(digests)
        if latest.keys() <= set(self.digests):
            return self
        others = [each for each in self.digests if each not in latest]
        room = MAX_ITEMS - len(latest)
        return type(self)((*others[max(0, len(others) - room) :], *latest))

    def joined(self, other: Memory) -> Self:
        """Return a memory of all that either holds."""
        return self.after(other.digests[-MAX_ITEMS:])

    def to_json(self) -> dict[str, Any]:
        """Return it as what a state store keeps."""
        return {"format": _FORMAT, "count": len(self.digests), "seen": "".join(self.digests)}

    @classmethod
    def from_json(cls, stored: Any) -> Self:
        """Make it again.

        :raises ValueError: it is not what :meth:`to_json` gave, or damaged.
        """
        match stored:
            case {"format": 1, "count": int(count), "seen": str(seen)} if len(seen) == count * _DIGEST_LENGTH:
                try:
                    base64.b64decode(seen, validate=True)
                except binascii.Error as error:
                    raise ValueError(str(error)) from None
                return cls(tuple(seen[at : at + _DIGEST_LENGTH] for at in range(0, len(seen), _DIGEST_LENGTH)))
        raise ValueError(f"expected a memory of format {_FORMAT}, got {stored!r:.100}")
