"""Where files are landed: turn a destination into a place in an object store or on a disk. Pure."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from openmarkets_provider.exceptions import OpenmarketsConfigurationError

LOCAL = "file"
CHUNK = 8 << 20
"""Bytes that are sent at a time. They are in memory, and a killed task waits until they are sent."""
_URL = re.compile(r"(?P<scheme>[a-zA-Z][\w.+-]*)://(?P<rest>.*)", re.DOTALL)
_TEMPLATE = re.compile(r"\{[{%#]")
# It also matches mistyped URLs. An absolute path may have an @.
_AUTHORITY = re.compile(r"^[^/]*?(?::|//)/*|:/+")


class ObjectStore(NamedTuple):
    """An object store in which an object appears when its upload has ended, or not at all.

    :ivar package: the package that has to be installed.
    :ivar lineage: its scheme in OpenLineage.
    :ivar options: arguments of its file system's ``put_file``.
    :ivar allowed: arguments that a DAG author may add. They are listed because s3fs ignores unknown names.
    :ivar content_type: the option that sets the content type: its name, and the name of the property, if it has
        several.
    """

    package: str
    lineage: str
    options: Mapping[str, Any]
    allowed: tuple[str, ...]
    content_type: tuple[str, ...]


# According to the source of their file systems.
# s3fs 2024.12 to 2026.9: one PUT below two chunks, else a multi-part upload, which it aborts on failure (older versions
# do not). One part at a time, because a part that is still being sent would survive the abort.
_S3 = ObjectStore(
    "airflow-provider-openmarkets[s3]",
    "s3",
    {"chunksize": CHUNK, "max_concurrency": 1},
    # Options that both kinds of upload accept, and that need nothing for reading the object.
    (
        "ACL",
        "BucketKeyEnabled",
        "CacheControl",
        "ContentDisposition",
        "ContentLanguage",
        "ContentType",
        "ExpectedBucketOwner",
        "Metadata",
        "ObjectLockLegalHoldStatus",
        "ObjectLockMode",
        "ObjectLockRetainUntilDate",
        "SSEKMSEncryptionContext",
        "SSEKMSKeyId",
        "ServerSideEncryption",
        "StorageClass",
        "Tagging",
    ),
    ("ContentType",),
)
# gcsfs 2026.10: one request below 5 MB, else a resumable upload, which it deletes on failure. (In a zonal bucket, an
# object is visible while it grows.)
_GCS = ObjectStore(
    "apache-airflow-providers-google",
    "gs",
    {"chunksize": CHUNK},
    ("content_type", "fixed_key_metadata", "metadata"),
    ("content_type",),
)
# adlfs 2023.10 to 2026.8: one request, or blocks that take effect when their list is committed, and expire after a week
# otherwise. Older versions need an option to overwrite.
_AZURE = ObjectStore(
    "apache-airflow-providers-microsoft-azure",
    "abfss",
    {"overwrite": True},
    ("content_settings", "encryption_scope", "tags"),
    ("content_settings", "content_type"),
)
OBJECT_STORES: Mapping[str, ObjectStore] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "abfs": _AZURE,
    "abfss": _AZURE,
}
"""Object stores by the scheme of their URLs."""


def upload_options(scheme: str, content_type: str, added: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``put_file`` for a store.

    :param content_type: of the file; ``added`` may replace it.
    :param added: options of the DAG author, checked by :func:`check_object_options`.
    """
    store = OBJECT_STORES[scheme]
    name, *part = store.content_type
    if part:
        added = {**added, name: {part[0]: content_type, **added.get(name, {})}}
    return {name: content_type, **added, **store.options}


def check_object_options(options: Any, scheme: str | None) -> None:
    """Check the options that a DAG author adds to an upload.

    :param scheme: of the destination; None if it is not known yet.
    :raises OpenmarketsConfigurationError: they are not a mapping, or the store's file system does not have an option.
    """
    if not isinstance(options, Mapping):
        raise OpenmarketsConfigurationError(f"object_options must be a dict, not {type(options).__name__}.")
    if not options or scheme is None:
        return
    if scheme == LOCAL:
        raise OpenmarketsConfigurationError("object_options are for object stores only; remove them.")
    allowed = OBJECT_STORES[scheme].allowed
    if unknown := sorted(set(map(str, options)) - set(allowed)):
        raise OpenmarketsConfigurationError(
            f"object_options: {', '.join(unknown):.200} can't be set for {scheme}://; use only {', '.join(allowed)}."
        )


class Place(NamedTuple):
    """A file or a folder; in a bucket, an object or a prefix of object names.

    :ivar scheme: ``file``, or one of :data:`OBJECT_STORES`.
    :ivar bucket: empty for a local file.
    :ivar path: within the bucket, without a slash at the beginning and the end; absolute for a local file.
    :ivar conn_id: the connection id in the URL, if there is one.
    """

    scheme: str
    bucket: str
    path: str
    conn_id: str | None = None

    @property
    def url(self) -> str:
        """The URL, without the connection's id."""
        return f"{self.scheme}://{posixpath.join(self.bucket, self.path)}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def folder(self) -> Place:
        """The folder that it is in."""
        return self._replace(path=posixpath.dirname(self.path))

    @property
    def lineage(self) -> tuple[str, str]:
        """Namespace and name for OpenLineage."""
        if self.scheme == LOCAL:
            return LOCAL, self.path
        return f"{OBJECT_STORES[self.scheme].lineage}://{self.bucket}", self.path or "/"


