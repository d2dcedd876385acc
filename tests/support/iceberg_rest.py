"""A REST catalog of Iceberg, as far as a load needs one: pyiceberg's catalog in SQLite behind HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.table import CommitTableRequest, Table

if TYPE_CHECKING:
    # It needs SQLAlchemy 2.
    from pyiceberg.catalog.sql import SqlCatalog

TOKEN = "the-token-of-the-catalog"
_STATUS = {NoSuchTableError: 404, NamespaceAlreadyExistsError: 409, CommitFailedException: 409}


class RestCatalog:
    """Answers requests.

    :ivar requests: method and path of each.
    """

    def __init__(self, catalog: SqlCatalog) -> None:
        self._catalog = catalog
        self.requests: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        _, *parts = path.strip("/").split("/")
        if parts == ["oauth", "tokens"]:
            return 200, {"access_token": TOKEN, "token_type": "bearer", "expires_in": 3600}
        if authorization != f"Bearer {TOKEN}":
            return 401, _error("NotAuthorizedException", 401)
        try:
            return 200, self._answer(method, parts, body)
        except tuple(_STATUS) as error:
            return _STATUS[type(error)], _error(type(error).__name__, _STATUS[type(error)])

    def _answer(self, method: str, parts: list[str], body: bytes) -> Any:
        match method, parts:
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                namespace = json.loads(body)["namespace"]
                self._catalog.create_namespace(tuple(namespace))
                return {"namespace": namespace, "properties": {}}
            case "POST", ["namespaces", namespace, "tables"]:
                optional = dict.fromkeys(("location", "partition-spec", "write-order"))
                wanted = CreateTableRequest.model_validate(optional | json.loads(body))
                return _loaded(
                    self._catalog.create_table(
                        (namespace, wanted.name), wanted.table_schema, partition_spec=wanted.partition_spec
                    )
                )
            case "GET", ["namespaces", namespace, "tables", table]:
                return _loaded(self._catalog.load_table((namespace, table)))
            case "POST", ["namespaces", namespace, "tables", table]:
                commit = CommitTableRequest.model_validate_json(body)
                loaded = self._catalog.load_table((namespace, table))
                self._catalog.commit_table(loaded, commit.requirements, commit.updates)
                return _loaded(self._catalog.load_table((namespace, table)))
        raise NoSuchTableError(f"{method} {parts}")


@contextmanager
def rest_catalog(catalog: SqlCatalog) -> Iterator[RestCatalog]:
    """Serve a catalog on a free port of loopback."""
    served = RestCatalog(catalog)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, reply = served.answer(
                self.command, self.path.partition("?")[0], body, self.headers.get("Authorization")
            )
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def _loaded(table: Table) -> dict[str, Any]:
    return {
        "metadata-location": table.metadata_location,
        "metadata": json.loads(table.metadata.model_dump_json()),
        "config": {},
    }


def _error(kind: str, status: int) -> dict[str, Any]:
    return {"error": {"message": f"The message of {kind}.", "type": kind, "code": status}}
