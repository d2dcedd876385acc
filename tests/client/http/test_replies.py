from __future__ import annotations

import datetime
import json
import math
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.http.replies import (
    MAX_RETRY_AFTER,
    MAX_TEXT,
    decode,
    read_reply,
    retry_after,
    wrong_contents,
)
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsApiError,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsRateLimited,
    OpenmarketsServerError,
)
from openmarkets_provider.query.plan import ApiCall
from tests.support.replies import BODIES, FORGERIES, HEADERS, HTML, LONG_WORDS, NOT_JSON, STATUSES, escaped

CALL = ApiCall("oms", "GET", "accounts/v1")
LABEL = "GET oms accounts/v1"


def read(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    return read_reply(CALL, status, headers or {}, body, "sent-id")


def api_error(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> OpenmarketsApiError:
    with pytest.raises(OpenmarketsApiError) as caught:
        read(status, body, headers)
    return caught.value


# --- JSON


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:12]))
def test_only_strict_json_is_decoded(body: bytes):
    with pytest.raises(ValueError, match=r"^not JSON: "):
        decode(body)
    if body.strip():
        error = api_error(200, body)
        assert type(error) is OpenmarketsInvalidResponse


# --- replies of an API


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[]", []),
        (b"null", None),
        (b"0", 0),
        (b'{"a":[1,2.5,"\xc3\xa9",true,null]}', {"a": [1, 2.5, "é", True, None]}),
        (b" \r\n{}\n", {}),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
@pytest.mark.parametrize("status", [200, 201, 299])
def test_a_good_reply_is_its_json(status: int, body: bytes, value: Any):
    assert read(status, body) == value


@pytest.mark.parametrize("status", [200, 202, 204])
@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
def test_an_empty_reply_is_none(status: int, body: bytes):
    assert read(status, body) is None


def test_a_page_with_status_200_is_an_invalid_response():
    error = api_error(200, HTML, {"content-type": "text/html", "x-request-id": "echoed"})
    assert type(error) is OpenmarketsInvalidResponse
    assert not error.transient
    assert error.detail == "<!DOCTYPE html> <html>Please log in</html>"
    assert (error.status, error.request_id, error.endpoint) == (200, "echoed", LABEL)
    assert f"{LABEL}: the reply (200, text/html, {len(HTML)} bytes) is not JSON" in str(error)
    assert "no content type" in str(api_error(200, b"x"))


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (301, OpenmarketsApiError, "Redirects are not followed; check the base URL"),
        (308, OpenmarketsApiError, "Redirects are not followed"),
        (100, OpenmarketsApiError, ""),
        (400, OpenmarketsApiError, ""),
        (401, OpenmarketsAccessRefused, "Client credentials have no user context"),
        (403, OpenmarketsAccessRefused, "have no user context.*outside your API plan"),
        (404, OpenmarketsNotFound, "Check path and names"),
        (405, OpenmarketsApiError, ""),
        (408, OpenmarketsServerError, ""),
        (409, OpenmarketsApiError, ""),
        (410, OpenmarketsNotFound, "Check path and names"),
        (425, OpenmarketsServerError, ""),
        (429, OpenmarketsRateLimited, ""),
        (500, OpenmarketsServerError, ""),
        (503, OpenmarketsServerError, ""),
        (599, OpenmarketsServerError, ""),
        (0, OpenmarketsApiError, ""),
    ],
)
def test_a_status_is_an_error_of_its_kind(status: int, kind: type[OpenmarketsApiError], words: str):
    with pytest.raises(kind, match=rf"^{LABEL}: {status} \[request id sent-id\].*{words}") as caught:
        read(status)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.endpoint, error.request_id) == (status, LABEL, "sent-id")
    assert (error.title, error.detail, error.retry_after) == (None, None, None)


