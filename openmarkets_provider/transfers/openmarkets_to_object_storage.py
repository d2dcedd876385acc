"""The transfer to Parquet, CSV or JSON lines files, in an object store or on a disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsQueryError
from openmarkets_provider.landing.file_destination import (
    IF_EXISTS,
    MERGE,
    REPLACE,
    FileDestination,
    check_partition,
    partitions_of,
)
from openmarkets_provider.landing.folders import Folder, LocalFolder, RemoteFolder
from openmarkets_provider.landing.formats import FileFormat, choose_format
from openmarkets_provider.landing.partitions import PARTITIONS
from openmarkets_provider.landing.places import (
    LOCAL,
    Place,
    check_object_options,
    is_path,
    read_place,
    redact,
    static_url,
    upload_options,
)
from openmarkets_provider.landing.published import Published
from openmarkets_provider.query.arguments import is_literal
from openmarkets_provider.transfers._lineage import Dataset
from openmarkets_provider.transfers._mapping import list_siblings
from openmarkets_provider.transfers._stores import open_file_system
from openmarkets_provider.transfers._transfer import Transfer, instance_id, resume_folder

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from openmarkets_provider.queries import Query

_OF_TASK = re.compile(r"\{[{%].*\b(ti|task|task_instance|map_index)\b", re.DOTALL)
"""A template whose value can differ between mapped tasks."""


class OpenmarketsToObjectStorageOperator(Transfer):
    """Lands the rows of a query as one file, or as one file for each exchange day, month or year.

    Files are replaced atomically when they are complete: a task that fails or is killed leaves the old file, or none.
    With ``partition``, all files are encoded before the first one is replaced. Memory use does not grow with the number
    of rows. Temporary files are next to a local destination, with hidden names; for object stores they are in the
    temporary folder of the worker.

    A task that is retried, resumed or cleared continues where its last attempt ended (``[openmarkets] resume_folder``).

    A killed task aborts its upload if there is time. Otherwise the parts of the upload are invisible, but cost money:
    in S3 only a lifecycle rule of the bucket (``AbortIncompleteMultipartUpload``) removes them.

    Returns ``destination``, ``rows``, ``bytes``, ``files`` (URLs), ``range`` and ``skipped`` (securities) as XCom, not
    the rows. ``rows``, ``bytes`` and ``files`` are those that this task wrote; ``range`` is the query's. Failures are
    handled as in :class:`~openmarkets_provider.operators.openmarkets.OpenmarketsOperator`.

    :param query: a query from :mod:`openmarkets_provider.queries`. Templated.
    :param destination: a URL such as ``s3://bucket/bars/{{ ds }}.parquet`` (``s3``, ``s3a``, ``gs``, ``gcs``, ``abfs``,
        ``abfss``; ``file``) or an absolute path, as text. With ``partition``, a folder. ``s3://conn@bucket/...``
        includes the connection. Templated. Mapped tasks need different destinations, or ``partition`` and ranges that
        do not overlap.
    :param format: ``parquet``, ``csv`` or ``jsonl``.
    :param conn_id: id of the object store's connection; None uses the worker's credentials. Templated.
    :param partition: ``day``, ``month`` or ``year``, by the rows' exchange time (Australia/Sydney): files
        ``exchange_date=2026-11-20/part-0.parquet``, ``exchange_month=2026-11/...``, ``exchange_year=2026/...``. The
        query's range must cover whole partitions. The file of a partition without rows is deleted. With
        ``if_exists="replace"``, a new file keeps the rows of securities that ``on_invalid="warn"`` skipped. A folder
        has files of one format, compression and query.
    :param if_exists: what to do with an existing file: ``replace`` it, ``merge``, ``error``, or ``skip`` it. ``merge``
        needs ``partition``: the file keeps its rows, except those with the key of a new row. A range may then start and
        end within a partition. ``merge`` sets ``max_active_tis_per_dag=1``; mapped tasks that merge into the same
        partitions need it in ``.partial()``. With ``skip`` and ``partition``, the task pulls from the first missing
        partition to the last one (weekly bars: the whole range), and writes the missing files. A partition without rows
        has no file, so it is pulled again each time. With ``error``, a task instance that runs again replaces its own
        files.
    :param compression: None, ``gzip``, ``zstd``, ``snappy`` (Parquet only), or ``infer``: by the extension of the file,
        snappy for Parquet.
    :param object_options: properties of each object in the store: encryption, tags, storage class, metadata, another
        content type. The names are those of the store's file system, such as
        ``{"ServerSideEncryption": "aws:kms", "Tagging": "team=data"}`` for S3. Templated.
    :param incremental: load only new data since the last load of this destination. Needs Airflow 3.3 and ``partition``:
        each load replaces the partitions that it changes, from their start up to the new end of the loaded data. Sets
        ``max_active_tis_per_dag=1``, because two such loads can't run concurrently.
    :param overlap: a timedelta: how far before the end of the last load an incremental load starts, for late data
        (default: one day).
    :param full_refresh: with ``incremental``: load the whole range of the query. A bool, or a template such as
        ``{{ params.full_refresh }}``.
    :param emit_partitions: emit one asset event for each session in the query's range, with its date as partition key
        (``2026-04-02``), instead of one event. Needs Airflow 3.3; not with ``incremental``.
    :param outlets: assets that the task updates (default: the destination up to its first template).
    :param openmarkets_conn_id: id of a connection of type ``openmarkets``. Templated.
    :param deferrable: defer the task if the server asks for a long wait; with False, Airflow's ``retries`` apply
        (default: Airflow's ``[operators] default_deferrable``).
    :raises ValueError: when the DAG is parsed, if a literal argument is malformed or conflicts with another.
    """

    template_fields = (*Transfer.template_fields, "destination", "conn_id", "object_options")
    is_exclusive = FileDestination.is_exclusive

    def __init__(
        self,
        *,
        query: Query,
        destination: str,
        format: str = "parquet",  # noqa: A002
        conn_id: str | None = None,
        partition: str | None = None,
        if_exists: str = REPLACE,
        compression: str | None = "infer",
        object_options: Mapping[str, Any] | None = None,
        incremental: bool = False,
        **kwargs: Any,
    ) -> None:
        if partition not in (None, *PARTITIONS):
            raise ValueError(f"partition must be None or one of {', '.join(PARTITIONS)}, not {partition!r}.")
        if if_exists not in IF_EXISTS:
            raise ValueError(f"if_exists must be one of {', '.join(IF_EXISTS)}, not {if_exists!r}.")
        if incremental and (partition is None or if_exists != REPLACE):
            raise ValueError(
                "incremental needs partition ('day', 'month' or 'year') and if_exists='replace'. To land the "
                "range of each run in its own file instead, put a template into the destination, such as "
                "s3://bucket/bars/{{ ds }}.parquet."
            )
        if if_exists == MERGE:
            if partition is None:
                raise ValueError("if_exists='merge' needs partition ('day', 'month' or 'year').")
            kwargs.setdefault("max_active_tis_per_dag", 1)
        scheme = None
        if is_literal(destination) or is_path(destination):
            scheme = _read_place(destination, conn_id if is_literal(conn_id) else None, partition).scheme
        if is_literal(object_options):
            check_object_options(object_options or {}, scheme)
        is_text = isinstance(destination, str)
        choose_format(format, compression, destination if is_text and partition is None else None)
        super().__init__(
            query=query,
            asset_uri=static_url(destination) if is_text else None,
            incremental=incremental,
            **kwargs,
        )
        if isinstance(query, dict) and is_literal(query.get("endpoint")):
            check_partition(partition, query)
            is_whole = not incremental and if_exists != MERGE
            if partition is not None and is_whole and _is_literal_throughout(query):
                partitions_of(query, partition, open_end=False)
        self.destination = destination
        self.format = format
        self.conn_id = conn_id
        self.partition = partition
        self.if_exists = if_exists
        self.compression = compression
        self.object_options = object_options
        # The argument itself is replaced when it is rendered.
        self._template = destination if is_text else ""

    @contextmanager
    def open_destination(self, context: Context) -> Iterator[tuple[FileDestination, Callable[[], Dataset]]]:
        """Return a context with the file or folder."""
        self._check_mapping(context)
        place = _read_place(self.destination, self.conn_id or None, self.partition)
        file_format = choose_format(self.format, self.compression, place.name if self.partition is None else None)
        folder = self._open_folder(place.folder if self.partition is None else place, file_format)
        destination = FileDestination(
            place,
            folder,
            file_format,
            self.partition,
            self.if_exists,
            open_end=self.incremental,
            published=Published(resume_folder(), f"{instance_id(context)} {place.url}"),
        )
        yield destination, lambda: Dataset(place.url, *place.lineage)

    def _open_folder(self, place: Place, file_format: FileFormat) -> Folder:
        added = self.object_options or {}
        check_object_options(added, place.scheme)
        if place.scheme == LOCAL:
            return LocalFolder(place)
        fs = open_file_system(place, self.conn_id)
        return RemoteFolder(place, fs, upload_options(place.scheme, file_format.content_type, added))

    def _check_mapping(self, context: Context) -> None:
        """Refuse mapped tasks that would overwrite each other's files."""
        index = context["ti"].map_index
        if _OF_TASK.search(self._template) or index is None or index < 0:
            return
        task: Any = context["dag"].get_task(self.task_id)
        if self.if_exists == MERGE:
            # A mapped task has the limit from its .partial().
            if task.max_active_tis_per_dag != 1:
                raise OpenmarketsConfigurationError(
                    "if_exists='merge': mapped tasks could change the same file at once. Set "
                    "max_active_tis_per_dag=1 in .partial()."
                )
            return
        # A task in a mapped task group is not mapped itself.
        if not hasattr(task, "expand_input"):
            raise self._shared_file()
        url = _read_place(self.destination, self.conn_id or None, self.partition).url
        own = self._names(self.query)
        for number, arguments in list_siblings(task, context):
            both = own & self._names_of_sibling(arguments, url, context)
            if both and None in both:
                raise self._shared_file()
            if both:
                raise OpenmarketsConfigurationError(
                    f"destination: mapped task {number} would overwrite {min(map(str, both))} of {url}. Give "
                    "each task its own destination, or ranges that do not overlap."
                )

    def _names_of_sibling(self, arguments: Mapping[str, Any], url: str, context: Context) -> set[str | None]:
        """Return the partitions that another mapped task writes at the same destination."""
        if _OF_TASK.search(str(arguments["destination"])):
            return set()
        try:
            destination, query = (self.render_template(arguments[name], context) for name in ("destination", "query"))
            is_same = _read_place(destination, None, self.partition).url == url
            return self._names(query) if is_same else set()
        except (OpenmarketsConfigurationError, OpenmarketsQueryError):
            # The other task will fail.
            return set()

    def _names(self, query: Query) -> set[str | None]:
        """Return the partitions that a query writes; None stands for the only file, or for all partitions."""
        if self.partition is None or self.incremental:
            return {None}
        return {each.name for each in partitions_of(query, self.partition, open_end=False)}

    def _shared_file(self) -> OpenmarketsConfigurationError:
        return OpenmarketsConfigurationError(
            f"destination: mapped tasks would overwrite each other's {redact(self._template)}. "
            "Add {{ ti.map_index }} to it, or map it together with the query: "
            ".expand_kwargs([{'query': ..., 'destination': ...}, ...])."
        )


def _read_place(destination: Any, conn_id: str | None, partition: str | None) -> Place:
    place = read_place(destination, is_folder=partition is not None)
    if place.conn_id is not None and conn_id not in (None, place.conn_id):
        raise OpenmarketsConfigurationError(
            f"conn_id: {conn_id!r} differs from the connection in the destination, {place.conn_id!r}; remove one "
            "of them."
        )
    return place


def _is_literal_throughout(query: Query) -> bool:
    return all(
        is_literal(item) for value in query.values() for item in (value if isinstance(value, list | tuple) else [value])
    )
