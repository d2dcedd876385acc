from __future__ import annotations

import msgspec
import pytest

from openmarkets_provider.client.auth.token import Failure, Token, TokenEntry
from openmarkets_provider.client.cache.clock import now
from openmarkets_provider.client.cache.crypto import EntryCipher, entry_key
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsScopeNotInPlan

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "a client secret"


def an_entry() -> TokenEntry:
    failure = Failure.of(OpenmarketsScopeNotInPlan("no", status=400), now())
    return TokenEntry(now(), Token("the-access-token", "market-data-api", now(), 3600), failure)


def test_what_is_sealed_is_opened_with_the_same_secret_and_shows_nothing_without():
    record = an_entry()
    sealed = EntryCipher(SECRET).encrypt(KEY, record)
    assert EntryCipher(SECRET).decrypt(KEY, sealed, TokenEntry) == record
    assert b"the-access-token" not in sealed
    assert b"market-data" not in sealed


def test_another_secret_or_another_key_opens_nothing():
    sealed = EntryCipher(SECRET).encrypt(KEY, an_entry())
    assert EntryCipher("another").decrypt(KEY, sealed, TokenEntry) is None
    assert EntryCipher(SECRET).decrypt("f" * 32, sealed, TokenEntry) is None


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 11, b"x" * 500, b"\0" * (2 << 20)])
def test_damaged_data_count_as_none(damage: bytes):
    assert EntryCipher(SECRET).decrypt(KEY, damage, TokenEntry) is None


def test_a_record_of_another_version_counts_as_none():
    class Other(msgspec.Struct):
        unknown: int

    cipher = EntryCipher(SECRET)
    assert cipher.decrypt(KEY, cipher.encrypt(KEY, Other(1)), TokenEntry) is None


def test_each_thing_that_makes_a_token_differ_makes_another_key():
    base = {"client_id": "id", "client_secret": "secret"}
    variants = [
        base,
        base | {"client_id": "id2"},
        base | {"client_secret": "secret2"},
        base | {"environment": "test"},
        base | {"client_auth_encoding": "raw"},
    ]
    keys = {entry_key(Settings(**variant), scope) for variant in variants for scope in ("oms-api", "news-api")}
    assert len(keys) == 2 * len(variants)
    assert all(len(key) == 32 and "id" not in key for key in keys)
    assert entry_key(Settings(**base), "oms-api") == entry_key(Settings(**base, timeout=1), "oms-api")
