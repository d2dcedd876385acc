from __future__ import annotations

import datetime
import json
import math
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarkets_provider.client.http.replies import MAX_RETRY_AFTER, decode, read_reply, read_token_reply, retry_after
from openmarkets_provider.exceptions import (
    OpenmarketsAccessRefused,
    OpenmarketsApiError,
    OpenmarketsAuthError,
    OpenmarketsError,
    OpenmarketsInvalidClient,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsRateLimited,
    OpenmarketsScopeNotInPlan,
    OpenmarketsServerError,
)
from openmarkets_provider.query.plan import ApiCall

CALL = ApiCall("oms", "GET", "accounts/v1")
LABEL = "GET oms accounts/v1"
SCOPE = "oms-api"
TOKEN = "tok-5b15ec9e7d"
DEEP = b"[" * 200_000
HTML = b"<!DOCTYPE html>\n<html>Please log in</html>"


def read(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    return read_reply(CALL, status, headers or {}, body, "sent-id")


def api_error(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> OpenmarketsApiError:
    with pytest.raises(OpenmarketsApiError) as caught:
        read(status, body, headers)
    return caught.value


def token_reply(**changes: Any) -> bytes:
    reply = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"} | changes
    return json.dumps({name: value for name, value in reply.items() if value is not ...}).encode()


def token_error(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> OpenmarketsError:
    with pytest.raises(OpenmarketsError) as caught:
        read_token_reply(SCOPE, status, headers or {}, body)
    return caught.value


def assert_shows_no_token(error: OpenmarketsError) -> None:
    assert TOKEN not in str(error)
    assert TOKEN not in repr(error.as_dict())


# --- JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}x",
        b"NaN",
        b"[Infinity]",
        b"{'a': 1}",
        b"[1,]",
        b"1e999",
        b"1" * 5000,
        b'"\\ud800"',
        b'"\xff"',
        b"\xff\xfe[\x00]\x00",
        HTML,
        DEEP,
        b'{"a":' * 200_000,
        DEEP + b"]" * 200_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_only_strict_json_is_decoded(body: bytes):
    with pytest.raises(ValueError, match=r"^not JSON: "):
        decode(body)
    if body.strip():
        error = api_error(200, body)
        assert type(error) is OpenmarketsInvalidResponse
    auth = token_error(200, body)
    assert type(auth) is OpenmarketsAuthError
    assert "it is not JSON" in str(auth)


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
        (401, OpenmarketsAccessRefused, "A new token does not help"),
        (403, OpenmarketsAccessRefused, "has no user.*outside your API plan"),
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


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 100_000,
        "é".encode() * 100_000,
        "\U0001f4c8".encode() * 100_000,
        DEEP,
        json.dumps({"title": "x" * 9999, "detail": "y" * 9999}).encode(),
        json.dumps({"message": "\n" * 9999}).encode(),
        json.dumps(["x" * 9999]).encode(),
    ],
    ids=["text", "two bytes", "four bytes", "deep", "problem", "blank", "list"],
)
def test_long_words_of_a_server_are_cut(body: bytes):
    error = api_error(500, body)
    for words in (error.title, error.detail):
        assert words is None or (len(words) == 501 and words.endswith("…"))
    assert len(str(error)) < 1200
    assert len(str(token_error(500, body))) < 1200


def test_words_of_just_the_limit_are_whole():
    assert api_error(400, b"x" * 500).detail == "x" * 500


@pytest.mark.parametrize("bad", ["\n", "\r", "\x1b", "\x00", "\u2028", "\u202e", "\x85", "\t", "\u200b"])
def test_nothing_of_a_reply_can_forge_a_line_of_a_log(bad: str):
    words = f"a{bad}b"
    body = json.dumps({"error": words, "error_description": words}).encode()
    headers = {"x-request-id": words, "content-type": words, "retry-after": words}
    errors = [
        api_error(400, body, headers),
        api_error(400, words.encode(), headers),
        api_error(200, b"{" + words.encode(), headers),
        token_error(400, body, headers),
        token_error(503, body, headers),
        token_error(503, words.encode(), headers),
        token_error(200, token_reply(token_type=words), headers),
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


# --- token replies


@pytest.mark.parametrize(("lifetime", "seconds"), [(3600, 3600.0), (1, 1.0), (0.5, 0.5), (31 * 86400, 2678400.0)])
@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
def test_a_good_token_reply(kind: str, lifetime: float, seconds: float):
    body = token_reply(expires_in=lifetime, token_type=kind, scope=SCOPE, more={"x": 1})
    value = read_token_reply(SCOPE, 200, {}, body)
    assert value == (TOKEN, seconds)
    assert type(value[1]) is float


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (token_reply(expires_in=...), "expires_in is missing or not a number"),
        (token_reply(expires_in=None), "expires_in is missing or not a number"),
        (token_reply(expires_in="3600"), "expires_in is missing or not a number"),
        (token_reply(expires_in=True), "expires_in is missing or not a number"),
        (token_reply(expires_in=[3600]), "expires_in is missing or not a number"),
        (token_reply(expires_in={}), "expires_in is missing or not a number"),
        (token_reply(expires_in=0), "expires_in is 0, which can't be a lifetime"),
        (token_reply(expires_in=-0.0), "expires_in is -0.0, which can't be a lifetime"),
        (token_reply(expires_in=-1), "expires_in is -1, which can't be a lifetime"),
        (token_reply(expires_in=31 * 86400 + 1), "expires_in is 2678401, which can't be a lifetime"),
        (token_reply(expires_in=1e300), r"expires_in is 1e\+300, which can't be a lifetime"),
        (token_reply(expires_in=10**400), "expires_in is 100000000000000000000000000000, which can't be a lifetime"),
        (token_reply(expires_in=float("nan")), "not JSON"),
        (token_reply(expires_in=float("inf")), "not JSON"),
        (token_reply(token_type=...), "token_type is None and not 'Bearer'"),
        (token_reply(token_type="mac"), "token_type is 'mac' and not 'Bearer'"),
        (token_reply(token_type=""), "token_type is '' and not 'Bearer'"),
        (token_reply(token_type=["Bearer"]), r"token_type is \['Bearer'\] and not 'Bearer'"),
        (token_reply(token_type="x" * 9999), "token_type is 'xxx"),
        (token_reply(access_token=...), "access_token is missing"),
        (token_reply(access_token=""), "access_token is missing"),
        (token_reply(access_token=None), "access_token is missing"),
        (token_reply(access_token=5), "access_token is missing"),
        (token_reply(access_token=[TOKEN]), "access_token is missing"),
        (token_reply(access_token=f"{TOKEN}é"), "access_token holds characters"),
        (token_reply(access_token=f"{TOKEN}\r\nX: y"), "access_token holds characters"),
        (token_reply(access_token=f"{TOKEN} x"), "access_token holds characters"),
        (token_reply(access_token=f"{TOKEN}\t"), "access_token holds characters"),
        (token_reply(access_token=f"{TOKEN}\x00"), "access_token holds characters"),
        (token_reply(access_token=f"{TOKEN}\x7f"), "access_token holds characters"),
        (b"[" + token_reply() + b"]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"' + TOKEN.encode() + b'"', "not a JSON object"),
        (b"access_token=" + TOKEN.encode(), "not JSON"),
        (token_reply()[:-1], "not JSON"),
        (HTML, "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_an_invalid_token_reply_is_told_without_the_token(body: bytes, problem: str):
    error = token_error(200, body, {"x-request-id": "r1"})
    assert type(error) is OpenmarketsAuthError
    assert not error.transient
    assert (error.status, error.scope, error.request_id) == (200, SCOPE, "r1")
    message = str(error)
    assert message.startswith(f"The identity server's reply for {SCOPE} is not a token: ")
    with pytest.raises(OpenmarketsAuthError, match=problem):
        raise error
    assert "Check the Identity URL (host)" in message
    assert len(message) < 800
    assert_shows_no_token(error)


@pytest.mark.parametrize("status", [201, 202, 206, 301, 400, 401, 418, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        token_reply(),
        b"[" + token_reply() + b"]",
        token_reply()[:-1],
        b"access_token=" + TOKEN.encode() + b"&token_type=bearer",
        b"<html>access_token: " + TOKEN.encode(),
        token_reply(error="invalid_scope"),
        token_reply(title="x", detail=None),
        token_reply(message="x"),
    ],
    ids=["plain", "list", "broken", "form", "page", "error", "problem", "message"],
)
def test_a_token_in_a_reply_that_should_hold_none_is_not_repeated(status: int, body: bytes):
    assert_shows_no_token(token_error(status, body))


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (400, "invalid_scope", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (400, "unauthorized_client", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (401, "invalid_scope", OpenmarketsScopeNotInPlan, "not in the client's plan"),
        (400, "invalid_client", OpenmarketsInvalidClient, "Client secret.*environment.*client_auth_encoding"),
        (401, "invalid_client", OpenmarketsInvalidClient, "Check Client ID"),
        (401, "invalid_request", OpenmarketsInvalidClient, "Check Client ID"),
        (400, "invalid_request", OpenmarketsAuthError, "invalid_request"),
        (400, "unsupported_grant_type", OpenmarketsAuthError, "unsupported_grant_type"),
        (404, "x", OpenmarketsAuthError, "404 x"),
        (408, "invalid_client", OpenmarketsServerError, "408"),
        (425, "invalid_client", OpenmarketsServerError, "425"),
        (429, "invalid_client", OpenmarketsRateLimited, "429"),
        (500, "invalid_client", OpenmarketsServerError, "500"),
        (503, "invalid_scope", OpenmarketsServerError, "503"),
    ],
)
def test_a_refused_token_is_an_error_of_its_kind(status: int, code: str, kind: type[OpenmarketsError], words: str):
    body = json.dumps({"error": code, "error_description": "because"}).encode()
    with pytest.raises(kind, match=words) as caught:
        read_token_reply(SCOPE, status, {"x-request-id": "r1", "retry-after": "90"}, body)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.request_id) == (status, "r1")
    assert f"refused a token for {SCOPE}: {status} {code}: because." in str(error)
    if isinstance(error, OpenmarketsAuthError):
        assert (error.error, error.error_description, error.scope) == (code, "because", SCOPE)
        assert not error.transient
    else:
        assert (error.title, error.detail, error.retry_after) == (code, "because", 90.0)
        assert error.endpoint == "POST connect/token"
        assert "It asks to wait 90 s." in str(error)
        assert error.transient


def test_what_an_identity_server_says_ends_in_one_full_stop():
    body = json.dumps({"error": "invalid_scope", "error_description": "Not in your plan."}).encode()
    with pytest.raises(OpenmarketsScopeNotInPlan, match=r"invalid_scope: Not in your plan\. This API"):
        read_token_reply(SCOPE, 400, {}, body)


@pytest.mark.parametrize(("status", "kind"), [(401, OpenmarketsInvalidClient), (403, OpenmarketsInvalidClient)])
def test_a_refusal_without_a_reason_is_about_the_client(status: int, kind: type[OpenmarketsError]):
    error = token_error(status)
    assert type(error) is kind
    assert "no reason given" in str(error)
    assert (error.error, error.error_description, error.request_id) == (None, None, None)


@pytest.mark.parametrize("status", [201, 302, 400, 404])
def test_what_no_token_endpoint_would_say_points_at_the_identity_url(status: int):
    error = token_error(status, HTML)
    assert type(error) is OpenmarketsAuthError
    assert "Check the Identity URL (host)" in str(error)
    assert error.error is None


@pytest.mark.parametrize("body", [b'{"title":"Not Found","detail":"No route"}', b'{"message":"Not Found"}'])
def test_words_that_are_not_of_oauth_are_no_oauth_error_code(body: bytes):
    error = token_error(404, body)
    assert error.error is None
    assert "Not Found" in str(error)


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
WORDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (
            "error",
            "error_description",
            "title",
            "detail",
            "message",
            "access_token",
            "expires_in",
            "token_type",
        ),
        JSON,
    ),
)
BODIES = st.binary() | (JSON | WORDS).map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(st.sampled_from(["retry-after", "x-request-id", "content-type"]), st.text())
STATUSES = st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 408, 429, 500, 503]) | st.integers(0, 999)


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


