"""The memory of a watcher: digests of the keys of the items that it has seen. No I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

MAX_ITEMS = 5_000
"""Most items of a poll, and most keys that are remembered: 40 kB of text. Airflow's limit is 64 KiB."""
_DIGEST_BYTES = 6
_DIGEST_LENGTH = len(base64.b64encode(bytes(_DIGEST_BYTES)))
_FORMAT = 1


def digest(key: Any) -> str:
    """Return the digest of a key: 48 bits, as 8 characters.

    The probability that a new key has the digest of one of 5,000 others is less than 1 in 10**10.

    :param key: any JSON.
    """
    hashed = hashlib.blake2b(canonical(key).encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES)
    return base64.b64encode(hashed.digest()).decode()


def canonical(value: Any) -> str:
    """Return JSON text that is the same for equal values.

    :raises TypeError, ValueError, RecursionError: the value is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def state_key(*parts: Any) -> str:
    """Return the name of a watcher's record in a state store, derived from everything that defines its keys."""
    text = canonical(parts).encode(errors="surrogatepass")
    return f"openmarkets_seen_{hashlib.blake2b(text, digest_size=16).hexdigest()}"


@dataclass(frozen=True)
class SeenKeys:
    """Digests of keys. Those of the last poll with new items are at the end."""

    digests: tuple[str, ...] = ()

    def add(self, digests: Iterable[str]) -> Self:
        """Return the keys with those of another poll added.

        All keys of that poll are kept, because they would otherwise be new in the next poll. The latest of the others
        are kept, so that an item that disappears for a while is not new again. The total is at most ``MAX_ITEMS``. If
        nothing is added, the same object is returned.

        :param digests: of all items of the poll, at most ``MAX_ITEMS``.
        """
        latest = dict.fromkeys(digests)
        if latest.keys() <= set(self.digests):
            return self
        others = [each for each in self.digests if each not in latest]
        room = MAX_ITEMS - len(latest)
        return type(self)((*others[max(0, len(others) - room) :], *latest))

    def merge(self, other: SeenKeys) -> Self:
        """Return the keys of both objects."""
        return self.add(other.digests[-MAX_ITEMS:])

    def to_json(self) -> dict[str, Any]:
        """Return the record for a state store."""
        return {"format": _FORMAT, "count": len(self.digests), "seen": "".join(self.digests)}

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """Read a record.

        :raises ValueError: it is damaged, or does not come from :meth:`to_json`.
        """
        match record:
            case {"format": 1, "count": int(count), "seen": str(text)} if len(text) == count * _DIGEST_LENGTH:
                try:
                    base64.b64decode(text, validate=True)
                except binascii.Error as error:
                    raise ValueError(str(error)) from None
                return cls(tuple(text[at : at + _DIGEST_LENGTH] for at in range(0, len(text), _DIGEST_LENGTH)))
        raise ValueError(f"expected format {_FORMAT}, got {record!r:.100}")
