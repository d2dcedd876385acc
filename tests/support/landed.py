"""What was landed, without the time at which it was: that differs in every load."""

from __future__ import annotations

import gzip
import re
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq
import zstandard

from tests.support.databases import Database

_LOADED_AT = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d{6}(\+00:00|Z)")
_NO_TIME = b"-"


def without_loaded_at(content: bytes) -> bytes:
    """Return a digest of the rows of a file, without their load times.

    In texts all times with microseconds are blanked: no other column of the sandbox's bars has such.
    """
    if content.startswith(b"PAR1") and content.endswith(b"PAR1"):
        table = pq.read_table(BytesIO(content))
        return f"{table.schema} {table.drop_columns(['loaded_at']).to_pylist()}".encode()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    elif content.startswith(b"\x28\xb5\x2f\xfd"):
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return _LOADED_AT.sub(_NO_TIME, content)


def rows_in(database: Database, table: str) -> list[tuple[Any, ...]]:
    """Return the rows of a table in no order, without ``loaded_at``."""
    names = ", ".join(f'"{name}"' for name in database.columns(table) if name != "loaded_at")
    return database.execute(f"SELECT {names} FROM {table}")
