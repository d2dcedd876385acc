"""What Delta and Iceberg tables have in common: the rows of a load on the local disk, and the rows that they replace.

Both formats overwrite in one commit, which deletes the rows that match a filter and adds the new ones. So the modes
differ only in the filter. It has what the query covers (``replace_range``), the keys of the new rows (``upsert``), or
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
"""Most rows of one load with mode ``upsert``, because the filter has the key of each row."""
TRIES = 10
"""How often a load tries to commit while others commit, too. Its rows wait on the local disk."""


class Filter(NamedTuple):
    """The rows that a load replaces.

    :ivar time: the column of the range; None for no range.
    :ivar start: the first date, or time in UTC, in the range.
    :ivar end: the first date or time after the range.
    :ivar groups: values by column. A row matches a group if it has one of the values in each column. Rows in the range
        that match one of the groups are replaced.
    """

    time: str | None
    start: Any
    end: Any
    groups: Sequence[Mapping[str, Sequence[Any]]]


class Load(NamedTuple):
    """All rows of a load, on the local disk, sorted into partitions.

    :ivar layout: their columns.
    :ivar filter: the rows that they replace.
    :ivar result: the result of the load.
    """

    layout: Layout
    filter: Filter
    result: LoadResult
    spool: Spool[date | None]

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to write and nothing to replace."""
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
    :ivar column: the column that is added for it, if any.
    :ivar value: returns the value of that column for an exchange day.
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
    :raises OpenmarketsError: the query or the disk failed.
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
    """Return the layout with the columns that are added in a lakehouse."""
    more = [partitioning.column] if partitioning.column else []
    if mode == APPEND:
        more.append(Column(LOAD_ID, Storage.TEXT, "the task instance that loaded the row"))
    return replace(layout, columns=(*layout.columns, *more))


def check_types(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a table with a column of another type, because the libraries cast and round silently.

    :param theirs: types of the table, by column.
    :param ours: types of the rows, by column.
    :raises OpenmarketsConfigurationError: a type differs.
    """
    for column, kind in ours.items():
        if theirs.get(column, kind) != kind:
            raise OpenmarketsConfigurationError(
                f"{name}: column {column} is {theirs[column]}, but the rows have {kind}. Change the column, or "
                "use another table."
            )


def check_partitioning(name: str, theirs: Sequence[str], ours: Sequence[str], partition: str | None) -> None:
    """Refuse a table with other partitions.

    :param theirs: the partitions of the table.
    :param ours: the partitions for ``partition``.
    :raises OpenmarketsConfigurationError: they differ.
    """
    if theirs != ours:
        raise OpenmarketsConfigurationError(
            f"partition: {name} is partitioned by {', '.join(theirs) or 'nothing'}, but partition={partition!r} "
            f"needs {', '.join(ours) or 'nothing'}. Set the table's own partition, or use another table."
        )


def commit_again(name: str, commit: Callable[[], None], *conflicts: type[Exception]) -> None:
    """Commit, and try again if another load commits at the same time.

    :param name: of the table.
    :param commit: must read the table again each time.
    :param conflicts: errors that mean that another load has committed.
    :raises OpenmarketsError: transient: every try met another commit.
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
    :param found: the values of the new rows in these columns.
    """
    if mode == APPEND:
        return Filter(None, None, None, [{LOAD_ID: [load_id]}])
    if mode == UPSERT:
        return Filter(None, None, None, _group(names, found))
    coverage = coverage_of(query, layout, skipped)
    if subject_of(query) == "accounts":
        # Rows of other accounts of the portfolio are included, but not all of them: replace these by key.
        accounts = {account for (account,) in coverage.subjects}
        others = {key for key in found if key[names.index("account_code")] not in accounts}
        groups = [*_group(coverage.columns, coverage.subjects), *_group(names, others)]
    else:
        # A reply may write a security differently from the query: in upper case, or from another data source.
        groups = _group(coverage.columns, {*coverage.subjects, *found})
    return Filter(coverage.time, coverage.start, coverage.end, groups)


def _group(names: Sequence[str], subjects: Iterable[tuple[Any, ...]]) -> list[dict[str, list[Any]]]:
    """Return groups of subjects that differ only in the column with the most values, so that there are few groups."""
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
    """Return rows with the added columns."""
    more: dict[str, list[Any]] = {}
    if partitioning.column is not None:
        more[partitioning.column.name] = [
            partitioning.value(day_of(moment)) for moment in batch.columns[str(plain.time)]
        ]
    if layout.columns[-1].name == LOAD_ID:
        more[LOAD_ID] = [load_id] * len(batch)
    return Batch({**batch.columns, **more})
