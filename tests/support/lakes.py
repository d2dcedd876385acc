"""Tables of Delta and Iceberg in a folder: how a test loads them, reads them with another engine, and changes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
from openmarkets_provider.landing.delta import DeltaDestination
from openmarkets_provider.landing.destination import Destination, LoadResult, Source
from openmarkets_provider.landing.iceberg import IcebergDestination
from openmarkets_provider.landing.modes import REPLACE_RANGE
from openmarkets_provider.queries import Query

# polars warns of a planner that is not installed. It reads the data files itself.
os.environ["POLARS_ICEBERG_PLANNER"] = "pyiceberg"


class Lake:
    """One table.

    :ivar name: as results of loads have it.
    """

    name: str

    def destination(self, mode: str = REPLACE_RANGE, **kwargs: Any) -> Destination:
        raise NotImplementedError

    def scan(self) -> pl.LazyFrame:
        """Read the table with polars."""
        raise NotImplementedError

    def commits(self) -> int:
        """Return how many commits have changed rows."""
        raise NotImplementedError

    def write(self, rows: pa.Table) -> None:
        """Give the table these rows and columns, as a user's own program would."""
        raise NotImplementedError

    def land(self, query: Query, mode: str = REPLACE_RANGE, source: Source | None = None, **kwargs: Any) -> LoadResult:
        return self.destination(mode, **kwargs).land(source or OpenmarketsHook(), query)

    def rows(self, *names: str) -> list[tuple[Any, ...]]:
        """Return all rows without ``loaded_at``, or some of their columns, in order."""
        table = self.scan().collect()
        return sorted((table.select(names) if names else table.drop("loaded_at")).rows(), key=str)


class DeltaLake(Lake):
    def __init__(self, folder: Path) -> None:
        self.name = str(folder / "bars")

    def destination(self, mode: str = REPLACE_RANGE, **kwargs: Any) -> DeltaDestination:
        return DeltaDestination(self.name, mode=mode, **kwargs)

    def scan(self) -> pl.LazyFrame:
        return pl.scan_delta(self.name)

    def commits(self) -> int:
        return sum(commit["operation"] == "WRITE" for commit in DeltaTable(self.name).history())

    def write(self, rows: pa.Table) -> None:
        write_deltalake(self.name, rows, mode="overwrite", schema_mode="overwrite")


class IcebergLake(Lake):
    name = "market.bars"

    def __init__(self, folder: Path) -> None:
        # It needs SQLAlchemy 2.
        from pyiceberg.catalog.sql import SqlCatalog

        self.catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")

    def destination(self, mode: str = REPLACE_RANGE, **kwargs: Any) -> IcebergDestination:
        return IcebergDestination(self.catalog, self.name, catalog_name="lake", mode=mode, **kwargs)

    def scan(self) -> pl.LazyFrame:
        return pl.scan_iceberg(self.catalog.load_table(self.name), reader_override="native")

    def commits(self) -> int:
        # The log of a table's metadata has what came before; the first one is the creation.
        return len(self.catalog.load_table(self.name).metadata.metadata_log)

    def write(self, rows: pa.Table) -> None:
        self.catalog.drop_table(self.name)
        self.catalog.create_table(self.name, rows.schema).append(rows)
