"""The kinds of stores that transfers load and checks read: how a test loads, repairs, changes and counts each."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from pyiceberg.expressions import And, EqualTo

from openmarkets_provider.queries import Query
from openmarkets_provider.transfers._stores import open_catalog
from openmarkets_provider.transfers.openmarkets_to_delta import OpenmarketsToDeltaOperator
from openmarkets_provider.transfers.openmarkets_to_iceberg import OpenmarketsToIcebergOperator
from openmarkets_provider.transfers.openmarkets_to_object_storage import OpenmarketsToObjectStorageOperator
from openmarkets_provider.transfers.openmarkets_to_sql import OpenmarketsToSqlOperator
from tests.support.context import context
from tests.support.databases import Database
from tests.support.s3_server import S3Server


class Store:
    """A store of daily bars, empty at first.

    :ivar check: arguments of a check that reads it.
    :ivar transfer: the operator that loads it.
    :ivar load: its arguments, but for the query.
    :ivar repair: likewise of a load that adds what is missing.
    """

    transfer: type[Any]
    check: dict[str, Any]
    load: dict[str, Any]

    @property
    def repair(self) -> dict[str, Any]:
        return self.load

    def land(self, query: Query) -> None:
        self.transfer(task_id="load", query=query, **self.load).execute(context())

    def add(self, query: Query) -> int:
        """Load what is missing, and return the number of rows that were pulled."""
        return self.transfer(task_id="repair", query=query, **self.repair).execute(context("repair"))["rows"]

    def delete(self, session: str, code: str) -> None:
        """Delete a row by hand."""
        raise NotImplementedError

    def keys(self) -> list[tuple[str, str]]:
        """Return the session and the code of each row, in order."""
        raise NotImplementedError


class Files(Store):
    transfer = OpenmarketsToObjectStorageOperator

    def __init__(self, folder: Path, partition: str) -> None:
        self.check = {"destination": str(folder)}
        self.load = self.check | {"partition": partition}
        self._folder = folder

    @property
    def repair(self) -> dict[str, Any]:
        return self.load | {"if_exists": "merge"}

    def delete(self, session: str, code: str) -> None:
        for path in self._folder.rglob("*.parquet"):
            table = pq.ParquetFile(path).read()
            rows = [row for row in table.to_pylist() if key_of(row) != (session, code)]
            if len(rows) < len(table):
                pq.write_table(pa.Table.from_pylist(rows, table.schema), path)

    def keys(self) -> list[tuple[str, str]]:
        files = self._folder.rglob("*.parquet")
        return sorted(key_of(row) for path in files for row in pq.ParquetFile(path).read().to_pylist())


class FilesInS3(Store):
    transfer = OpenmarketsToObjectStorageOperator

    def __init__(self, server: S3Server) -> None:
        self.check = {"destination": "s3://bucket/bars", "conn_id": "landing_s3"}
        self.load = self.check | {"partition": "day"}
        self._server = server

    @property
    def repair(self) -> dict[str, Any]:
        return self.load | {"if_exists": "merge"}

    def delete(self, session: str, code: str) -> None:
        key = f"bars/exchange_date={session}/part-0.parquet"
        table = self._read(key)
        rows = [row for row in table.to_pylist() if key_of(row) != (session, code)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, table.schema), sink)
        self._server.client.put_object(Bucket="bucket", Key=key, Body=sink.getvalue().to_pybytes())

    def keys(self) -> list[tuple[str, str]]:
        return sorted(key_of(row) for key in set(self._server.keys()) for row in self._read(key).to_pylist())

    def _read(self, key: str) -> pa.Table:
        body = self._server.client.get_object(Bucket="bucket", Key=key)["Body"].read()
        return pq.ParquetFile(pa.BufferReader(body)).read()


class Delta(Store):
    transfer = OpenmarketsToDeltaOperator

    def __init__(self, folder: Path) -> None:
        self.check = {"destination": str(folder), "format": "delta"}
        self.load = {"destination": str(folder), "partition": "month"}

    def delete(self, session: str, code: str) -> None:
        DeltaTable(self.load["destination"]).delete(f"time_series_date = '{session}' AND security_code = '{code}'")

    def keys(self) -> list[tuple[str, str]]:
        return sorted(map(key_of, DeltaTable(self.load["destination"]).to_pyarrow_table().to_pylist()))


class Iceberg(Store):
    transfer = OpenmarketsToIcebergOperator

    def __init__(self, folder: Path) -> None:
        self.check = {"table": "market.bars", "warehouse": str(folder)}
        self.load = self.check | {"partition": "month"}

    def delete(self, session: str, code: str) -> None:
        chosen: Any = And(EqualTo("time_series_date", session), EqualTo("security_code", code))
        catalog = open_catalog(None, self.check["warehouse"])
        catalog.load_table("market.bars").delete(chosen)
        catalog.close()

    def keys(self) -> list[tuple[str, str]]:
        catalog = open_catalog(None, self.check["warehouse"])
        rows = catalog.load_table("market.bars").scan().to_arrow().to_pylist()
        catalog.close()
        return sorted(map(key_of, rows))


class Sql(Store):
    """A table with other column names, in the database of the connection ``db``."""

    transfer = OpenmarketsToSqlOperator

    def __init__(self, database: Database) -> None:
        names = {"security_code": "code", "time_series_date": "day", "frequency": "length", "close_price": "close"}
        self.load = self.check = {"table": "bars", "conn_id": "db", "columns": names}
        self._database = database

    def delete(self, session: str, code: str) -> None:
        self._database.execute(f"DELETE FROM bars WHERE day = '{session}' AND code = '{code}'")

    def keys(self) -> list[tuple[str, str]]:
        return sorted((str(day), code) for day, code in self._database.execute("SELECT day, code FROM bars"))


def key_of(row: dict[str, Any]) -> tuple[str, str]:
    day: date = row["time_series_date"]
    return str(day), row["security_code"]
