"""Runs the tests on all supported Airflow versions, with their oldest and newest Python: ``make test-matrix``."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nox

AIRFLOWS = {
    "2.11": ("3.11", "3.12"),
    "3.0": ("3.11", "3.12"),
    "3.2": ("3.11", "3.13", "3.14"),
    "3.3": ("3.11", "3.13", "3.14"),
    "3.4": ("3.11",),
}
"""The last Python of each is the newest that Airflow supports; the one before it is used if that is not installed.

3.4 is a pre-release, pinned in ``constraints/airflow-3.4.in``: one Python is enough.
"""
OWN = "3.3"
"""The version that ``constraints.txt`` pins."""
RESULTS = Path(".nox/results")
EXTRAS = "sandbox,parquet,sql,zstd,redis,s3,delta,iceberg"
WITHOUT = [f"--ignore=tests/test_{name}.py" for name in ("contributing", "docs_site")]
"""These test the tools of the checkout, which do not depend on the version of Airflow."""

nox.needs_version = ">=2026"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
# pyenv's shims come before the interpreters in PATH, and fail.
_PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
os.environ["PATH"] = os.pathsep.join([*map(str, _PYENV.glob("versions/*/bin")), os.environ["PATH"]])


@nox.session(tags=["matrix"])
@nox.parametrize(("python", "airflow"), [(python, each) for each, pythons in AIRFLOWS.items() for python in pythons])
def tests(session: nox.Session, airflow: str) -> None:
    """Run the tests on one Airflow: all, or those in pytest's arguments after ``--``."""
    constraints = "constraints.txt" if airflow == OWN else f"constraints/airflow-{airflow}.txt"
    session.install("--constraint", constraints, "--group", "test", "--group", "demo", "--editable", f".[{EXTRAS}]")
    arguments = session.posargs
    if not arguments:
        RESULTS.mkdir(parents=True, exist_ok=True)
        report = RESULTS / f"{airflow} {session.python}.xml"
        report.unlink(missing_ok=True)
        arguments = [f"--junitxml={report}"]
    session.run("python", "-m", "pytest", "-q", *WITHOUT, *arguments)


@nox.session(python="3.11")
def stores(session: nox.Session) -> None:
    """Run the tests of Google Cloud Storage and Azure against emulators from npm and the package index."""
    session.install("--constraint", "constraints.txt", "--group", "test", "--editable", f".[{EXTRAS}]")
    providers = ("apache-airflow-providers-google", "apache-airflow-providers-microsoft-azure")
    session.install(*providers, "gcsfs", "adlfs", "gcp-storage-emulator")
    folder = session.create_tmp()
    session.run("npm", "install", "--silent", "--prefix", folder, "azurite", external=True)
    emulator = {
        "AZURITE": f"{folder}/node_modules/.bin/azurite-blob",
        # gcsfs queries the type of a bucket over gRPC, which the emulator does not support.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    # Deprecations in these libraries are ignored.
    session.run("python", "-m", "pytest", "-q", "-W", "ignore", "tests/transfers/test_stores.py", env=emulator)


@nox.session(venv_backend="none", tags=["matrix"])
def table(session: nox.Session) -> None:
    """Print the results of the last runs of all tests."""
    lines = []
    for airflow, pythons in AIRFLOWS.items():
        for python in pythons:
            report = RESULTS / f"{airflow} {python}.xml"
            if not report.exists():
                lines.append(f"{airflow:8} {python:8} not run")
                continue
            (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            passed = int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
            late = "".join(each.get("value", "") for each in suite.findall("properties/property[@name='left out']"))
            lines.append(f"{airflow:8} {python:8} {passed:8} {bad:8} {float(suite.get('time', 0)):8.0f}  {late}")
    print(f"{'Airflow':8} {'Python':8} {'passed':>8} {'failed':>8} {'seconds':>8}  not applicable", *lines, sep="\n")
