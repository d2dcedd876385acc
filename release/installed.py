"""The wheel in a clean environment, away from the checkout: what runs from it, and what it brings with it."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from packaging.version import Version

from release.build import members, metadata_of
from release.common import NAME, PACKAGE, ROOT, Argument, Refused, plain_environment, run, tool

UV: tuple[Argument, ...] = (tool("python"), "-m", "uv")
HOOK = f"{PACKAGE}.hooks.openmarkets.OpenmarketsHook"
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), f"{name} comes from {module.__file__}"
"""


class Installed:
    """A clean environment with the wheel and its extras in it.

    :param folder: an empty folder, outside of the checkout.
    :param constraints: the versions to install.
    :raises Refused: it can't be installed.
    """

    def __init__(self, folder: Path, wheel: Path, constraints: Path = ROOT / "constraints.txt") -> None:
        self.folder, self.wheel, self.constraints = folder, wheel, constraints
        self.venv = folder / "venv"
        self.python = self.venv / "bin" / "python"
        run(*UV, "venv", "--quiet", "--python", sys.executable, self.venv, cwd=folder)
        extras = ",".join(metadata_of(wheel).get_all("Provides-Extra", []))
        self.install(f"{NAME}[{extras}] @ {wheel.as_uri()}")
        self.env = plain_environment(AIRFLOW_HOME=str(folder / "airflow"))

    def install(self, *requirements: str) -> None:
        """Install something more."""
        command: list[Argument] = [*UV, "pip", "install", "--quiet", "--python", self.python]
        run(*command, "--constraint", self.constraints, *requirements, cwd=self.folder)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment, away from the checkout, and return what it printed."""
        return run(self.venv / "bin" / program, *arguments, cwd=self.folder, env=self.env)

    def check_airflow_knows_it(self, version: Version) -> None:
        """Ask Airflow's own commands.

        :raises Refused: Airflow does not list the provider, or its connection type, or in another version.
        """
        listed = self._airflow("providers", "list")
        if {"package_name": NAME, "version": str(version)} not in [
            {key: line[key] for key in ("package_name", "version")} for line in listed
        ]:
            raise Refused(f"airflow providers list does not have {NAME} {version}.")
        (full,) = self._airflow("providers", "get", NAME, "--full")
        if [each["hook-class-name"] for each in full["connection-types"]] != [HOOK]:
            raise Refused(f"airflow providers get {NAME} --full does not have the connection type.")
        if HOOK not in [line["class"] for line in self._airflow("providers", "hooks")]:
            raise Refused(f"airflow providers hooks does not have {HOOK}.")

    def check_imports(self) -> int:
        """Import every module of the wheel from where it was installed, and return how many there are.

        pytest is needed for those that are for tests.
        """
        names = [name for name in members(self.wheel.read_bytes()) if name.endswith(".py")]
        modules = sorted(name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in names)
        # To import it would start it.
        modules.remove(f"{PACKAGE}.sandbox.__main__")
        self.run("python", "-W", "error::ImportWarning", "-c", IMPORT_ALL, str(self.venv), *modules)
        return len(modules)

    def run_demo(self, sdist: Path) -> str:
        """Run the demo of the sdist with the package of the wheel, and return what it printed."""
        with tarfile.open(sdist) as archive:
            archive.extractall(self.folder / "demo", filter="data")
        (top,) = (self.folder / "demo").iterdir()
        # Else it would be imported from here.
        (top / PACKAGE).rename(top / "not_imported")
        return run(self.python, "-m", "tests.demo", cwd=top, env=self.env)

    def bill_of_materials(self, version: Version, epoch: str) -> dict[str, Any]:
        """Return what is installed with the package, as CycloneDX has it."""
        described: list[Argument] = ["--mc-type", "library", "--pyproject", ROOT / "pyproject.toml"]
        env = plain_environment(SOURCE_DATE_EPOCH=epoch)
        told = run(
            *(*UV, "tool", "run", "--quiet", "--python", sys.executable, "--constraints", ROOT / "constraints.txt"),
            *("--from", "cyclonedx-bom", "cyclonedx-py", "environment"),
            *("--output-reproducible", *described, self.venv),
            cwd=self.folder,
            env=env,
        )
        bom: dict[str, Any] = without_links(json.loads(told))
        bom["metadata"]["component"] |= {"version": str(version), "purl": f"pkg:pypi/{NAME}@{version}"}
        return bom

    def licences(self) -> str:
        """Return name, version and licence of all that is installed, as a table."""
        return run(tool("pip-licenses"), "--python", self.python, "--from", "mixed", cwd=self.folder)

    def _airflow(self, *arguments: str) -> list[dict[str, Any]]:
        told = self.run("airflow", *arguments, "--output", "json")
        # Airflow may print a warning first.
        lines: list[dict[str, Any]] = json.loads(told[told.index("[{") :])
        return lines


def without_links(value: Any) -> Any:
    """Return a bill of materials without links, which packages write themselves: paths and indexes are among them."""
    if isinstance(value, dict):
        return {key: without_links(each) for key, each in value.items() if key != "externalReferences"}
    return [without_links(each) for each in value] if isinstance(value, list) else value
