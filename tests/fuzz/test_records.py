"""Data outside of a process: encrypted records in files and Redis, and records in Airflow's state stores."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.auth.token import Decision, Failure, Token, TokenEntry, decide
from openmarkets_provider.client.cache.clock import Instant, now
from openmarkets_provider.client.cache.crypto import EntryCipher
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.cache.store import MAX_BYTES
from openmarkets_provider.client.ratelimit.hold import MAX_HOLD, Hold
from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsServerError, from_dict
from openmarkets_provider.landing.claims import make_claim, restore_claim
from openmarkets_provider.landing.load_state import check_claim, check_state
from openmarkets_provider.triggers._seen_keys import SeenKeys, canonical, digest
from tests.fuzz.bounds import SHORT, bounded, check_error
from tests.fuzz.strategies import changed, nested, python_values, scalars, texts, values
from tests.fuzz.test_queries import size_of

KEY = "0123456789abcdef0123456789abcdef"
CIPHER = EntryCipher("the secret")
OTHER = EntryCipher("another secret")
MOMENT = now()
TOKEN = Token("b15ec9", "oms-api", MOMENT, 3600.0)
FAILURE = Failure.of(OpenmarketsServerError("It failed.", status=503, retry_after=5.0), MOMENT)
ENTRIES = [TokenEntry(MOMENT, TOKEN), TokenEntry(MOMENT, None, FAILURE), TokenEntry(MOMENT, TOKEN, FAILURE)]
numbers = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1.0, 0, 2**63, -(2**63), True, None, "1"])
# Values that MessagePack supports.
packable = st.recursive(
    st.one_of(
        scalars.filter(lambda each: not isinstance(each, int) or abs(each) < 2**63), numbers, st.binary(max_size=9)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def packed(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (UnicodeEncodeError, TypeError):
        return b"\xc1"


def sealed(plain: bytes) -> bytes:
    """Encrypt bytes as a writer of another version, or a wrong one, would."""
    return CIPHER.encrypt(KEY, msgspec.Raw(plain))


@SHORT
@given(st.sampled_from(ENTRIES).flatmap(lambda record: changed(msgspec.to_builtins(record), packable)), st.booleans())
def test_sealed_tokens(content, refused):
    """Only a holder of the secret can encrypt one, but it may be a later version of this package."""
    data = sealed(packed(content))
    with bounded(len(data)):
        record = CIPHER.decrypt(KEY, data, TokenEntry)
        if record is None:
            return
        assert record.seconds_of_use() < 10**13
        try:
            decision, token = decide(record, now(), "b15ec9" if refused else None)
        except OpenmarketsError as error:
            check_error(error)
            return
        assert (token is None) == (decision is Decision.REQUEST)
        repr(record)


@SHORT
@given(changed(msgspec.to_builtins(Hold(MOMENT, 5.0)), packable))
def test_sealed_holds(content):
    data = sealed(packed(content))
    with bounded(len(data)):
        hold = CIPHER.decrypt(KEY, data, Hold)
    if hold is not None:
        assert 0 <= hold.remaining(now()) <= MAX_HOLD


@st.composite
def stored_bytes(draw: st.DrawFn) -> bytes:
    good = CIPHER.encrypt(KEY, draw(st.sampled_from(ENTRIES)))
    match draw(st.sampled_from(["cut", "flip", "any", "other key", "other secret", "more", "deep", "plain"])):
        case "cut":
            return good[: draw(st.integers(0, len(good) - 1))]
        case "flip":
            at = draw(st.integers(0, len(good) - 1))
            return good[:at] + bytes([good[at] ^ draw(st.integers(1, 255))]) + good[at + 1 :]
        case "other key":
            return CIPHER.encrypt("f" * 32, ENTRIES[0])
        case "other secret":
            return OTHER.encrypt(KEY, ENTRIES[0])
        case "more":
            return good + draw(st.binary(min_size=1, max_size=20))
        case "deep":
            return sealed(b"\x91" * draw(st.integers(1, 50_000)) + b"\xc0")
        case "plain":
            return packed(msgspec.to_builtins(ENTRIES[0]))
    return draw(st.binary(max_size=MAX_BYTES // 256))


@SHORT
@given(stored_bytes())
def test_bytes_in_stores(data):
    """Data in a file or in Redis are a record only if a holder of the secret wrote them."""
    with tempfile.TemporaryDirectory() as folder, bounded(len(data) + 2_000):
        store = FileStore(Path(folder) / "cache")
        store.save(KEY, data, 60)
        loaded = store.load(KEY)
        assert loaded == data
        assert CIPHER.decrypt(KEY, loaded, TokenEntry) is None
        assert CIPHER.decrypt(KEY, loaded, Hold) is None


@SHORT
@given(changed(OpenmarketsServerError("It failed.", status=503).as_dict(), python_values))
def test_errors_as_data(data):
    with bounded(size_of(data)):
        try:
            error = from_dict(data)
        except ValueError as error:
            check_error(error)
        else:
            assert isinstance(error, OpenmarketsError)


# Airflow's state stores

SEEN_KEYS = SeenKeys(tuple(map(digest, range(20)))).to_json()


@SHORT
@given(changed(SEEN_KEYS, python_values))
def test_seen_keys_of_triggers(stored):
    with bounded(size_of(stored)):
        try:
            seen = SeenKeys.from_json(stored)
        except ValueError as error:
            check_error(error)
            return
        assert seen.add(map(digest, range(5))).to_json()["format"] == 1


@SHORT
@given(values | st.integers(1, 60).map(nested))
def test_keys_of_items(key):
    with bounded(size_of(key)):
        assert len(digest(key)) == 8
        assert canonical(key)


QUERY = {
    "endpoint": "time_series",
    "securities": ["BHP"],
    "exchange": None,
    "on_invalid": "error",
    "on_missing_multiplier": "error",
    "start": "2026-01-05",
    "end": "2026-03-05",
    "frequency": "Daily",
    "adjusted": False,
    "on_missing_field": "warn",
    "raw": False,
}
STATE = {
    "destination": "file:///bars",
    "owner": "dag.task",
    "query": "0123456789abcdef",
    "format": "",
    "first": "2026-01-05",
    "watermark": "2026-02-05",
    "has_rows": True,
}


@SHORT
@given(changed(STATE, python_values), changed({"start": "2026-02-04", "end": "2026-03-05"}, python_values))
def test_state_of_incremental_loads(stored, kept):
    with bounded(size_of(stored) + size_of(kept)):
        try:
            state = check_state(stored)
            claimed = check_claim(kept)
        except ValueError as error:
            check_error(error)
            return
        try:
            if claimed:
                restore_claim(QUERY, claimed, state.get("watermark"), state.get("first"))
            make_claim(QUERY, state.get("watermark"), state.get("first"), timedelta(days=1), datetime.now(UTC))
        except OpenmarketsError as error:
            check_error(error)


@SHORT
@given(numbers, numbers)
def test_instants(wall, boot):
    record = packed({"wall": wall, "boot": boot, "boot_id": MOMENT.boot_id})
    with bounded(len(record)):
        try:
            instant = msgspec.msgpack.decode(record, type=Instant)
        except msgspec.MsgspecError:
            return
        assert instant.elapsed(MOMENT) > -(10**13)
