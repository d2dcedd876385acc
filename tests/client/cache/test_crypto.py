from __future__ import annotations

import msgspec
import pytest

from openmarkets_provider.client.auth.token import Failure, Record, Token, now
from openmarkets_provider.client.cache.crypto import RecordCipher, record_key
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsScopeNotInPlan

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "a client secret"


def a_record() -> Record:
    failure = Failure.of(OpenmarketsScopeNotInPlan("no", status=400), now())
    return Record(now(), Token("the-access-token", "market-data-api", now(), 3600), failure)


def test_what_is_sealed_is_opened_with_the_same_secret_and_shows_nothing_without():
    record = a_record()
    sealed = RecordCipher(SECRET).seal(KEY, record)
    assert RecordCipher(SECRET).open(KEY, sealed, Record) == record
    assert b"the-access-token" not in sealed
    assert b"market-data" not in sealed


def test_another_secret_or_another_key_opens_nothing():
    sealed = RecordCipher(SECRET).seal(KEY, a_record())
    assert RecordCipher("another").open(KEY, sealed, Record) is None
    assert RecordCipher(SECRET).open("f" * 32, sealed, Record) is None


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 11, b"x" * 500, b"\0" * (2 << 20)])
def test_damaged_data_count_as_none(damage: bytes):
    assert RecordCipher(SECRET).open(KEY, damage, Record) is None


def test_a_record_of_another_version_counts_as_none():
    class Other(msgspec.Struct):
        unknown: int

    cipher = RecordCipher(SECRET)
    assert cipher.open(KEY, cipher.seal(KEY, Other(1)), Record) is None


def test_each_thing_that_makes_a_token_differ_makes_another_key():
    base = {"client_id": "id", "client_secret": "secret"}
    variants = [
        base,
        base | {"client_id": "id2"},
        base | {"client_secret": "secret2"},
        base | {"environment": "test"},
        base | {"client_auth_encoding": "raw"},
    ]
    keys = {record_key(Settings(**variant), scope) for variant in variants for scope in ("oms-api", "news-api")}
    assert len(keys) == 2 * len(variants)
    assert all(len(key) == 32 and "id" not in key for key in keys)
    assert record_key(Settings(**base), "oms-api") == record_key(Settings(**base, timeout=1), "oms-api")
