"""How shared records are named and encrypted, both from the client secret."""

from __future__ import annotations

import secrets
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from openmarkets_provider.client.settings import Settings

_NONCE_BYTES = 12

T = TypeVar("T")


def record_key(settings: Settings, subject: str) -> str:
    """Name the record of a subject, such as a scope: one for each identity server, client, secret and subject.

    A corrected or rotated secret is another key at once, and the key tells nothing of what it was made from.
    """
    parts = (settings.identity_url, settings.client_id, settings.client_auth_encoding, subject)
    return _derive(settings.client_secret, "key\0" + "\0".join(parts), 16).hex()


class RecordCipher:
    """Encrypts records with a key that comes from the client secret (HKDF-SHA256, AES-256-GCM).

    Whoever has the secret can get a token anyway, so nobody gains one by reading the store; and nothing
    else has to be deployed.
    """

    def __init__(self, client_secret: str) -> None:
        self._aead = AESGCM(_derive(client_secret, "record", 32))

    def seal(self, key: str, record: Any) -> bytes:
        """Encrypt a record, a msgspec struct, so that it can be opened under this key only."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, msgspec.msgpack.encode(record), key.encode())

    def open(self, key: str, data: bytes, kind: type[T]) -> T | None:
        """Decrypt a record; None for data that are damaged, foreign, or of another version."""
        try:
            plain = self._aead.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], key.encode())
            return msgspec.msgpack.decode(plain, type=kind)
        except (InvalidTag, ValueError, RecursionError, msgspec.MsgspecError):
            return None


def _derive(secret: str, purpose: str, length: int) -> bytes:
    hkdf = HKDF(algorithm=SHA256(), length=length, salt=b"openmarkets token cache 1", info=purpose.encode())
    return hkdf.derive(secret.encode())