def is_path(destination: Any) -> bool:
    """Tell whether it is a path object, such as pathlib's or Airflow's ObjectStoragePath."""
    # Airflow's is not an os.PathLike. It has a method resolve(), like the result of an upstream task.
    return isinstance(destination, os.PathLike) or hasattr(destination, "joinpath")


def redact(destination: Any) -> str:
    """Return a destination for a message, without user, password and query, which may be secrets."""
    text = destination if isinstance(destination, str) else repr(destination)
    if start := _AUTHORITY.search(text):
        rest, mark, query = text[start.end() :].partition("?")
        _, at, host = rest.rpartition("@")
        # A password may contain a question mark.
        rest = "***" if "@" in query else f"***{at}{host}" if at else rest
        text = f"{text[: start.end()]}{rest}{mark and '?***'}"
    return repr(text) if isinstance(destination, str) else text


def read_place(destination: Any, *, is_folder: bool) -> Place:
    """Read a destination.

    :param destination: rendered: a URL, or an absolute path.
    :raises OpenmarketsConfigurationError: it is neither, or its store is not supported.
    """
    if is_path(destination):
        raise _bad(destination, f"is a {type(destination).__name__}, not a string; pass str(path).")
    if not isinstance(destination, str):
        raise _bad(destination, f"is not a string. {_EXAMPLES}")
    if destination.strip() in ("", "None"):
        raise _bad(destination, f"is empty; {_RENDERED} {_EXAMPLES}")
    if destination != destination.strip() or not destination.isprintable():
        raise _bad(destination, f"starts or ends with a space, or has a control character; {_RENDERED}")
    match = _URL.fullmatch(destination)
    if match is None or match["scheme"].lower() in (LOCAL, "local"):
        return _read_path(destination, match["rest"] if match else destination, is_folder)
    scheme = match["scheme"].lower()
    if scheme not in OBJECT_STORES:
        raise _bad(destination, f"is not in a supported store; use {LOCAL}, {', '.join(OBJECT_STORES)}.")
    if "?" in destination or "#" in destination:
        raise _bad(destination, "has '?' or '#', which mean something else in a URL; use another name.")
    authority, _, path = match["rest"].partition("/")
    conn_id, _, bucket = authority.rpartition("@")
    if ":" in authority or "@" in path:
        # Not quoted, because it may be a password.
        raise OpenmarketsConfigurationError(
            "destination: remove the credentials from the URL; set conn_id to a connection."
        )
    if not bucket:
        raise _bad(destination, f"has no bucket; {_RENDERED} {_EXAMPLES}")
    if OBJECT_STORES[scheme] is _AZURE and any(host in bucket.lower() for host in _AZURE_HOSTS):
        # Azure's own URLs have the container before the @.
        raise _bad(
            destination,
            f"names a storage account; write {scheme}://container/path, and set conn_id to the connection of the "
            "account.",
        )
    if is_folder:
        path = path.removesuffix("/")
    if not path and not is_folder:
        raise _bad(destination, "has no file name; add one, such as s3://bucket/bars.parquet, or set partition.")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise _bad(destination, f"has an empty part, '.' or '..' in its path; {_RENDERED}")
    return Place(scheme, bucket, path, conn_id or None)


def static_url(destination: str) -> str | None:
    """Return the literal part of a destination as a URL.

    :return: the whole URL if it has no template, else the folder before the first one, or None.
    """
    literal, *templated = _TEMPLATE.split(destination, maxsplit=1)
    if templated:
        literal = literal.rpartition("/")[0]
    try:
        place = read_place(literal, is_folder=True)
    except OpenmarketsConfigurationError:
        return None
    return None if templated and place.path == "/" else place.url


_AZURE_HOSTS = (".dfs.", ".blob.")
_RENDERED = "check the rendered template."
_EXAMPLES = "Write a URL such as s3://bucket/bars.parquet, or an absolute path such as /data/bars.parquet."


def _bad(destination: Any, problem: str) -> OpenmarketsConfigurationError:
    return OpenmarketsConfigurationError(f"destination: {redact(destination):.200} {problem}")


def _read_path(destination: str, path: str, is_folder: bool) -> Place:
    if not path.startswith("/"):
        raise _bad(destination, f"is not absolute. {_EXAMPLES}")
    if "//" in path:
        # A template rendered an empty part: the rest would land in the folder above.
        raise _bad(destination, f"has an empty part in its path; {_RENDERED}")
    if path.endswith("/") and not is_folder:
        raise _bad(destination, "is a folder; add a file name, or set partition.")
    return Place(LOCAL, "", posixpath.normpath(path))
