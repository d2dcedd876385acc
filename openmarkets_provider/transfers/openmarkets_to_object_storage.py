"""The transfer to files: rows of a query land as Parquet, CSV or JSON lines, in an object store or on a disk."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing, suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError, OpenmarketsQueryError
from openmarkets_provider.landing.destinations import LOCAL, STORES, Place, is_path, read_place, shown, static_url
from openmarkets_provider.landing.folders import Folder, LocalFolder, PartitionSpool, RemoteFolder
from openmarkets_provider.landing.formats import FileFormat, file_format
from openmarkets_provider.landing.incremental import limited_to
from openmarkets_provider.landing.landed import Landed, range_of
from openmarkets_provider.landing.layout import Layout, layout_of
from openmarkets_provider.landing.partitions import PARTITIONS, Partition, Sorter, covered, widened
from openmarkets_provider.query.arguments import align, is_literal
from openmarkets_provider.query.exchange_time import read_moment
from openmarkets_provider.query.query import resolve, window
from openmarkets_provider.transfers._transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import IO

    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook
    from openmarkets_provider.landing.incremental import Claim
    from openmarkets_provider.queries import Query

_OF_TASK = re.compile(r"\{[{%].*\b(ti|task|task_instance|map_index)\b", re.DOTALL)
"""A template that can differ from one mapped task to the next."""
IF_EXISTS = ("replace", "error", "skip")


class OpenmarketsToObjectStorageOperator(Transfer):
    """Lands the rows of a query as one file, or as one file for each exchange day, month or year.

    A file appears when it is complete, and replaces the one before it in one step: a task that fails or is killed
    leaves the old file, or none. With ``partition`` all files are encoded before the first one appears. Memory does
    not grow with the number of rows. A local file is written beside its destination under a hidden name, others in the
    temporary folder of the worker.

    A task that is killed takes back what it has uploaded of a file, where it is given the time for that. The parts that
    one left which was killed at once are not seen, but paid for: in S3 only a lifecycle rule of the bucket
    (``AbortIncompleteMultipartUpload``) removes them.

    It returns ``destination``, ``rows``, ``bytes``, ``files`` (URLs) and ``range`` to XCom, not the rows. ``rows``,
    ``bytes`` and ``files`` are what this task wrote, ``range`` is what it was asked for. Failures are treated
    as in :class:`~openmarkets_provider.operators.openmarkets.OpenmarketsOperator`.

    Guide: ``docs/etl.md``. What a message means: ``docs/errors.md``.

    :param query: what a function of :mod:`openmarkets_provider.queries` returned. Templated.
    :param destination: a URL such as ``s3://bucket/bars/{{ ds }}.parquet`` (``s3``, ``s3a``, ``gs``, ``gcs``, ``abfs``,
        ``abfss``; ``file``), or an absolute path; a text. With ``partition`` a folder. ``s3://conn@bucket/...`` names
        the connection, too. Templated. Mapped tasks need one each.
    :param format: ``parquet``, ``csv`` or ``jsonl``.
    :param conn_id: id of the object store's connection; None for the credentials that the worker has of its own.
        Templated.
    :param partition: ``day``, ``month`` or ``year``, by the time of the rows at the exchange (Australia/Sydney): files
        ``exchange_date=2026-11-20/part-0.parquet``, ``exchange_month=2026-11/...``, ``exchange_year=2026/...``. The
        query's range has to cover whole ones, 400 at most; those that it gave no rows for lose the file they had. A
        folder holds what one format, compression and query give.
    :param if_exists: of a file that is there: ``replace`` it, ``error``, or ``skip`` it. With ``skip`` and
        ``partition`` the span from the first missing file to the last one is pulled (of weekly bars the whole range),
        and the missing ones are written. So less may be written than the query gives. A partition without rows has no
        file, and is asked for again each time.
    :param compression: ``infer``: by the end of the file's name, snappy for Parquet. Or None, ``gzip``, ``zstd``,
        ``snappy``.
    :param incremental: pull only what is new since the last load of this destination (Airflow 3.3 or later). Needs
        ``partition``: each load replaces the partitions that it touches, from their beginning up to where the
        destination is loaded then. Sets ``max_active_tis_per_dag=1``: two such loads can't go on at once.
    :param overlap: a timedelta: how far before the end of the last load an incremental one begins, for data that came
        late; a day unless it is given.
    :param outlets: assets that the task updates; the destination, without a template, when none is given.
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: False fails the task, with the time in the message, when the server asks for a long rest.
    :raises ValueError: when the DAG is parsed: a literal argument is malformed, or does not go with another.
    """

    template_fields = (*Transfer.template_fields, "destination", "conn_id")
    one_query_each = True

    def __init__(
        self,
        *,
        query: Query,
        destination: str,
        format: str = "parquet",  # noqa: A002
        conn_id: str | None = None,
        partition: str | None = None,
        if_exists: str = "replace",
        compression: str | None = "infer",
        incremental: bool = False,
        **kwargs: Any,
    ) -> None:
        if partition not in (None, *PARTITIONS):
            raise ValueError(f"partition must be None or one of {', '.join(PARTITIONS)}, not {partition!r}.")
        if if_exists not in IF_EXISTS:
            raise ValueError(f"if_exists must be one of {', '.join(IF_EXISTS)}, not {if_exists!r}.")
        if incremental and (partition is None or if_exists != "replace"):
            raise ValueError(
                "incremental: each load replaces the partitions that have something new, and needs partition "
                "('day', 'month' or 'year') and if_exists='replace' for that. To land the range of each run in a file "
                "of its own, put a template into the destination instead, such as s3://bucket/bars/{{ ds }}.parquet."
            )
        is_fixed = is_literal(destination) or is_path(destination)
        if is_fixed:
            _place(destination, conn_id if is_literal(conn_id) else None, partition)
        is_named = isinstance(destination, str)
        _format(format, compression, destination if is_named and partition is None else None)
        super().__init__(
            query=query,
            asset_uri=static_url(destination) if is_named else None,
            incremental=incremental,
            **kwargs,
        )
        if isinstance(query, dict) and is_literal(query.get("endpoint")):
            _check_partition(partition, query)
            if partition is not None and not incremental and _is_known(query):
                _covered(partition, query)
        self.destination = destination
        self.format = format
        self.conn_id = conn_id
        self.partition = partition
        self.if_exists = if_exists
        self.compression = compression
        self._given = destination if is_named else ""

    def land(self, hook: OpenmarketsHook, query: Query, context: Context) -> Landed:
        """Land the rows as files."""
        self._check_mapping(context)
        place = self._place()
        file_kind = _format(self.format, self.compression, place.name if self.partition is None else None)
        layout = layout_of(query)
        # Finds out whether a package is missing.
        file_kind.open(BytesIO(), layout)
        partitions = self._partitions(query)
        where = self._folder(place if partitions else place.folder)
        names: dict[Partition | None, str] = {None: place.name}
        if partitions:
            names = {each: f"{each.name}/part-0{file_kind.suffix}" for each in partitions}
        where.prepare(names.values())
        wanted = self._wanted(where, names)
        published = _Published(0, 0, [])
        if wanted:
            published = self._pull(hook, query, _Target(where, file_kind, layout, partitions, wanted))
        return Landed(place.url, *published, range_of(query))

    def range_to_pull(self, query: Query, claimed: Claim, watermark: str | None) -> tuple[Any, Any]:
        """Return the range that begins with a partition, and ends with one or where the destination is loaded then."""
        given = resolve(query)
        reached = None if watermark is None else align(given, read_moment(watermark))
        return widened(str(self.partition), claimed.start, claimed.end, reached)

    def dataset(self) -> tuple[str, str, str]:
        """Return the destination's URL, and its namespace and name for OpenLineage."""
        place = self._place()
        return place.url, *place.lineage

    def is_there(self) -> bool:
        """Tell whether the folder, which an incremental load lands in, holds anything."""
        return self._folder(self._place()).is_there()

    def destination_text(self) -> str:
        """Return the destination's URL."""
        return self._place().url

    def form(self) -> str:
        """Return how rows are divided into files, and of what format they are."""
        return f"{self.partition} {self.format} {self.compression}"

    def _place(self) -> Place:
        return _place(self.destination, self.conn_id or None, self.partition)

    def _folder(self, place: Place) -> Folder:
        if place.scheme == LOCAL:
            return LocalFolder(place)
        from airflow.providers.common.compat.sdk import BaseHook, ObjectStoragePath

        conn_id = self.conn_id or place.conn_id
        if conn_id is not None:
            # Amazon's provider takes one that is missing for none.
            BaseHook.get_connection(conn_id)
        try:
            return RemoteFolder(place, ObjectStoragePath(f"{place.scheme}://{place.bucket}", conn_id=conn_id).fs)
        except (ImportError, ValueError) as error:
            package = STORES[place.scheme].package
            # The text of a missing package names another one than ours, or none.
            reason = "a package is missing" if isinstance(error, ImportError) else str(error).rstrip(".")
            raise OpenmarketsConfigurationError(
                f"destination: {place.scheme}:// can't be opened: {reason}. Is it installed? pip install '{package}'"
            ) from error

    def _partitions(self, query: Query) -> list[Partition]:
        if self.partition is None:
            return []
        _check_partition(self.partition, query)
        return _covered(self.partition, query, unfinished=self.incremental)

    def _wanted(self, where: Folder, names: Mapping[Partition | None, str]) -> dict[Partition | None, str]:
        """Return what is to be written, by what is there."""
        if self.if_exists == "replace":
            return dict(names)
        existing = where.existing(names.values())
        if existing and self.if_exists == "error":
            first, *others = sorted(existing)
            more = f", and {len(others)} more" if others else ""
            raise OpenmarketsError(f"{where.url(first)} is there already{more}, and if_exists is 'error'.")
        if existing:
            self.log.info("%d of %d files are there already, and are skipped.", len(existing), len(names))
        return {each: name for each, name in names.items() if name not in existing}

    def _pull(self, hook: OpenmarketsHook, query: Query, target: _Target) -> _Published:
        # From the first missing day to the last one need not be whole weeks.
        if len(target.names) < len(target.partitions) and query.get("frequency") != "Weekly":
            missing = [each for each in target.partitions if each in target.names]
            query = limited_to(query, missing[0].start, missing[-1].end)
        with ExitStack() as stack:
            batches: Any = hook.stream(query)
            stack.enter_context(closing(batches))
            files = target.encode(batches, stack)
            names = self._wanted(target.where, target.names)
            published = _publish(target.where, files, names, take_back=self.if_exists == "error")
        if self.if_exists == "replace":
            # Only what is there: who may write need not be allowed to delete.
            for name in target.where.existing([name for each, name in names.items() if each not in files]):
                target.where.remove(name)
        return published

    def _check_mapping(self, context: Context) -> None:
        """Refuse mapped tasks that would overwrite each other's file."""
        index = context["ti"].map_index
        if _OF_TASK.search(self._given) or index is None or index < 0:
            return
        # One in a mapped group is not mapped itself.
        partial = getattr(context["dag"].get_task(self.task_id), "partial_kwargs", None)
        if partial is None or "destination" in partial:
            raise OpenmarketsConfigurationError(
                f"destination: all mapped tasks would write {shown(self._given)}, and the last one would be left. Put "
                "something of each into it, such as {{ ti.map_index }}, or map it with the query: "
                ".expand_kwargs([{'query': ..., 'destination': ...}, ...])."
            )


