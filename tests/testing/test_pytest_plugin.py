"""The pytest plugin, as a user's test run loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from openmarkets_provider.sandbox.server import SandboxServer

pytest_plugins = ["pytester"]

TESTS = """
    import json, os, urllib.request

    URLS = []

    def get(sandbox, path):
        try:
            with urllib.request.urlopen(sandbox.url + path) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    def test_first(openmarkets_sandbox):
        openmarkets_sandbox.fault(target="oms", kind="status", status=503, times=None)
        openmarkets_sandbox.set_security("BHP.ASX@TM", tradingStatus="HALT")
        assert get(openmarkets_sandbox, "/oms/accounts/v1") == 503
        assert openmarkets_sandbox.stats()["requests"]["oms"] == 1
        URLS.append(openmarkets_sandbox.url)

    def test_second(openmarkets_sandbox):
        assert openmarkets_sandbox.stats()["requests"]["oms"] == 0
        assert get(openmarkets_sandbox, "/oms/accounts/v1") == 401
        assert URLS == [openmarkets_sandbox.url]
        connection = json.loads(os.environ["AIRFLOW_CONN_OPENMARKETS_DEFAULT"])
        assert connection == openmarkets_sandbox.connection

    def test_third():
        assert "AIRFLOW_CONN_OPENMARKETS_DEFAULT" not in os.environ
"""

TESTS_OF_A_HOOK = """
    import pytest

    from openmarkets_provider import queries
    from openmarkets_provider.exceptions import OpenmarketsRateLimited
    from openmarkets_provider.hooks.openmarkets import OpenmarketsHook

    def test_first(openmarkets_sandbox):
        openmarkets_sandbox.fault(target="oms", kind="status", status=429, retry_after=300)
        with pytest.raises(OpenmarketsRateLimited):
            OpenmarketsHook().run(queries.accounts())

    def test_second(openmarkets_sandbox):
        assert OpenmarketsHook().run(queries.accounts())
        assert openmarkets_sandbox.stats()["token_requests"] == {"oms-api": 1}
"""


def test_each_test_gets_a_fresh_sandbox(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_OPENMARKETS_DEFAULT", raising=False)
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


def test_no_token_and_no_hold_of_an_earlier_test_is_left(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS_OF_A_HOOK)
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_a_missing_extra_is_a_failure_that_names_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import sys; sys.modules['uvicorn'] = None")
    pytester.makepyfile("def test_it(openmarkets_sandbox): pass")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*pip install 'airflow-provider-openmarkets[[]sandbox[]]'*")


def test_loading_the_plugin_loads_nothing_heavy() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules)\n"
        "import openmarkets_provider.testing.pytest_plugin\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"openmarkets_provider"}


def test_the_connection_leads_to_the_sandbox(openmarkets_sandbox: SandboxServer) -> None:
    assert json.loads(os.environ["AIRFLOW_CONN_OPENMARKETS_DEFAULT"]) == openmarkets_sandbox.connection
