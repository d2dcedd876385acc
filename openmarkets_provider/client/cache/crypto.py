"""Keys and encryption of shared entries, both derived from the client secret."""

from __future__ import annotations

import hmac
import secrets
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from openmarkets_provider.client.settings import Settings

_NONCE_BYTES = 12

T = TypeVar("T")


def entry_key(settings: Settings, subject: str) -> str:
    """Return the key of an entry: 32 hexadecimal digits that reveal nothing about their input.

    The key depends on identity server, client id, client secret, encoding and subject.

    :param subject: what the entry is about, such as a scope.
    """
    parts = (settings.identity_url, settings.client_id, settings.client_auth_encoding, subject)
    return _derive(settings.client_secret, "key\0" + "\0".join(parts), 16).hex()


def prepare(kind: type[T]) -> type[T]:
    """Make a struct safe to decode in several threads: a decorator.

    msgspec analyses a struct the first time it is decoded. If two threads do so at once, the process can crash, or hang
    while they hold the GIL.
    """
    msgspec.msgpack.Decoder(kind)
    return kind


class EntryCipher:
    """Encrypts entries with AES-256-GCM under a key derived from the client secret (HKDF-SHA256, RFC 5869).

    Only a holder of the secret can decrypt them, who can request tokens anyway. No further key has to be deployed.
    """

    def __init__(self, client_secret: str) -> None:
        self._aead = AESGCM(_derive(client_secret, "entry", 32))

    def encrypt(self, key: str, value: Any) -> bytes:
        """Encode and encrypt a msgspec struct. It can be decrypted under this key only."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, msgspec.msgpack.encode(value), key.encode())

    def decrypt(self, key: str, data: bytes, kind: type[T]) -> T | None:
        """Decrypt and decode a struct; None if the data are damaged, foreign, or from another version."""
        try:
            plain = self._aead.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], key.encode())
            return msgspec.msgpack.decode(plain, type=kind)
        except (InvalidTag, ValueError, RecursionError, msgspec.MsgspecError):
            return None


def _derive(secret: str, purpose: str, length: int) -> bytes:
    """Derive a key of at most 32 bytes, the first block of HKDF-SHA256 (RFC 5869)."""
    # Importing HKDF from `cryptography` would slow down the first look-up of every process.
    prk = hmac.digest(b"openmarkets token cache 1", secret.encode(), "sha256")
    return hmac.digest(prk, purpose.encode() + b"\1", "sha256")[:length]