class _Published(NamedTuple):
    rows: int
    bytes: int
    files: list[str]


class _Target(NamedTuple):
    """Where rows go, and as what.

    :ivar partitions: all that the query covers; empty for one file.
    :ivar names: of the files that are wanted, by partition; None is the only one's.
    """

    where: Folder
    kind: FileFormat
    layout: Layout
    partitions: list[Partition]
    names: Mapping[Partition | None, str]

    def encode(self, batches: Iterable[list[Any]], stack: ExitStack) -> dict[Partition | None, tuple[IO[bytes], int]]:
        """Encode all rows into temporary files, which live as long as the stack.

        :return: the files and their numbers of rows; none for a partition without rows.
        """
        if len(self.names) == 1 and len(self.partitions) < 2:
            ((only, _),) = self.names.items()
            file, rows = self._encode_one(batches, stack)
            return {only: (file, rows)} if rows or only is None else {}
        spool: PartitionSpool[Partition] = PartitionSpool(stack.enter_context(self.where.stage()))
        sorter = Sorter(self.partitions, str(self.layout.time))
        for batch in batches:
            for partition, rows_of_it in sorter.sort(batch):
                if partition in self.names:
                    with self._told():
                        spool.add(partition, rows_of_it)
        return {each: self._encode_one(self._taken(spool, each), stack) for each in spool.waiting()}

    def _taken(self, spool: PartitionSpool[Partition], key: Partition) -> Iterator[list[Any]]:
        with self._told():
            yield from spool.take(key)

    def _encode_one(self, batches: Iterable[list[Any]], stack: ExitStack) -> tuple[IO[bytes], int]:
        file = stack.enter_context(self.where.stage())
        count = 0
        with self._told():
            writer = self.kind.open(file, self.layout)
        for rows in batches:
            with self._told():
                writer.write(rows)
            count += len(rows)
        with self._told():
            writer.close()
            file.flush()
        return file, count

    def _told(self) -> Any:
        return self.where.told(f"Rows can't be written into a temporary file in {self.where.scratch}")


