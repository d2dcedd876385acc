"""Emulators of Google Cloud Storage and of Azure's Blob Storage, each a separate process: see ``nox -s stores``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.support.s3_server import closed_port

WAIT = 60.0
CONTAINER = "lake"
# Azurite's own, which its documentation names.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Gcs:
    """Google Cloud Storage."""

    scheme = "gs"
    options: dict[str, Any] = {"metadata": {"team": "data"}, "fixed_key_metadata": {"cache_control": "no-cache"}}  # noqa: RUF012

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    @property
    def connection_json(self) -> str:
        extra = {"is_anonymous": True, "project": "project", "gcs.endpoint": self._url}
        return json.dumps({"conn_type": "google_cloud_platform", "extra": extra})

    @property
    def fs(self) -> Any:
        from gcsfs import GCSFileSystem

        return GCSFileSystem(token="anon", endpoint_url=self._url, skip_instance_cache=True)

    def properties(self, path: str) -> dict[str, Any]:
        """Return content type, tags and cache control of an object."""
        info = self.fs.info(path)
        return {"type": info["contentType"], "tags": info.get("metadata"), "cache": info.get("cacheControl")}


class Azure:
    """Azure's Blob Storage."""

    scheme = "abfs"
    options: dict[str, Any] = {"tags": {"team": "data"}, "content_settings": {"cache_control": "no-cache"}}  # noqa: RUF012

    def __init__(self, port: int) -> None:
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        self._text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"

    @property
    def connection_json(self) -> str:
        return json.dumps({"conn_type": "wasb", "extra": {"connection_string": self._text}})

    @property
    def fs(self) -> Any:
        from adlfs import AzureBlobFileSystem

        return AzureBlobFileSystem(connection_string=self._text, skip_instance_cache=True)

    def make_container(self) -> None:
        """Make the container, which the emulator does not have."""
        self.fs.mkdir(CONTAINER)

    def properties(self, path: str) -> dict[str, Any]:
        """Return content type, tags and cache control of an object."""
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self._text) as service:
            blob = service.get_blob_client(*path.split("/", 1))
            settings = blob.get_blob_properties().content_settings
            return {"type": settings.content_type, "tags": blob.get_blob_tags(), "cache": settings.cache_control}


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[None]:
    """Run a server until the end, from the moment on at which it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} does not start"
                assert time.monotonic() < deadline, f"{command[0]} does not listen"
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(WAIT)


@contextmanager
def gcs() -> Iterator[Gcs]:
    """Run the emulator of Google Cloud Storage."""
    port = closed_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running([*command, "--in-memory", "--default-bucket", CONTAINER], port):
        yield Gcs(port)


@contextmanager
def azure() -> Iterator[Azure]:
    """Run Azurite."""
    port = closed_port()
    command = [os.environ["AZURITE"], "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    with running([*command, "--inMemoryPersistence", "--skipApiVersionCheck"], port):
        store = Azure(port)
        store.make_container()
        yield store
