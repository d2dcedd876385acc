"""Rows as one file, or as a folder with a file for each partition."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from itertools import chain
from shutil import copyfileobj
from typing import IO, Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.destination import LoadResult, Moment, Source, keep_last, range_texts, with_range
from openmarkets_provider.landing.errors import explain_errors
from openmarkets_provider.landing.folders import Folder
from openmarkets_provider.landing.formats import FileFormat
from openmarkets_provider.landing.kept import select_kept
from openmarkets_provider.landing.layout import Columns, Layout, layout_of
from openmarkets_provider.landing.partitions import Partition, Sorter, list_partitions, widen_range
from openmarkets_provider.landing.places import Place
from openmarkets_provider.landing.published import Published
from openmarkets_provider.landing.spool import Spool
from openmarkets_provider.query.arguments import align
from openmarkets_provider.query.batch import Batch, concat
from openmarkets_provider.query.exchange_time import read_moment
from openmarkets_provider.query.query import Query, resolve, window

log = logging.getLogger(__name__)

REPLACE, MERGE, ERROR, SKIP = IF_EXISTS = ("replace", "merge", "error", "skip")

SORTED_AT_ONCE = 50_000
"""Rows that are sorted into partitions together."""
_PART = 1 << 20
"""Bytes that are copied at once."""

Names = Mapping[Partition | None, str]
"""File names by partition; None stands for the only file."""


class _File(NamedTuple):
    """A complete file that waits to be published.

    :ivar open: opens it as a temporary file of the folder.
    """

    rows: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class FileDestination:
    """A file, or a folder with a file for each partition.

    :ivar place: of the file, or of the folder with ``partition``.
    :ivar folder: the folder, or the folder of the file.
    :ivar partition: None, or one of :data:`openmarkets_provider.landing.partitions.PARTITIONS`.
    :ivar if_exists: one of :data:`IF_EXISTS`.
    :ivar open_end: True if a query's range may end within a partition.
    :ivar published: the files that this task has published, with ``if_exists="error"``.
    """

    place: Place
    folder: Folder
    file_format: FileFormat
    partition: str | None = None
    if_exists: str = REPLACE
    open_end: bool = False
    published: Published | None = None
    is_exclusive = True

    @property
    def name(self) -> str:
        """The URL."""
        return self.place.url

    @property
    def format(self) -> str:
        """Partition, format and compression."""
        return f"{self.partition} {self.file_format.name} {self.file_format.compression}"

    def exists(self) -> bool:
        """Tell whether the folder has files."""
        return self.folder.has_files()

    def range_to_pull(self, query: Query, start: Moment, end: Moment, watermark: str | None) -> tuple[Moment, Moment]:
        """Return a range that begins with a partition, and ends with one or at the end of what is then loaded."""
        arguments = resolve(query)
        reached = None if watermark is None else align(arguments, read_moment(watermark))
        return widen_range(str(self.partition), start, end, reached)

    def land(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows into temporary files, and publish these when all of them are complete.

        A partition without rows has no file; an old one is removed. Rows of securities that the query left out stay in
        the replaced partitions. With ``if_exists="merge"``, this is :meth:`add`.
        """
        return self._land(source, query, keeps_all=self.if_exists == MERGE)

    def add(self, source: Source, query: Query) -> LoadResult:
        """Pull the rows, and rewrite their partitions with the old and the new rows."""
        return self._land(source, query, keeps_all=True)

    def _land(self, source: Source, query: Query, *, keeps_all: bool) -> LoadResult:
        layout = layout_of(query, datetime.now(UTC))
        # Report a missing package before the first request.
        self.file_format.open(BytesIO(), layout).discard()
        names = self._names(query)
        self.folder.prepare(names.values())
        pending = self._select(names)
        result = LoadResult(self.name, 0, 0, [], range_texts(query), [])
        if not pending:
            return result
        skipped: set[str] = set()
        with ExitStack() as stack:
            pulled = stack.enter_context(closing(source.stream_columns(_narrow(query, names, pending), skipped)))
            batches = keep_last(pulled, layout)
            may_skip = self.partition is not None and self.if_exists == REPLACE and query.get("on_invalid") == "warn"
            if keeps_all or may_skip:
                files = self._merge(batches, layout, pending, stack, None if keeps_all else skipped)
            else:
                files = self._encode(batches, layout, names, pending, stack)
            # Other tasks may have published files in the meantime.
            pending = self._select(pending)
            result = self._publish({each: files[each] for each in pending if each in files}, pending, result)
        if self.if_exists == REPLACE and not keeps_all:
            # A user who may write objects may not be allowed to delete, so remove only what exists.
            for name in self.folder.find([name for each, name in pending.items() if each not in files]):
                self.folder.remove(name)
        return result._replace(skipped=sorted(skipped))

    def cancel(self) -> None:
        """Do nothing: no server works for a load."""

    def _names(self, query: Query) -> Names:
        if self.partition is None:
            return {None: self.place.name}
        if self.if_exists == MERGE:
            bounds: Any = window(query)
            start, end = widen_range(self.partition, bounds[0], bounds[1], None)
            partitions = list_partitions(self.partition, start, end, open_end=True)
        else:
            partitions = partitions_of(query, self.partition, open_end=self.open_end)
        return {each: f"{each.name}/part-0{self.file_format.suffix}" for each in partitions}

    def _select(self, names: Names) -> Names:
        """Return the files to write.

        :raises OpenmarketsError: one exists, with ``if_exists="error"``.
        """
        if self.if_exists in (REPLACE, MERGE):
            return names
        existing = self.folder.find(names.values())
        if self.if_exists == ERROR and self.published is not None:
            # Files of an earlier try that was killed after it had published them.
            existing = {name for name in existing if not self._is_own(name, self.published)}
        if existing and self.if_exists == ERROR:
            first, *others = sorted(existing)
            more = f", and {len(others)} more" if others else ""
            raise OpenmarketsError(
                f"{self.folder.url(first)} already exists{more}, and if_exists is 'error'. Set if_exists to "
                "'replace' or 'skip', or use another destination."
            )
        if existing:
            log.info("Skipping %d of %d files, which already exist.", len(existing), len(names))
        return {each: name for each, name in names.items() if name not in existing}

    def _is_own(self, name: str, published: Published) -> bool:
        with explain_errors(f"Cannot read {self.folder.url(name)}"), self.folder.open(name) as file:
            return published.has(name, file)

    def _encode(
        self, batches: Iterable[Batch], layout: Layout, names: Names, pending: Names, stack: ExitStack
    ) -> dict[Partition | None, _File]:
        """Write all rows into temporary files, which exist until the stack closes."""
        if len(names) == 1:
            (only,) = names
            file = stack.enter_context(self.folder.stage())
            count = self._write(map(layout.values, batches), layout, file)
            return {only: _File(count, lambda: nullcontext(file))} if count or only is None else {}
        spool = self._spool(batches, layout, names, pending, stack)
        return self._write_all(names, spool.list_keys(), spool.batches, layout, stack)

    def _merge(
        self,
        batches: Iterable[Batch],
        layout: Layout,
        names: Names,
        stack: ExitStack,
        kept: Collection[str] | None,
    ) -> dict[Partition | None, _File]:
        """Write all rows, and those that stay, into temporary files.

        :param kept: the securities whose rows stay; it is complete when the batches are read. None means that all rows
            stay, and that partitions without new rows do not change.
        """
        spool = self._spool(batches, layout, names, names, stack)
        new = spool.list_keys()
        stored = self.folder.find(names.values()) if kept is None or kept else set()

        def stay(each: Partition) -> Iterator[Columns]:
            if names[each] in stored:
                with (
                    explain_errors(f"Cannot read {self.folder.url(names[each])}"),
                    self.folder.open(names[each]) as file,
                ):
                    rows = self.file_format.read(file, layout)
                    yield from select_kept(rows, spool.batches(each), layout, kept)

        more = [] if kept is None else [each for each in names if each is not None and names[each] in stored]
        return self._write_all(names, [*new, *more], lambda each: chain(spool.batches(each), stay(each)), layout, stack)

    def _spool(
        self, batches: Iterable[Batch], layout: Layout, names: Names, pending: Names, stack: ExitStack
    ) -> Spool[Partition]:
        """Sort all rows into partitions."""
        sorter = Sorter([each for each in names if each is not None], str(layout.time))
        spool: Spool[Partition] = Spool(stack.enter_context(self.folder.stage()), self.folder.scratch)
        for batch in _join(batches):
            for partition, those in sorter.sort(batch):
                if partition in pending:
                    spool.add(partition, layout.values(those))
        return spool

    def _write_all(
        self,
        names: Names,
        partitions: Iterable[Partition],
        rows_of: Callable[[Partition], Iterable[Columns]],
        layout: Layout,
        stack: ExitStack,
    ) -> dict[Partition | None, _File]:
        """Write the files of partitions; those without rows are left out.

        They wait in one temporary file, so that few files are open. The last partition comes first in it, because
        taking a file frees the space at the end. So take them in the order of the names.
        """
        problem = f"Cannot write rows to a temporary file in {self.folder.scratch}"
        shelf = stack.enter_context(self.folder.stage())
        wanted = set(partitions)

        @contextmanager
        def take(start: int, end: int) -> Iterator[IO[bytes]]:
            with self.folder.stage() as file:
                with explain_errors(problem):
                    _copy(shelf, start, end, file)
                    os.ftruncate(shelf.fileno(), start)
                yield file

        files: dict[Partition | None, _File] = {}
        with self.folder.stage() as draft:
            for each in reversed([each for each in names if each is not None and each in wanted]):
                draft.seek(0)
                draft.truncate()
                if count := self._write(rows_of(each), layout, draft):
                    with explain_errors(problem):
                        start = shelf.tell()
                        draft.seek(0)
                        copyfileobj(draft, shelf)
                        shelf.flush()
                    files[each] = _File(count, partial(take, start, shelf.tell()))
        return dict(reversed(files.items()))

    def _write(self, batches: Iterable[Columns], layout: Layout, file: IO[bytes]) -> int:
        """Write a file, and return the number of its rows."""
        explain = f"Cannot write rows to a temporary file in {self.folder.scratch}"
        count = 0
        with explain_errors(explain):
            writer = self.file_format.open(file, layout)
        try:
            for columns in batches:
                with explain_errors(explain):
                    writer.write(columns)
                count += len(columns[0])
            with explain_errors(explain):
                writer.close()
                file.flush()
        except BaseException:
            writer.discard()
            raise
        return count

    def _publish(self, files: Mapping[Partition | None, _File], names: Names, result: LoadResult) -> LoadResult:
        """Publish the files. With ``if_exists="error"`` it is all or none: the next try must not find any."""
        size, published = 0, []
        try:
            for each, waiting in files.items():
                with waiting.open() as file:
                    # Before the file appears, because the task may be killed right after it.
                    published.append(names[each])
                    if self.if_exists == ERROR and self.published is not None:
                        self.published.add(names[each], file)
                    size += self.folder.publish(file, names[each])
        except BaseException:
            for name in published if self.if_exists == ERROR else ():
                with suppress(OpenmarketsError):
                    self.folder.remove(name)
            raise
        rows = sum(file.rows for file in files.values())
        return result._replace(rows=rows, bytes=size, files=[self.folder.url(name) for name in published])