def _publish(
    where: Folder,
    files: Mapping[Partition | None, tuple[IO[bytes], int]],
    names: Mapping[Partition | None, str],
    *,
    take_back: bool,
) -> _Published:
    """Put files in place.

    :param take_back: when one can't be, remove those that are, so that the next try does not find them in its way.
    """
    rows, size, done = 0, 0, []
    try:
        for each, name in names.items():
            if each in files:
                file, count = files[each]
                # Before it is there: a task can be killed as it appears.
                done.append(name)
                size += where.publish(file, name)
                rows += count
    except BaseException:
        for name in done if take_back else ():
            with suppress(OpenmarketsError):
                where.remove(name)
        raise
    return _Published(rows, size, [where.url(name) for name in done])


def _place(destination: Any, conn_id: str | None, partition: str | None) -> Place:
    place = read_place(destination, is_folder=partition is not None)
    if place.conn_id is not None and conn_id not in (None, place.conn_id):
        raise OpenmarketsConfigurationError(
            f"conn_id: {conn_id!r} differs from the connection in the destination, {place.conn_id!r}; give one of them."
        )
    return place


def _format(name: str, compression: str | None, destination: str | None) -> FileFormat:
    try:
        return file_format(name, compression, destination)
    except ValueError as error:
        # One that no repetition mends.
        raise OpenmarketsConfigurationError(str(error)) from None


def _check_partition(partition: str | None, query: Query) -> None:
    if partition is None:
        return
    layout = layout_of(query)
    if layout.time is None:
        raise OpenmarketsQueryError(
            f"partition: rows of {layout.name} have no time that a range selects them by (nor have raw records). Put "
            "what tells the files apart into the destination, such as s3://bucket/quotes/run={{ run_id }}/"
            "part-0.parquet, and leave partition out."
        )
    if partition != "day" and query.get("frequency") == "Weekly":
        raise OpenmarketsQueryError(
            f"partition='{partition}': a range of weekly bars holds whole weeks, and a {partition} does not. Take "
            "partition='day', or none."
        )


def _is_known(query: Query) -> bool:
    """Tell whether all of a query is known while the DAG is parsed."""
    return all(
        is_literal(item) for value in query.values() for item in (value if isinstance(value, list | tuple) else [value])
    )


def _covered(partition: str, query: Query, *, unfinished: bool = False) -> list[Partition]:
    start, end = window(query) or (None, None)
    return covered(partition, start, end, unfinished=unfinished)
