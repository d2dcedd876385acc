from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from openmarkets_provider import get_provider_info as module
from openmarkets_provider.client.environments import ENVIRONMENTS, SCOPES
from openmarkets_provider.client.settings import (
    CACHE_BACKENDS,
    CLIENT_AUTH_ENCODINGS,
    DEFAULT_ENVIRONMENT,
    DEFAULT_TIMEOUT,
    MAX_TIMEOUT,
    Settings,
)
from openmarkets_provider.get_provider_info import CONNECTION_FIELDS, get_provider_info
from openmarkets_provider.order_entry.guards import MODES
from tests.support.versions import at_least, secrets_masker

INFO = get_provider_info()
(CONNECTION_TYPE,) = INFO["connection-types"]
NEEDS = {
    "openmarkets_provider.policies.retry": ("OpenmarketsRetryPolicy", "3.3"),
    "openmarkets_provider.triggers.events": ("OpenmarketsEventTrigger", "3.0"),
}
"""Modules that need a later Airflow than the package: their class, and the version."""
STANDARD_FIELDS = {"description", "host", "port", "login", "password", "schema", "extra"}


def airflow_schema(name: str) -> dict[str, Any]:
    return json.loads(importlib.resources.files("airflow").joinpath(name).read_text())


def check(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.validators.validator_for(schema)(schema).validate(value)


def test_it_is_what_airflow_reads():
    check(INFO, airflow_schema("provider_info.schema.json"))


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("connection-types", marks=pytest.mark.since("3.2")),
        *("config", "hooks", "integrations", "operators", "sensors", "triggers"),
        pytest.param("retry-policies", marks=pytest.mark.since("3.4")),
    ],
)
def test_its_parts_are_as_in_the_providers_of_airflow(part: str):
    whole = airflow_schema("provider.yaml.schema.json")
    check(INFO[part], {"definitions": whole["definitions"]} | whole["properties"][part])


def test_it_is_json():
    assert json.loads(json.dumps(INFO)) == INFO


def test_the_package_is_the_installed_distribution():
    (entry,) = [
        entry
        for entry in importlib.metadata.entry_points(group="apache_airflow_provider")
        if entry.module == module.__name__
    ]
    assert entry.load() is get_provider_info
    assert entry.dist is not None
    assert entry.dist.name == INFO["package-name"]


def modules_of(part: str) -> list[str]:
    if part == "transfers":
        return [entry["python-module"] for entry in INFO[part]]
    return [name for entry in INFO[part] for name in entry["python-modules"]]


PARTS = ["hooks", "operators", "retry-policies", "sensors", "transfers", "triggers"]


@pytest.mark.parametrize("part", PARTS)
def test_every_module_it_names_imports_and_holds_the_kind(part: str):
    for name in modules_of(part):
        kind, since = NEEDS.get(name, ("", "2.11"))
        if not at_least(since):
            with pytest.raises(ImportError, match=rf"^{kind} needs Airflow {re.escape(since)} or later"):
                importlib.import_module(name)
            continue
        loaded = importlib.import_module(name)
        own = [each for each in vars(loaded).values() if inspect.isclass(each) and each.__module__ == name]
        assert [each for each in own if each.__name__.startswith("Openmarkets")]


@pytest.mark.parametrize("part", PARTS)
def test_every_integration_that_it_names_is_known(part: str):
    known = {each["integration-name"] for each in INFO["integrations"]}
    for name in ("common.io", "common.sql", "apache.iceberg"):
        info = importlib.import_module(f"airflow.providers.{name}.get_provider_info").get_provider_info()
        known |= {each["integration-name"] for each in info["integrations"]}
    named = {value for entry in INFO[part] for key, value in entry.items() if key.endswith("integration-name")}
    assert named
    assert named <= known


@pytest.mark.parametrize("part", PARTS)
def test_every_module_of_these_kinds_is_named(part: str):
    named = set(modules_of(part))
    for folder in ("operators", "checks") if part == "operators" else (part.removeprefix("retry-"),):
        paths = [path for path in (Path(module.__file__).parent / folder).glob("[!_]*.py") if path.stem != "base"]
        names = {f"openmarkets_provider.{folder}.{path.stem}" for path in paths}
        assert names <= named
        named -= names
    assert named == set()


def test_the_documentation_of_the_apis_is_named():
    integration, *_ = INFO["integrations"]
    assert urlsplit(integration["external-doc-url"]).hostname == "dev.openmarkets.com.au"


