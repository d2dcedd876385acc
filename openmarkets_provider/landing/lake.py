"""What tables of Delta and Iceberg have in common: the rows of a load on the local disk, and which rows they replace.

Both formats overwrite in one commit: rows that match a filter go, and the new ones come. So the only difference between
the modes is the filter. It names what the query covers (``replace_range``), the keys of the new rows (``upsert``), or
the load (``append``).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.columns import LOAD_ID
from openmarkets_provider.landing.destination import LoadResult, Source, keep_last, name_codes, range_texts
from openmarkets_provider.landing.layout import Column, Layout, Storage, layout_of
from openmarkets_provider.landing.modes import APPEND, REPLACE_RANGE, UPSERT, check_mode, coverage_of
from openmarkets_provider.landing.partitions import PARTITIONS, first_day
from openmarkets_provider.landing.spool import Spool, open_scratch, scratch_folder
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.query.batch import Batch
from openmarkets_provider.query.exchange_time import day_of
from openmarkets_provider.query.query import Query, subject_of

if TYPE_CHECKING:
    import pyarrow as pa

    from openmarkets_provider.landing.arrow import ArrowConverter

log = logging.getLogger(__name__)

MAX_KEYS = 10_000
"""Most rows of one load with mode ``upsert``: the filter names the key of each."""
TRIES = 10
"""How often a load tries to commit while others commit, too. Its rows are on the local disk."""


class Filter(NamedTuple):
    """The rows that a load replaces.

    :ivar time: the column of the range; None for no range.
    :ivar start: the first date, or time in UTC, in the range.
    :ivar end: the first one after it.
    :ivar groups: values by column: a row matches a group when it has one of the values in each column. Rows that match
        one of the groups, and are in the range, are replaced.
    """

    time: str | None
    start: Any
    end: Any
    groups: Sequence[Mapping[str, Sequence[Any]]]


class Load(NamedTuple):
    """All rows of a load, on the local disk, sorted into partitions.

    :ivar layout: their columns.
    :ivar filter: the rows that they replace.
    :ivar result: what the load returns.
    """

    layout: Layout
    filter: Filter
    result: LoadResult
    spool: Spool[date | None]

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to write and nothing to replace."""
        return not self.filter.groups

    def list_partitions(self) -> list[date | None]:
        """Return the first exchange day of each partition with rows, in order; None for a table without partitions."""
        return sorted(self.spool.list_keys(), key=lambda day: day or date.min)

    def convert(self, partition: date | None, converter: ArrowConverter) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a partition.

        :raises OpenmarketsInvalidResponse: a value does not fit; the text names column, row and key.
        """
        for columns in self.spool.batches(partition):
            yield from converter.add(columns)
        yield from converter.finish()


class Partitioning(NamedTuple):
    """How a table is partitioned.

    :ivar by: None, ``day``, ``month`` or ``year``, of the exchange's calendar (Australia/Sydney).
    :ivar column: the column that is added for it; None for no such column.
    :ivar value: its value in a row of an exchange day.
    """

    by: str | None = None
    column: Column | None = None
    value: Callable[[date], Any] = lambda day: day


def check_lake_query(mode: str, query: Query, partition: str | None, *, incremental: bool) -> None:
    """Refuse a mode or a partition that does not go with a query. A template is not checked.

    :raises ValueError: there is no such mode or partition, or it does not go with ``incremental``.
    :raises OpenmarketsQueryError: it does not go with the query.
    """
    if partition not in (None, *PARTITIONS):
        raise ValueError(f"partition must be None or one of {', '.join(PARTITIONS)}, not {partition!r}.")
    check_mode(mode, query, incremental=incremental)
    if partition is not None and isinstance(query, dict) and is_literal(query.get("endpoint")):
        layout = layout_of(query)
        if layout.time is None:
            raise OpenmarketsQueryError(
                f"partition: rows of {layout.name} have no time to partition by. Remove partition."
            )


@contextmanager
def pull(source: Source, query: Query, *, mode: str, partitioning: Partitioning, load_id: str) -> Iterator[Load]:
    """Pull all rows of a query to the local disk.

    :param mode: one of :data:`openmarkets_provider.landing.modes.MODES`.
    :param load_id: identifies the rows of the load, with mode ``append``.
    :raises OpenmarketsError: the query failed, or the disk did.
    """
    plain = layout_of(query, datetime.now(UTC))
    layout = lake_layout(plain, mode, partitioning)
    pulled = name_codes(source, query) if mode == REPLACE_RANGE else query
    names = _names_of(pulled, plain, mode)
    found: set[tuple[Any, ...]] = set()
    skipped: set[str] = set()
    with open_scratch() as file:
        spool: Spool[date | None] = Spool(file, scratch_folder())
        with closing(source.stream_columns(pulled, skipped)) as batches:
            for batch in batches if mode == APPEND else keep_last(batches, plain):
                if not len(batch):
                    continue
                if mode != APPEND:
                    _check_key(plain, batch, spool.rows)
                    found.update(batch.keys(names))
                    _check_count(mode, found, plain)
                for day, part in _sort(batch, plain, partitioning):
                    spool.add(day, layout.values(_complete(part, layout, plain, partitioning, load_id)))
        chosen = _filter_of(pulled, plain, mode, names, found, skipped, load_id)
        result = LoadResult("", spool.rows, None, [], range_texts(query), sorted(skipped))
        yield Load(layout, chosen, result, spool)


def lake_layout(layout: Layout, mode: str, partitioning: Partitioning) -> Layout:
    """Return the layout with the columns that a table of a lakehouse has in addition."""
    more = [partitioning.column] if partitioning.column else []
    if mode == APPEND:
        more.append(Column(LOAD_ID, Storage.TEXT, "the task instance that loaded the row"))
    return replace(layout, columns=(*layout.columns, *more))


def check_types(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a table with a column of another type: the libraries cast, and round, without a word.

    :param theirs: types of the table, by column.
    :param ours: likewise of the rows.
    :raises OpenmarketsConfigurationError: likewise.
    """
    for column, kind in ours.items():
        if theirs.get(column, kind) != kind:
            raise OpenmarketsConfigurationError(
                f"{name}: column {column} is {theirs[column]}, but the rows have {kind}. Change the column, or "
                "use another table."
            )