@pytest.mark.parametrize(
    ("body", "title", "detail"),
    [
        (b'{"type":"t","title":"Bad Request","status":400,"detail":"No such day"}', "Bad Request", "No such day"),
        (b'{"title":"Bad Request","errors":{"a":["b"]}}', "Bad Request", None),
        (b'{"error":"invalid_scope"}', "invalid_scope", None),
        (b'{"error":"invalid_client","error_description":"Unknown"}', "invalid_client", "Unknown"),
        (b'{"message":"Too busy"}', "Too busy", None),
        (b'{"error":"x","title":"y","message":"z"}', "x", None),
        (b'{"error":{"code":1},"title":"Bad"}', "Bad", None),
        (b'{"title":"Bad","detail":""}', "Bad", None),
        (b'{"title":"Bad","detail":{"a":1}}', "Bad", None),
        (b'{"title":"Bad","detail":5}', "Bad", None),
        (b'{"a":1}', None, '{"a":1}'),
        (b'["a"]', None, '["a"]'),
        (b'"text"', None, '"text"'),
        (b"null", None, "null"),
        (b"Service Unavailable\r\n", None, "Service Unavailable"),
        (HTML, None, "<!DOCTYPE html> <html>Please log in</html>"),
        (b"", None, None),
        (b" \n ", None, None),
        (b"\x00\x01\x02", None, None),
        (b"\x89PNG\r\n\x1a\n\x00", None, "\ufffdPNG"),
        ("Größe".encode("latin-1"), None, "Gr\ufffd\ufffde"),
        ("Größe".encode(), None, "Größe"),
    ],
)
def test_what_an_error_says_is_found(body: bytes, title: str | None, detail: str | None):
    error = api_error(400, body)
    assert (error.title, error.detail) == (title, detail)
    said = ": ".join(part for part in (title, detail) if part)
    assert str(error) == f"{LABEL}: 400{' ' + said if said else ''} [request id sent-id]"


@pytest.mark.parametrize("body", LONG_WORDS.values(), ids=LONG_WORDS)
def test_long_words_of_a_server_are_cut(body: bytes):
    error = api_error(500, body)
    for words in (error.title, error.detail):
        assert words is None or (len(words) == 501 and words.endswith("…"))
    assert len(str(error)) < 1200


def test_words_of_just_the_limit_are_whole():
    assert api_error(400, b"x" * 500).detail == "x" * 500


@pytest.mark.parametrize("bad", FORGERIES)
def test_nothing_of_a_reply_can_forge_a_line_of_a_log(bad: str):
    words = f"a{bad}b"
    body = json.dumps({"error": words, "error_description": words}).encode()
    headers = {"x-request-id": words, "content-type": words, "retry-after": words}
    errors = [
        api_error(400, body, headers),
        api_error(400, words.encode(), headers),
        api_error(200, b"{" + words.encode(), headers),
    ]
    for error in errors:
        assert str(error).isprintable()
        assert bad not in "".join(value for value in vars(error).values() if isinstance(value, str))
        assert error.request_id == "a b"


def test_a_wait_that_the_server_asks_for_is_told():
    error = api_error(429, b"", {"retry-after": "120"})
    assert error.retry_after == 120.0
    assert str(error).endswith("The server asks to wait 120 s.")
    assert api_error(503, b"", {"retry-after": "7"}).retry_after == 7.0
    assert api_error(429, b"", {"retry-after": "soon"}).retry_after is None


# --- Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("007", 7.0),
        (str(365 * 86400), MAX_RETRY_AFTER),
        ("9" * 100, MAX_RETRY_AFTER),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 0.0),
        ("Wed Oct 21 07:28:00 2015", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_a_wait_in_seconds_or_until_a_date(text: str, seconds: float):
    assert retry_after(text) == seconds


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000", ""])
def test_a_date_to_come_is_seconds_from_now_and_without_a_zone_it_is_utc(zone: str):
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    text = format_datetime(moment).replace("+0000", zone).strip()
    assert retry_after(text) == pytest.approx(3600, abs=5)


def test_a_date_in_another_zone_is_the_same_moment():
    moment = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=10))) + datetime.timedelta(hours=1)
    assert retry_after(format_datetime(moment)) == pytest.approx(3600, abs=5)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "-5",
        "+5",
        "1.5",
        "1e3",
        "0x10",
        "1_000",
        "1,000",
        "NaN",
        "inf",
        "soon",
        "120 seconds",
        "１２０",  # noqa: RUF001 - full-width digits
        "١٢٠",
        "²",
        str(10**400),
        "9" * 5000,
        "Wed, 99 Oct 2015 07:28:00 GMT",
        "Wed, 21 Oct 2015 25:28:00 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999",
        "21 Oct",
        "\x00",
    ],
)
def test_a_wait_that_is_none_of_these_is_none(text: str | None):
    assert retry_after(text) is None