def test_the_hook_it_names_is_of_its_connection_type():
    name, _, attribute = CONNECTION_TYPE["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(name), attribute)
    assert hook.conn_type == CONNECTION_TYPE["connection-type"]
    assert hook.hook_name == CONNECTION_TYPE["hook-name"]
    behaviour = CONNECTION_TYPE["ui-field-behaviour"]
    assert hook.get_ui_field_behaviour() == {key.replace("-", "_"): value for key, value in behaviour.items()}


def test_the_module_imports_nothing():
    tree = ast.parse(Path(module.__file__).read_text())
    imported: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                imported |= {alias.name for alias in names}
            case ast.ImportFrom(name):
                imported.add(name or ".")
    assert imported <= {"__future__", "typing"}


def test_reading_it_loads_no_library():
    code = (
        "import __future__, sys, typing; before = set(sys.modules); "
        "import openmarkets_provider.get_provider_info; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) == {"openmarkets_provider", "openmarkets_provider.get_provider_info"}


# --- the connection form


def test_the_fields_are_the_settings_that_the_standard_fields_do_not_hold():
    settings = set(inspect.signature(Settings).parameters)
    assert set(CONNECTION_FIELDS) == settings - {"client_id", "client_secret", "identity_url"}


@pytest.mark.parametrize(
    ("field", "allowed", "default", "unset"),
    [
        ("environment", ENVIRONMENTS, DEFAULT_ENVIRONMENT, DEFAULT_ENVIRONMENT),
        ("client_auth_encoding", CLIENT_AUTH_ENCODINGS, CLIENT_AUTH_ENCODINGS[0], CLIENT_AUTH_ENCODINGS[0]),
        ("orders", MODES, MODES[0], MODES[0]),
        # What this default is, airflow.cfg may say.
        ("cache_backend", CACHE_BACKENDS, CACHE_BACKENDS[0], ""),
    ],
)
def test_what_a_field_allows_is_what_the_settings_allow(field: str, allowed: Any, default: str, unset: str):
    schema = CONNECTION_FIELDS[field]["schema"]
    assert schema["enum"] == list(allowed)
    assert schema.get("default", default) == default
    assert getattr(Settings(client_id="i", client_secret="s"), field) == unset
    assert set(schema.get("values_display", schema["enum"])) == set(schema["enum"])
    assert f"{default} (the default)" in CONNECTION_FIELDS[field]["description"]
    for value in schema["enum"]:
        Settings(client_id="i", client_secret="s", **{field: value})


def test_the_scopes_offered_are_all_scopes():
    assert CONNECTION_FIELDS["scopes"]["schema"]["examples"] == list(SCOPES.values())


def test_the_timeout_has_the_bounds_and_the_default_of_the_settings():
    field = CONNECTION_FIELDS["timeout"]
    assert field["schema"]["maximum"] == MAX_TIMEOUT
    assert 0 < field["schema"]["minimum"] <= DEFAULT_TIMEOUT
    assert f"Default: {DEFAULT_TIMEOUT:g}." in field["description"]


@pytest.mark.parametrize("name", CONNECTION_FIELDS)
def test_a_field_may_stay_empty_and_its_default_is_valid(name: str):
    schema = CONNECTION_FIELDS[name]["schema"]
    assert schema["type"][1:] == ["null"]
    if "default" in schema:
        check(schema["default"], schema)
        # Airflow takes what is shorter for a secret that it can't mask, and warns of it in the log of every task.
        assert len(schema["default"]) >= 5
    if "enum" not in schema:
        check(None, schema)


@pytest.mark.parametrize("name", CONNECTION_FIELDS)
def test_airflow_does_not_mask_a_field(name: str):
    # Its value would be masked wherever it comes up in a log, and saving the form would store the asterisks.
    assert secrets_masker.should_hide_value_for_key("client_secret")
    assert not secrets_masker.should_hide_value_for_key(name)


def test_only_standard_fields_are_hidden_or_given_another_label():
    behaviour = CONNECTION_TYPE["ui-field-behaviour"]
    assert set(behaviour["hidden-fields"]) <= STANDARD_FIELDS
    assert set(behaviour["relabeling"]) <= STANDARD_FIELDS - set(behaviour["hidden-fields"])
    assert set(behaviour["placeholders"]) <= STANDARD_FIELDS - set(behaviour["hidden-fields"])
    # Without these there is no credential to give.
    assert not {"login", "password", "host"} & set(behaviour["hidden-fields"])


OPTIONS = INFO["config"]["openmarkets"]["options"]


def options_that_the_code_reads() -> set[str]:
    """Return the options of the section that the code reads from Airflow's configuration, by any method."""
    read = set()
    for path in Path(module.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name("conf")), args=[ast.Constant("openmarkets"), option, *_]
                ):
                    read.add(ast.literal_eval(option))
    return read


def test_the_config_options_are_those_that_the_code_reads():
    assert options_that_the_code_reads() == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_config_option_has_a_version_that_exists(name: str):
    option = OPTIONS[name]
    released = tuple(map(int, importlib.metadata.version(INFO["package-name"]).split(".")[:3]))
    assert tuple(map(int, option["version_added"].split("."))) <= released


# --- Airflow itself

ASK_AIRFLOW = (
    f"OPTIONS = {list(OPTIONS)}"
    + """
import json, logging, warnings
warnings.filterwarnings("error", module="openmarkets")
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
manager.initialize_providers_configuration()
name = "airflow-provider-openmarkets"
prefix = "extra__openmarkets__"
widgets = {k.removeprefix(prefix): w for k, w in manager.connection_form_widgets.items() if k.startswith(prefix)}
try:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
    hooks = ProvidersManagerTaskRuntime().hooks
except ImportError:
    hooks = manager.hooks
from airflow.configuration import conf
report = {
    "version": manager.providers[name].version,
    "hook": hooks["openmarkets"]._asdict() if hooks["openmarkets"] else None,
    "labels": {k: w.field["schema"]["title"] if isinstance(w.field, dict) else None for k, w in widgets.items()},
    "sensitive": [k for k, w in widgets.items() if w.is_sensitive],
    "behaviour": manager.field_behaviours["openmarkets"],
    "options": {name: conf.get("openmarkets", name) for name in OPTIONS},
}
print("TOLD " + json.dumps(report, default=str))
"""
)


@pytest.fixture(scope="module")
def told_by_airflow(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Return what Airflow knows of the provider, and everything that it said besides."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env["AIRFLOW_HOME"] = str(tmp_path_factory.mktemp("airflow"))
    done = subprocess.run([sys.executable, "-c", ASK_AIRFLOW], env=env, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    (report,) = [line for line in lines if line.startswith("TOLD ")] or [pytest.fail(done.stdout + done.stderr)]
    rest = "\n".join(line for line in lines if line != report)
    return json.loads(report.removeprefix("TOLD ")), rest + done.stderr


def test_airflow_finds_the_provider_and_has_nothing_to_complain_about(told_by_airflow: tuple[dict[str, Any], str]):
    report, said = told_by_airflow
    assert report["version"] == importlib.metadata.version(INFO["package-name"])
    # Before 3.3 Airflow has something to say of itself, too.
    of_us = "openmarkets|warn|error|deprecat" if at_least("3.3") else "openmarkets"
    assert not re.search(of_us, said, re.IGNORECASE), said


def test_airflow_knows_the_hook_and_can_test_the_connection(told_by_airflow: tuple[dict[str, Any], str]):
    hook = told_by_airflow[0]["hook"]
    assert hook["hook_class_name"] == CONNECTION_TYPE["hook-class-name"]
    assert hook["connection_id_attribute_name"] == "openmarkets_conn_id"
    assert hook["connection_testable"] is True


def test_airflow_shows_every_field_and_takes_none_for_a_secret(told_by_airflow: tuple[dict[str, Any], str]):
    report = told_by_airflow[0]
    assert list(report["labels"]) == list(CONNECTION_FIELDS)
    assert set(report["labels"].values()) <= {field["label"] for field in CONNECTION_FIELDS.values()} | {None}
    assert report["sensitive"] == []


def test_airflow_hides_and_relabels_the_standard_fields(told_by_airflow: tuple[dict[str, Any], str]):
    behaviour = told_by_airflow[0]["behaviour"]
    expected = CONNECTION_TYPE["ui-field-behaviour"]
    assert behaviour == {key.replace("-", "_"): value for key, value in expected.items()}


def test_airflow_knows_the_config_options_and_their_defaults(told_by_airflow: tuple[dict[str, Any], str]):
    assert told_by_airflow[0]["options"] == {name: option["default"] for name, option in OPTIONS.items()}


def test_airflow_lists_the_config_options(tmp_path: Path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        [Path(sys.executable).parent / "airflow", "config", "list", "--section", "openmarkets"],
        env=env | {"AIRFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    # What nobody has set is commented out in some versions.
    assert set(re.findall(r"^(?:# )?(\w+) = ", done.stdout, re.MULTILINE)) == set(OPTIONS), done.stderr


def test_nothing_that_is_installed_names_a_page_that_is_not():
    package = Path(module.__file__).parent
    lines = [f"{path.name}: {line}" for path in package.rglob("*.py") for line in path.read_text().splitlines()]
    assert [line for line in lines if "docs/" in line] == []
