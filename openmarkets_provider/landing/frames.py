"""Rows as Arrow tables and as DataFrames. pyarrow, pandas and polars are imported only when they are needed."""

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

    The columns and types are those of a Parquet file: ``decimal128``, ``date32``, ``timestamp("us", "UTC")``;
    ``loaded_at`` says when the query began, and ``other_fields`` has fields that the schema does not know, as JSON.

    :param source: a hook or a client.
    :param query: what a function of :mod:`openmarkets_provider.queries` returned.
    :return: batches of one schema, of 8,192 rows or more but for the last one.
    :raises OpenmarketsConfigurationError: at once: pyarrow is not installed.
    :raises OpenmarketsError: during the iteration: what went wrong. A number that does not fit its type is an error.
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
    """Run a query, and return its rows as one Arrow table. It has all columns also when there are no rows.

    :param source: a hook or a client.
    :param query: as for :func:`stream_arrow`.
    :raises OpenmarketsError: as :func:`stream_arrow`.
    """
    batches = stream_arrow(source, query)
    import pyarrow as pa

    from openmarkets_provider.landing.arrow import schema_of

    return pa.Table.from_batches(batches, schema_of(layout_of(query)))


def run_df(source: Source, query: Query, *, prices: str = "float", engine: str = "pandas") -> Any:
    """Run a query, and return its rows as a DataFrame to compute with.

    In pandas a time is ``datetime64[ns, UTC]`` (``us`` in a column with a time after the year 2261), a date
    ``datetime64``, at midnight, a whole number ``Int64`` and a truth value ``boolean``, which may be missing. In polars
    they are ``Datetime("us", "UTC")``, ``Date``, ``Int64`` and ``Boolean``.

    :param source: a hook or a client.
    :param query: as for :func:`stream_arrow`.
    :param prices: ``float``: a number that may have a fraction is the ``float64`` next to it. ``decimal``: it keeps all
        digits, as objects of ``Decimal`` in pandas.
    :param engine: ``pandas`` or ``polars``.
    :return: the columns of :func:`stream_arrow`.
    :raises ValueError: prices or engine is none of these.
    :raises OpenmarketsConfigurationError: at once: pyarrow or the engine is not installed.
    :raises OpenmarketsError: as :func:`stream_arrow`.
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
    """Say how to install a package that is missing."""
    try:
        yield
    except ImportError as error:
        raise OpenmarketsConfigurationError(
            f"The package {package} is missing. Run: pip install 'airflow-provider-openmarkets[{extra}]'"
        ) from error


def _to_floats(table: pa.Table) -> pa.Table:
    """Return a table with the float next to each decimal."""
    import pyarrow as pa

    # Arrow's own cast is off by the last bit for a quarter of all prices. The one from text is not.
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
    """Return a table with the columns of some types cast."""
    for index, field in enumerate(table.schema):
        if wanted(field.type):
            table = table.set_column(index, field.name, cast(table.column(index)))
    return table