def _copy(source: IO[bytes], start: int, end: int, target: IO[bytes]) -> None:
    """Copy a part of a file.

    :raises OSError: the file is too short.
    """
    while start < end:
        part = os.pread(source.fileno(), min(_PART, end - start), start)
        if not part:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        target.write(part)
        start += len(part)


def _join(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Join small batches: sorting the rows of many securities at once is as fast as sorting those of one."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= SORTED_AT_ONCE:
            yield concat(waiting)
            waiting.clear()
    if waiting:
        yield concat(waiting)


def _narrow(query: Query, names: Names, pending: Names) -> Query:
    """Return the query from the first to the last pending partition."""
    # The pending days may not be whole weeks.
    if len(pending) == len(names) or query.get("frequency") == "Weekly":
        return query
    partitions = [each for each in pending if each is not None]
    return with_range(query, partitions[0].start, partitions[-1].end)


def check_partition(partition: str | None, query: Query) -> None:
    """Refuse a query whose rows cannot be partitioned.

    :raises OpenmarketsQueryError: its rows have no time, or its range never covers whole partitions.
    """
    if partition is None:
        return
    layout = layout_of(query)
    if layout.time is None:
        raise OpenmarketsQueryError(
            f"partition: rows of {layout.name} have no time to partition by. Remove partition, and put a "
            "template into the destination, such as s3://bucket/quotes/run={{ run_id }}/part-0.parquet."
        )
    if partition != "day" and query.get("frequency") == "Weekly":
        raise OpenmarketsQueryError(
            f"partition='{partition}': weekly bars need whole weeks, which a {partition} does not have. Use "
            "partition='day', or none."
        )


def partitions_of(query: Query, by: str, *, open_end: bool) -> list[Partition]:
    """Return the partitions that a rendered query covers.

    :raises OpenmarketsQueryError: see :func:`check_partition` and :func:`list_partitions`.
    """
    check_partition(by, query)
    start, end = window(query) or (None, None)
    return list_partitions(by, start, end, open_end=open_end)
