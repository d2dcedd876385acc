"""Bodies of replies, good and bad."""

from __future__ import annotations

import json

from hypothesis import strategies as st

DEEP = b"[" * 200_000
HTML = b"<!DOCTYPE html>\n<html>Please log in</html>"
NOT_JSON = [
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
]
"""What a lax decoder would take, among others."""
LONG_WORDS = {
    "text": b"x" * 100_000,
    "two bytes": "é".encode() * 100_000,
    "four bytes": "\U0001f4c8".encode() * 100_000,
    "deep": DEEP,
    "problem": json.dumps({"title": "x" * 9999, "detail": "y" * 9999}).encode(),
    "blank": json.dumps({"message": "\n" * 9999}).encode(),
    "list": json.dumps(["x" * 9999]).encode(),
}
FORGERIES = ["\n", "\r", "\x1b", "\x00", "\u2028", "\u202e", "\x85", "\t", "\u200b"]
"""What could forge a line of a log."""

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


def escaped(text: str) -> str:
    """Write every character of a text as JSON allows to."""
    return "".join(f"\\u{ord(character):04X}" for character in text)
