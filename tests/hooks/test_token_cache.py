from __future__ import annotations

import json
from contextlib import nullcontext
from types import NoneType
from typing import Any, ClassVar

import pytest

from openmarkets_provider.client.cache.fallback import FallbackStore
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.settings import Settings
from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.hooks._token_cache import astore_of, cache_dir, store_of
from openmarkets_provider.hooks._variable_store import VariableStore
from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from tests.support.redis_server import RedisServer

KEY = "0123456789abcdef0123456789abcdef"
TOKEN_STORE = "AIRFLOW__OPENMARKETS__TOKEN_STORE"


class SiteStore:
    name = "site"
    records: ClassVar[dict[str, bytes]] = {}

    def load(self, key: str) -> bytes | None:
        return self.records.get(key)

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        self.records[key] = data

    def lock(self, key: str, timeout: float) -> Any:
        return nullcontext("lease")


class Argued(SiteStore):
    def __init__(self, where: str) -> None: ...


class WithoutLock:
    name = "half"

    def load(self, key: str) -> bytes | None: ...

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None: ...


class TwoWords(SiteStore):
    name = "two words"


class Broken(SiteStore):
    def __init__(self) -> None:
        raise RuntimeError("no vault")


CALLS = []


def function() -> SiteStore:
    CALLS.append("function")
    return SiteStore()


def settings(**changes: Any) -> Settings:
    return Settings(client_id="id", client_secret="secret", **changes)


@pytest.fixture
def hook(openmarkets_sandbox, monkeypatch: pytest.MonkeyPatch):
    """Make a hook whose connection has further fields in Extra."""
    made = []

    def make(**extra: Any) -> OpenmarketsHook:
        connection = openmarkets_sandbox.connection
        connection = {**connection, "extra": {**connection["extra"], **extra}}
        monkeypatch.setenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", json.dumps(connection))
        made.append(OpenmarketsHook())
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_tokens_are_kept_in_the_redis_of_the_connection(hook, empty_redis: RedisServer):
    assert hook(cache_backend="redis").get_access_token("oms-api")
    [name] = empty_redis.client().keys()
    assert name.startswith(b"openmarkets:")


async def test_on_an_event_loop_too(hook, empty_redis: RedisServer):
    one = hook(cache_backend="redis")
    client = await one.aclient()
    await client.tokens.aget("oms-api")
    await one.aclose()
    assert len(empty_redis.client().keys()) == 1


def test_another_connection_can_be_named(hook, empty_redis: RedisServer, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_REDIS_DEFAULT")
    monkeypatch.setenv("AIRFLOW_CONN_OUR_REDIS", empty_redis.connection_json(db=3))
    assert hook(cache_backend="redis", redis_conn_id="our_redis").get_access_token("oms-api")
    assert len(empty_redis.client(db=3).keys()) == 1


def test_while_redis_is_down_tokens_are_kept_in_files(hook, empty_redis: RedisServer, caplog):
    empty_redis.kill()
    assert hook(cache_backend="redis").get_access_token("oms-api")
    assert len(list(cache_dir().glob("*.entry"))) == 1
    [text] = [record.getMessage() for record in caplog.records if "shared" in record.getMessage()]
    assert "connection 'redis_default'" in text
    assert empty_redis.password not in text


def test_a_connection_of_another_type_is_refused(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_REDIS_DEFAULT", "http://host")
    with pytest.raises(
        OpenmarketsConfigurationError, match="redis_conn_id: connection 'redis_default' must have the type 'redis'"
    ):
        store_of(settings(cache_backend="redis"))


# Airflow itself refuses an extra that is no object before.
@pytest.mark.since("3.2")
@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("[]", "not a JSON object"),
        ('{"db": ', "not a JSON object"),
        ('{"db": "x"}', "db must be .*, not 'x'"),
        ('{"cluster": true}', "cluster"),
    ],
)
async def test_a_field_that_is_not_allowed_is_refused(monkeypatch, extra, text):
    connection = {"conn_type": "redis", "host": "h", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_REDIS_DEFAULT", json.dumps(connection))
    with pytest.raises(OpenmarketsConfigurationError, match=f"redis_conn_id.*{text}"):
        await astore_of(settings(cache_backend="redis"))


def test_a_store_of_the_site_is_the_default_with_files_behind_it(monkeypatch):
    SiteStore.records.clear()
    monkeypatch.setenv(TOKEN_STORE, f"{__name__}.SiteStore")
    store = store_of(settings())
    assert isinstance(store, FallbackStore)
    assert store is store_of(settings())
    store.save(KEY, b"sealed", 60)
    assert SiteStore.records == {KEY: b"sealed"}


@pytest.mark.parametrize(("backend", "kind"), [("file", FileStore), ("variable", VariableStore), ("memory", NoneType)])
def test_a_connection_that_names_a_backend_has_that_and_not_the_store_of_the_site(monkeypatch, backend, kind):
    monkeypatch.setenv(TOKEN_STORE, f"{__name__}.SiteStore")
    assert type(store_of(settings(cache_backend=backend))) is kind


def test_without_a_store_of_the_site_files_are_the_default():
    assert type(store_of(settings())) is FileStore


@pytest.mark.parametrize("extra", [{"cache_class": "os.abort"}, {"token_store": "os.abort"}])
def test_a_connection_cannot_name_code_to_run(hook, extra):
    with pytest.raises(OpenmarketsConfigurationError, match="unknown field"):
        hook(**extra).get_access_token("oms-api")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_module.Store", "can't be imported: ModuleNotFoundError: No module named"),
        ("NoModule", "can't be imported: ValueError"),
        (f"{__name__}.Missing", "can't be imported: AttributeError: .*Missing"),
        (f"{__name__}.function", "is not a class"),
        ("os.abort", "is not a class"),
        ("subprocess.Popen", "lacks name, load, save, lock"),
        (f"{__name__}.WithoutLock", "lacks lock"),
        (f"{__name__}.Argued", "can't be created: TypeError: .*where"),
        (f"{__name__}.Broken", "can't be created: RuntimeError: no vault"),
        (f"{__name__}.TwoWords", "a name of one word"),
    ],
)
def test_a_store_of_the_site_that_cannot_be_used_is_refused(monkeypatch, path, text):
    monkeypatch.setenv(TOKEN_STORE, path)
    with pytest.raises(OpenmarketsConfigurationError, match=rf"\[openmarkets\] token_store: '{path}' .*({text})"):
        store_of(settings())
    assert CALLS == []


def test_stores_of_the_same_are_the_same_and_a_changed_redis_connection_makes_others(
    hook, empty_redis: RedisServer, monkeypatch
):
    first, second = hook(cache_backend="redis").client, hook(cache_backend="redis").client
    assert first.store == second.store
    monkeypatch.setenv("AIRFLOW_CONN_REDIS_DEFAULT", empty_redis.connection_json(db=2))
    third = hook(cache_backend="redis").client
    assert third.store != first.store
    assert third.settings == first.settings
