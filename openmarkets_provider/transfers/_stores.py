"""Opens object stores, Delta tables and Iceberg catalogs with Airflow connections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.errors import explain_errors
from openmarkets_provider.landing.places import LOCAL, OBJECT_STORES, Place, read_place, redact

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

CATALOG, CATALOG_FILE = "openmarkets", "catalog.db"
"""Name and file of the Iceberg catalog of a folder."""
_DELTA_SCHEMES = (LOCAL, "s3", "s3a")
_ICEBERG_TABLE = re.compile(r"\w+(\.\w+)+")


def open_file_system(place: Place, conn_id: str | None) -> Any:
    """Return the fsspec file system of an object store, with the credentials of a connection or the worker.

    :raises OpenmarketsConfigurationError: a package is missing.
    """
    from airflow.providers.common.compat.sdk import BaseHook, ObjectStoragePath

    conn_id = conn_id or place.conn_id
    if conn_id is not None:
        # Amazon's provider ignores a connection that does not exist.
        BaseHook.get_connection(conn_id)
    try:
        return ObjectStoragePath(f"{place.scheme}://{place.bucket}", conn_id=conn_id).fs
    except (ImportError, ValueError) as error:
        package = OBJECT_STORES[place.scheme].package
        # The message for a missing package may name a different package, or none.
        reason = "a package is missing" if isinstance(error, ImportError) else str(error).rstrip(".")
        raise OpenmarketsConfigurationError(
            f"destination: {place.scheme}:// can't be opened: {reason}. Check that it is installed: pip install "
            f"'{package}'"
        ) from error


def read_table_place(destination: str) -> Place:
    """Parse a rendered destination of a Delta table.

    :raises OpenmarketsConfigurationError: it is not on a disk or in S3.
    """
    place = read_place(destination, is_folder=True)
    if place.scheme not in _DELTA_SCHEMES:
        raise OpenmarketsConfigurationError(
            f"destination: {redact(destination):.200} is not on a disk or in S3. Land files there with "
            "OpenmarketsToObjectStorageOperator, and load them into the table from there."
        )
    return place


def storage_options(conn_id: str) -> dict[str, str]:
    """Return the storage options for ``deltalake`` from a connection of type ``aws``."""
    try:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            f"{error}. A Delta table in S3 needs another package. Run: pip install apache-airflow-providers-amazon"
        ) from error
    from airflow.providers.common.compat.sdk import BaseHook

    # Amazon's provider ignores a connection that does not exist.
    BaseHook.get_connection(conn_id)
    hook = S3Hook(aws_conn_id=conn_id)
    credentials = hook.get_credentials()
    endpoint = hook.conn_config.get_service_endpoint_url("s3")
    options = {
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_SESSION_TOKEN": credentials.token,
        "AWS_REGION": hook.region_name or hook.get_session().region_name,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true" if endpoint and endpoint.startswith("http://") else None,
    }
    return {name: value for name, value in options.items() if value}


def check_place(table: Any, conn_id: Any, warehouse: Any) -> None:
    """Check the rendered name of an Iceberg table, and that exactly one of connection and warehouse is set."""
    if not isinstance(table, str) or not _ICEBERG_TABLE.fullmatch(table):
        raise OpenmarketsConfigurationError(
            f"table must be 'namespace.table', of letters, digits and underscores, not {table!r:.200}. Check the "
            "rendered template."
        )
    if bool(conn_id) == bool(warehouse):
        raise OpenmarketsConfigurationError(
            "Set either conn_id (a connection of type iceberg) or warehouse (a folder with its own catalog)."
        )
    if warehouse and not (isinstance(warehouse, str) and warehouse.startswith("/")):
        raise OpenmarketsConfigurationError(
            f"warehouse must be an absolute path, not {warehouse!r:.200}. For a bucket, set conn_id to a "
            "connection of type iceberg."
        )


def open_catalog(conn_id: str | None, warehouse: str | None) -> Catalog:
    """Return the catalog of a connection of type ``iceberg``, or of a folder. The caller closes it."""
    return _open_folder(warehouse) if warehouse else _open_connection(str(conn_id))


def _open_folder(warehouse: str) -> Catalog:
    try:
        from pyiceberg.catalog.sql import SqlCatalog
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            f"warehouse: {error}. Its catalog needs SQLAlchemy 2 (Airflow 3.2 or later). Set conn_id instead."
        ) from error
    with explain_errors(f"Cannot open the catalog in {warehouse}"):
        folder = Path(warehouse)
        folder.mkdir(parents=True, exist_ok=True)
        return SqlCatalog(CATALOG, uri=f"sqlite:///{folder / CATALOG_FILE}", warehouse=folder.as_uri())


def _open_connection(conn_id: str) -> Catalog:
    from airflow.providers.apache.iceberg.hooks.iceberg import IcebergHook
    from airflow.providers.common.compat.sdk import BaseHook

    conn_type = BaseHook.get_connection(conn_id).conn_type
    if conn_type != IcebergHook.conn_type:
        raise OpenmarketsConfigurationError(
            f"conn_id: connection {conn_id!r} must have the type iceberg, not {conn_type!r}."
        )
    with explain_errors(f"Cannot open the catalog of connection {conn_id!r}"):
        catalog: Catalog = IcebergHook(conn_id).get_conn()
        return catalog
