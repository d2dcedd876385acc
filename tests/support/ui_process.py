"""``python -m dev.ui`` as a separate process, with the processes that it starts."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.airflow import AirflowApi, AirflowError
from tests.support.process import ServerProcess
from tests.support.sandbox_process import SandboxControl


class UiProcess(AirflowApi, ServerProcess):
    """Airflow, the sandbox and the connections that ``make ui`` shows to a person.

    :ivar sandbox: the sandbox.
    :ivar home: the folder of Airflow's logs and database.
    """

    def __init__(self, dags: Path) -> None:
        AirflowApi.__init__(self)
        ServerProcess.__init__(self, "dev.ui", "--dags", str(dags))
        self.sandbox = SandboxControl()
        self.output = ""

    def has_started(self) -> bool:
        for line in self._process.stdout:
            self.output += line
            if line.startswith("Ctrl-C"):
                said = dict(re.findall(r"^(\w+): +(\S+)", self.output, re.MULTILINE))
                self.connect(said["Airflow"])
                self.log_in()
                self.sandbox.url, self.home = said["Sandbox"], Path(said["Folder"])
                return True
        return False

    def _end(self) -> None:
        if self.base_url:
            self._client.close()
        super()._end()

    def check_alive(self, what: str) -> None:
        if (code := self._process.poll()) is not None:
            raise AirflowError(f"it ended with {code} before {what}:\n{self.output}")

    def interrupt(self) -> int:
        """End it as Ctrl-C does; return its exit status."""
        self._process.send_signal(signal.SIGINT)
        self.output += self._process.stdout.read()
        return self._process.wait(60)

    def processes(self) -> list[int]:
        """Return the processes of its Airflow that live."""
        return with_environment(f"AIRFLOW_HOME={self.home}")


def with_environment(setting: str) -> list[int]:
    """Return the processes that live with a setting in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if setting.encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def answers(url: str) -> bool:
    """Return whether a process listens on the port."""
    try:
        httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return True
