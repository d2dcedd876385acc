"""The meaning of errors of disks and object stores: what failed, and whether a retry can succeed."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from openmarkets_provider.exceptions import OpenmarketsConfigurationError, OpenmarketsError

MAX_REASON = 300
"""Most characters of an object store's own message that a message quotes."""
_PERMANENT = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, ValueError)
_PERMANENT_NUMBERS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV)
# By name, because botocore may not be installed.
_PERMANENT_NAMES = ("ParamValidationError", "NoCredentialsError", "PartialCredentialsError")
# The last one is transient: the service that issues credentials may be briefly unavailable.
_CREDENTIAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")


@contextmanager
def explain_errors(problem: str, *, sent: bool = False) -> Iterator[None]:
    """Turn any exception into an :class:`OpenmarketsError` whose message begins with the problem.

    :param problem: what failed, such as ``Cannot write /data/x.csv``.
    :param sent: the API request had been sent by then.
    """
    try:
        yield
    except OpenmarketsError:
        raise
    except Exception as error:
        name = type(error).__name__
        is_permanent = isinstance(error, _PERMANENT) or name in _PERMANENT_NAMES
        # botocore lists all valid values in hundreds of lines.
        reason = re.sub(r"\s+", " ", str(error))
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
        hint = " Set credentials in a connection (conn_id) or in the worker's environment."
        raise OpenmarketsError(
            f"{problem}: {name}: {reason}{hint if name in _CREDENTIAL_NAMES else ''}",
            transient=not (is_permanent or getattr(error, "errno", None) in _PERMANENT_NUMBERS),
            sent=sent,
        ) from error


def no_table(name: str) -> OpenmarketsConfigurationError:
    """Return the error for reading a table that does not exist."""
    return OpenmarketsConfigurationError(f"Table {name} does not exist. Correct the name, or load the table first.")