@given(STATUSES, HEADERS, BODIES)
def test_any_token_reply_is_a_token_or_a_typed_error(status: int, headers: dict[str, str], body: bytes):
    try:
        value, lifetime = read_token_reply(SCOPE, status, headers, body)
    except (OpenmarketsAuthError, OpenmarketsRateLimited, OpenmarketsServerError) as error:
        assert error.status == status  # noqa: PT017 - any other error fails the test
        assert str(error).isprintable()  # noqa: PT017
        assert len(str(error)) < 3000  # noqa: PT017
        return
    assert status == 200
    assert value.isascii()
    assert value.isprintable()
    assert 0 < lifetime <= 31 * 86400


# What a server repeats of a request


def escaped(text: str) -> str:
    """Write every character of a text as JSON allows to."""
    return "".join(f"\\u{ord(character):04X}" for character in text)


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
    told = {name: text.replace("%s", write(sent)) for name, text in headers.items()}
    answer = body.replace("%s", write(sent)).encode()
    if status == 200:
        answer = b"x" + answer
    with pytest.raises(OpenmarketsApiError) as caught:
        read_reply(CALL, status, told, answer, "sent-id", {"Authorization": sent})
    shown = f"{caught.value} {caught.value.as_dict()}"
    assert REPEATED not in shown
    assert write(REPEATED) not in shown
    if "%s" in body:
        assert "***" in shown


def test_what_is_to_be_hidden_and_goes_on_behind_what_is_shown_is_hidden_whole():
    secret = "s" * 4000
    body = b"<p>" + b"-" * 450 + escaped(secret).encode()
    with pytest.raises(OpenmarketsError) as caught:
        read_token_reply(SCOPE, 400, {}, body, [secret])
    assert "---***" in str(caught.value)
    assert escaped("s") not in str(caught.value)


def test_escapes_are_shown_as_they_are_where_nothing_is_to_be_hidden():
    error = token_error(400, rb"C:\\u0041 \/ is missing")
    assert rb"C:\\u0041 \/ is missing".decode() in str(error)