def check_partitioning(name: str, theirs: Sequence[str], ours: Sequence[str], partition: str | None) -> None:
    """Refuse a table that is partitioned otherwise.

    :param theirs: what the table is partitioned by.
    :param ours: what the partition asks for.
    :raises OpenmarketsConfigurationError: likewise.
    """
    if theirs != ours:
        raise OpenmarketsConfigurationError(
            f"partition: {name} is partitioned by {', '.join(theirs) or 'nothing'}, but partition={partition!r} "
            f"needs {', '.join(ours) or 'nothing'}. Set the table's own partition, or use another table."
        )


def commit_again(name: str, commit: Callable[[], None], *conflicts: type[Exception]) -> None:
    """Commit, and try again as long as other loads commit at the same time.

    :param name: of the table.
    :param commit: reads the table anew each time.
    :param conflicts: errors that say so.
    :raises OpenmarketsError: transient: they did so each time.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return commit()
        except conflicts as error:
            conflict = error
            log.info("%s: another load committed first; attempt %d of %d failed.", name, attempt, TRIES)
    raise OpenmarketsError(
        f"{name}: other loads changed the same rows or files at each of {TRIES} attempts to commit. Run fewer "
        "loads of the table at once.",
        transient=True,
        sent=True,
    ) from conflict


def _names_of(query: Query, layout: Layout, mode: str) -> tuple[str, ...]:
    """Return the columns whose values the filter needs."""
    if mode == REPLACE_RANGE and subject_of(query) == "securities":
        return coverage_of(query, layout).columns
    return layout.key


def _filter_of(
    query: Query,
    layout: Layout,
    mode: str,
    names: tuple[str, ...],
    found: set[tuple[Any, ...]],
    skipped: set[str],
    load_id: str,
) -> Filter:
    """Return the rows that a load replaces.

    :param names: columns.
    :param found: the values of the new rows in these.
    """
    if mode == APPEND:
        return Filter(None, None, None, [{LOAD_ID: [load_id]}])
    if mode == UPSERT:
        return Filter(None, None, None, _group(names, found))
    coverage = coverage_of(query, layout, skipped)
    if subject_of(query) == "accounts":
        # Rows of other accounts of the portfolio come along, and are not all rows of those: they go by key.
        accounts = {account for (account,) in coverage.subjects}
        others = {key for key in found if key[names.index("account_code")] not in accounts}
        groups = [*_group(coverage.columns, coverage.subjects), *_group(names, others)]
    else:
        # A reply may name a security otherwise than the query did: in capitals, or from another data source.
        groups = _group(coverage.columns, {*coverage.subjects, *found})
    return Filter(coverage.time, coverage.start, coverage.end, groups)


def _group(names: Sequence[str], subjects: Iterable[tuple[Any, ...]]) -> list[dict[str, list[Any]]]:
    """Return groups of subjects that differ in one column only, the one with the most values: so they are few."""
    found = sorted(subjects)
    widest = max(range(len(names)), key=lambda column: len({subject[column] for subject in found}))
    groups = defaultdict(list)
    for subject in found:
        groups[subject[:widest], subject[widest + 1 :]].append(subject[widest])
    return [
        dict(zip(names, [*([value] for value in before), values, *([value] for value in after)], strict=True))
        for (before, after), values in groups.items()
    ]


def _check_key(layout: Layout, batch: Batch, before: int) -> None:
    for column in layout.columns:
        if column.key and None in batch.columns[column.name]:
            row = list(batch.columns[column.name]).index(None)
            raise layout.unfit(
                layout.values(batch), column, row, before, "is not allowed, because the column is part of the key."
            )


def _check_count(mode: str, keys: set[tuple[Any, ...]], layout: Layout) -> None:
    if mode == UPSERT and len(keys) > MAX_KEYS:
        other = f"Use mode={REPLACE_RANGE!r}." if layout.time else "Query fewer securities or accounts at once."
        raise OpenmarketsQueryError(
            f"{layout.name}: mode={UPSERT!r} takes at most {MAX_KEYS} rows, because the commit lists the key of "
            f"each. {other}"
        )


def _sort(batch: Batch, layout: Layout, partitioning: Partitioning) -> Iterator[tuple[date | None, Batch]]:
    """Yield the first exchange day of each partition, and the rows in it."""
    by = partitioning.by
    if by is None:
        yield None, batch
        return
    rows: dict[date, list[int]] = defaultdict(list)
    for row, moment in enumerate(batch.columns[str(layout.time)]):
        rows[first_day(by, day_of(moment))].append(row)
    for day, those in rows.items():
        yield day, batch.take(those)


def _complete(batch: Batch, layout: Layout, plain: Layout, partitioning: Partitioning, load_id: str) -> Batch:
    """Return rows with the columns that are added."""
    more: dict[str, list[Any]] = {}
    if partitioning.column is not None:
        more[partitioning.column.name] = [
            partitioning.value(day_of(moment)) for moment in batch.columns[str(plain.time)]
        ]
    if layout.columns[-1].name == LOAD_ID:
        more[LOAD_ID] = [load_id] * len(batch)
    return Batch({**batch.columns, **more})