DATES = st.lists(
    st.sampled_from(
        [
            "Wed,",
            "21",
            "Oct",
            "2015",
            "07:28:00",
            "GMT",
            "+0000",
            "-9999",
            "99999999999",
            "0",
            "1:",
            "1.",
            "-",
            ",",
            "PM",
        ]
    ),
    max_size=8,
).map(" ".join)


@given(st.text() | DATES | st.text(alphabet="0123456789-+.: ,"))
def test_any_text_is_none_or_a_finite_wait(text: str):
    seconds = retry_after(text)
    assert seconds is None or (math.isfinite(seconds) and 0 <= seconds <= MAX_RETRY_AFTER)


# --- any reply


@given(STATUSES, HEADERS, BODIES)
def test_any_api_reply_is_json_or_an_api_error(status: int, headers: dict[str, str], body: bytes):
    try:
        value = read(status, body, headers)
    except OpenmarketsApiError as error:
        assert error.status == status  # noqa: PT017 - any other error fails the test
        assert str(error).isprintable()  # noqa: PT017
        assert len(str(error)) < 3000  # noqa: PT017
        return
    assert 200 <= status < 300
    assert value is None or json.loads(body) == value


# What a server repeats of a request


REPEATED = "abc+def/ghi=="
PLACES = [
    ('{"title": "bad", "detail": "%s"}', {}),
    ('{"error": "%s"}', {}),
    ('{"unheard of": "%s"}', {}),
    ("<p>%s</p>", {}),
    ("{}", {"x-request-id": "%s"}),
    ("no JSON", {"content-type": "%s"}),
]


@pytest.mark.parametrize("write", [str, escaped, lambda text: text.replace("+", "\\u002b").replace("/", "\\/")])
@pytest.mark.parametrize(("body", "headers"), PLACES)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_token_that_a_reply_repeats_is_in_no_error(write, body, headers, status):
    sent = f"Bearer {REPEATED}"
    report = {name: text.replace("%s", write(sent)) for name, text in headers.items()}
    answer = body.replace("%s", write(sent)).encode()
    if status == 200:
        answer = b"x" + answer
    with pytest.raises(OpenmarketsApiError) as caught:
        read_reply(CALL, status, report, answer, "sent-id", (REPEATED,))
    shown = f"{caught.value} {caught.value.as_dict()}"
    assert REPEATED not in shown
    assert write(REPEATED) not in shown
    if "%s" in body:
        assert "***" in shown


@pytest.mark.parametrize("size", [20, 90, 2000], ids=["short", "cut", "long"])
def test_an_error_of_contents_shows_no_part_of_a_token(size: int):
    token = "eyJhbGciOiJSUzI1NiJ9" + "Xy-" * size
    value = f"you sent {token} here"
    call = ApiCall("oms", "GET", "accounts/v1")
    # As the rows quote a value.
    error = OpenmarketsInvalidResponse(f"{call.label}: field side: expected a text, got {[value]!r:.100}. Take raw.")
    shown = wrong_contents(error, {"message": value}, 200, "r1", (token,))
    assert token[:16] not in str(shown)
    assert "Xy-" not in f"{shown} {shown.as_dict()}"
    assert str(shown).startswith("GET oms accounts/v1: field side: expected a text, got ['you sent ***")
    assert shown.request_id == "r1"


def test_an_error_of_contents_repeats_no_more_than_a_little():
    error = OpenmarketsInvalidResponse("GET oms accounts/v1: expected a list of records, got dict.")
    shown = wrong_contents(error, {"title": "No" * MAX_TEXT, "detail": "Why" * MAX_TEXT}, 200, "r1", ())
    assert len(str(shown)) < 3 * MAX_TEXT
