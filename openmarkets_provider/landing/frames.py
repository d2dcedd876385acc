"""Rows as Arrow tables and DataFrames. pyarrow, pandas and polars are imported only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsConfigurationError
from openmarkets_provider.landing.destination import Source
from openmarkets_provider.landing.layout import layout_of
from openmarkets_provider.query.query import Query

if TYPE_CHECKING:
    import pyarrow as pa

PRICES = ("float", "decimal")


def stream_arrow(source: Source, query: Query) -> Iterator[pa.RecordBatch]:
    """Run a query and yield its rows as Arrow record batches, as they arrive.

    The columns and types are those of a Parquet file: ``decimal128``, ``date32``, ``timestamp("us", "UTC")``. The
    column ``loaded_at`` has the time when the query began. ``other_fields`` has unknown fields, as JSON.

    :param source: a hook or a client.
    :param query: the result of a function of :mod:`openmarkets_provider.queries`.
    :return: batches with one schema, of at least 8,192 rows except the last one.
    :raises OpenmarketsConfigurationError: when called: pyarrow is not installed.
    :raises OpenmarketsError: during the iteration: the query failed, or a number does not fit its type.
    """
    with _explain("pyarrow", "parquet"):
        from openmarkets_provider.landing.arrow import ArrowConverter
    layout = layout_of(query, datetime.now(UTC))
    batches, converter = source.stream_columns(query), ArrowConverter(layout)

    def convert() -> Iterator[pa.RecordBatch]:
        with closing(batches):
            for batch in batches:
                yield from converter.add(layout.values(batch))
        yield from converter.finish()

    return convert()


def run_arrow(source: Source, query: Query) -> pa.Table:
    """Run a query, and return its rows as one Arrow table. It has all columns, even without rows.

    :param source: a hook or a client.
    :param query: see :func:`stream_arrow`.
    :raises OpenmarketsError: see :func:`stream_arrow`.
    """
    batches = stream_arrow(source, query)
    import pyarrow as pa

    from openmarkets_provider.landing.arrow import schema_of

    return pa.Table.from_batches(batches, schema_of(layout_of(query)))


def run_df(source: Source, query: Query, *, prices: str = "float", engine: str = "pandas") -> Any:
    """Run a query, and return its rows as a DataFrame.

    In pandas, times are ``datetime64[ns, UTC]`` (``us`` in a column with a time after the year 2261), and dates are
    ``datetime64`` at midnight. Whole numbers are ``Int64`` and booleans ``boolean``, which allow missing values. In
    polars, the types are ``Datetime("us", "UTC")``, ``Date``, ``Int64`` and ``Boolean``.

    :param source: a hook or a client.
    :param query: see :func:`stream_arrow`.
    :param prices: type of all decimals. ``float`` is the nearest ``float64``. ``decimal`` keeps all digits; in pandas
        these are ``Decimal`` objects.
    :param engine: ``pandas`` or ``polars``.
    :return: the columns of :func:`stream_arrow`.
    :raises ValueError: prices or engine has another value.
    :raises OpenmarketsConfigurationError: pyarrow or the engine is not installed.
    :raises OpenmarketsError: see :func:`stream_arrow`.
    """
    for name, value, allowed in (("prices", prices, PRICES), ("engine", engine, tuple(_ENGINES))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}.")
    with _explain(engine, engine):
        import_module(engine)
    table = run_arrow(source, query)
    return _ENGINES[engine](_to_floats(table) if prices == "float" else table)


@contextmanager
def _explain(package: str, extra: str) -> Iterator[None]:
    """Explain how to install a missing package."""
    try:
        yield
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            f"The package {package} is missing. Run: pip install 'airflow-provider-openmarkets[{extra}]'"
        ) from error


def _to_floats(table: pa.Table) -> pa.Table:
    """Return a table with the nearest float of each decimal."""
    import pyarrow as pa

    # Arrow's own cast is wrong in the last bit for a quarter of all prices. A cast from text is right.
    return _cast(table, pa.types.is_decimal, lambda column: column.cast(pa.string()).cast(pa.float64()))


def _to_pandas(table: pa.Table) -> Any:
    import pandas as pd
    import pyarrow as pa

    def to_nanoseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
        try:
            return column.cast(pa.timestamp("ns", "UTC"))
        except pa.ArrowInvalid:
            return column

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    table = _cast(table, pa.types.is_timestamp, to_nanoseconds)
    return table.to_pandas(date_as_object=False, types_mapper=nullable.get)


def _to_polars(table: pa.Table) -> Any:
    import polars as pl

    return pl.from_arrow(table)


_ENGINES: Mapping[str, Callable[[pa.Table], Any]] = {"pandas": _to_pandas, "polars": _to_polars}


def _cast(
    table: pa.Table, wanted: Callable[[pa.DataType], bool], cast: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> pa.Table:
    """Return a table in which the columns of some types are cast."""
    for index, field in enumerate(table.schema):
        if wanted(field.type):
            table = table.set_column(index, field.name, cast(table.column(index)))
    return table
