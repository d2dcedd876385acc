"""The contract of stores, held by those of the package and by one as a site may write it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from openmarkets_provider.client.cache.fallback import FallbackStore
from openmarkets_provider.client.cache.file import FileStore
from openmarkets_provider.client.cache.redis import LEASE, RedisStore
from openmarkets_provider.client.cache.store import Store
from openmarkets_provider.testing.store_contract import StoreContract
from tests.client.conftest import redis_store
from tests.support.redis_server import RedisServer


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FileStore:
        return FileStore(tmp_path / "cache")


class TestRedisStore(StoreContract):
    lease_seconds = LEASE

    @pytest.fixture
    def store(self, empty_redis: RedisServer) -> RedisStore:
        return redis_store(empty_redis)


class TestFallbackStoreWhosePrimaryWorks(StoreContract):
    lease_seconds = LEASE

    @pytest.fixture
    def store(self, empty_redis: RedisServer, tmp_path: Path) -> FallbackStore:
        return FallbackStore(redis_store(empty_redis), FileStore(tmp_path / "cache"), "Redis")


class TestFallbackStoreWhosePrimaryIsDown(StoreContract):
    @pytest.fixture
    def store(self, empty_redis: RedisServer, tmp_path: Path) -> FallbackStore:
        empty_redis.kill()
        return FallbackStore(redis_store(empty_redis), FileStore(tmp_path / "cache"), "Redis")


class SqliteStore:
    """A store as a site may write it: two tables of a database that all hosts reach; a lock is a row that ends."""

    name = "sqlite"
    LEASE = 3.0

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connected() as database:
            # Otherwise continuous writers would block readers for longer than they wait.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE IF NOT EXISTS records (key PRIMARY KEY, data, until)")
            database.execute("CREATE TABLE IF NOT EXISTS locks (key PRIMARY KEY, owner, until)")

    def load(self, key: str) -> bytes | None:
        with self._connected() as database:
            row = database.execute("SELECT data FROM records WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def save(self, key: str, data: bytes, seconds: float, lease: str | None = None) -> None:
        with self._connected() as database:
            database.execute("DELETE FROM records WHERE until < ?", (time.time(),))
            database.execute(
                "REPLACE INTO records SELECT ?, ?, ? WHERE ? IS NULL OR EXISTS "
                "(SELECT * FROM locks WHERE key = ? AND owner = ? AND until > ?)",
                (key, data, time.time() + seconds, lease, key, lease, time.time()),
            )

    @contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[str | None]:
        end = time.monotonic() + timeout
        owner = os.urandom(16).hex()
        while not self._acquire(key, owner):
            if time.monotonic() > end:
                yield None
                return
            time.sleep(0.02)
        try:
            yield owner
        finally:
            with self._connected() as database:
                database.execute("DELETE FROM locks WHERE key = ? AND owner = ?", (key, owner))

    def _acquire(self, key: str, owner: str) -> bool:
        now = time.time()
        with self._connected() as database:
            taken = database.execute(
                "INSERT INTO locks VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET owner = excluded.owner, until = excluded.until WHERE locks.until < ?",
                (key, owner, now + self.LEASE, now),
            )
            return taken.rowcount == 1

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise OSError(str(error)) from error


class TestStoreOfASite(StoreContract):
    lease_seconds = SqliteStore.LEASE

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return SqliteStore(tmp_path / "records.db")
