from __future__ import annotations

import copy
import inspect
import json
import pickle
from typing import Any

import pytest

from openmarkets_provider import exceptions
from openmarkets_provider.exceptions import (
    OpenmarketsApiError,
    OpenmarketsAuthError,
    OpenmarketsConfigurationError,
    OpenmarketsError,
    OpenmarketsQueryError,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
    OpenmarketsTransportError,
    from_dict,
)

KINDS = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, OpenmarketsError)]
NAMES = ["transient", "sent", "status", "error", "error_description", "scope", "request_id", "title", "detail"]
NAMES += ["endpoint", "retry_after", "row", "key", "tag", "account"]


def details_of(kind: type[OpenmarketsError]) -> dict[str, Any]:
    """Return a value for each attribute of a kind that differs from its default."""
    values: dict[str, Any] = {"status": 499, "retry_after": 1.5}
    values |= {"transient": not kind.transient, "sent": not kind.sent}
    return {name: values.get(name, f"the {name}\n✓") for name in NAMES if hasattr(kind, name)}


def assert_same(one: OpenmarketsError, other: OpenmarketsError) -> None:
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert one.args == other.args
    assert vars(one) == vars(other)


def test_every_kind_of_error_is_looked_at():
    assert len(KINDS) == 16
    assert all(issubclass(kind, OpenmarketsError) and inspect.getdoc(kind) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_kind_text_and_attributes(kind: type[OpenmarketsError], protocol: int):
    details = details_of(kind)
    error = kind("what to do", **details)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert_same(again, error)
    assert {name: getattr(again, name) for name in details} == details


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_the_same(kind: type[OpenmarketsError]):
    error = kind("what to do", **details_of(kind))
    assert_same(copy.copy(error), error)
    assert_same(copy.deepcopy(error), error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_goes_through_json_and_comes_back_the_same(kind: type[OpenmarketsError]):
    error = kind("what to do", **details_of(kind))
    assert_same(from_dict(json.loads(json.dumps(error.as_dict()))), error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_without_details_comes_back_with_the_defaults(kind: type[OpenmarketsError]):
    error = from_dict(kind("text").as_dict())
    assert error.as_dict()["details"] == {**kind("text").as_dict()["details"]}
    assert (error.transient, error.sent) == (kind.transient, False)
    assert all(getattr(error, name) is None for name in NAMES[2:] if hasattr(kind, name))


def test_notes_and_what_was_set_later_come_back():
    error = OpenmarketsServerError("text", status=500)
    error.sent = True
    error.add_note("a note")
    again = from_dict(json.loads(json.dumps(error.as_dict())))
    assert (again.sent, again.__notes__) == (True, ["a note"])


def test_a_detail_that_no_error_has_is_refused():
    with pytest.raises(TypeError, match="statsu"):
        OpenmarketsApiError("text", statsu=404)  # type: ignore[call-arg]


def test_details_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        OpenmarketsApiError("text", True)  # type: ignore[misc]


def test_as_dict_is_a_copy():
    error = OpenmarketsServerError("text", status=500)
    error.as_dict()["details"]["status"] = 0
    assert error.status == 500


@pytest.mark.parametrize(
    "data",
    [
        {},
        None,
        [],
        "OpenmarketsError",
        {"kind": "OpenmarketsError"},
        {"kind": "OpenmarketsError", "message": "x"},
        {"kind": "OpenmarketsError", "message": None, "details": {}},
        {"kind": "OpenmarketsError", "message": "x", "details": None},
        {"kind": "OpenmarketsError", "message": "x", "details": []},
        {"kind": "KeyError", "message": "x", "details": {}},
        {"kind": "from_dict", "message": "x", "details": {}},
        {"kind": "Any", "message": "x", "details": {}},
        {"kind": "__builtins__", "message": "x", "details": {}},
        {"kind": "", "message": "x", "details": {}},
        {"kind": None, "message": "x", "details": {}},
        {"kind": [], "message": "x", "details": {}},
    ],
)
def test_other_data_make_no_error(data: Any):
    with pytest.raises(ValueError, match="not an error from this provider"):
        from_dict(data)


@pytest.mark.parametrize("name", ["message", "self", "kind", "args"])
def test_no_name_of_a_detail_gets_in_the_way(name: str):
    error = from_dict({"kind": "OpenmarketsError", "message": "text", "details": {name: "x"}})
    assert str(error) == "text"


def test_only_what_may_pass_by_itself_is_transient():
    transient = {kind for kind in KINDS if kind.transient}
    assert transient == {OpenmarketsTransportError, OpenmarketsRateLimited, OpenmarketsServerError}
    assert not any(kind.sent for kind in KINDS)


@pytest.mark.parametrize("kind", [OpenmarketsConfigurationError, OpenmarketsQueryError])
def test_wrong_values_are_value_errors_too(kind: type[OpenmarketsError]):
    assert issubclass(kind, ValueError)


def test_the_identity_server_and_the_apis_have_branches_of_their_own():
    assert not issubclass(OpenmarketsAuthError, OpenmarketsApiError)
    assert not issubclass(OpenmarketsApiError, OpenmarketsAuthError)
    assert {kind.__name__ for kind in KINDS if issubclass(kind, OpenmarketsAuthError)} == {
        "OpenmarketsAuthError",
        "OpenmarketsInvalidClient",
        "OpenmarketsScopeNotInPlan",
    }
