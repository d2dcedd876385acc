"""Data that are nearly right: valid JSON that is changed here and there, as data, as text and as bytes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st


class Literal(str):
    """Appears in JSON unchanged, valid or not."""

    __slots__ = ()


class Twice:
    """A value of an object whose key comes twice."""

    def __init__(self, first: Any, second: Any) -> None:
        self.values = (first, second)


LITERALS = [
    *("1e400", "-1e400", "1e999999999", "1E-999999999", "1e99999999999999999999", "0.1e-400", "-0", "-0.0", "1.0"),
    *("NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "0x10", "1_000", "tru", "undefined", ""),
    *("18446744073709551615", "18446744073709551616", "-9223372036854775809", "9" * 400, "9" * 4299, "9" * 5000),
    *("0." + "1" * 400, "1" * 60 + "." + "1" * 60, "1e60", "1e-60", "1.5e18", "1e18", "123456789012345678901e-3"),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\x"', '"\n"', '"', "'a'", '"a" "b"'),
    *("[" * 900 + "]" * 900, "[" * 3000 + "]" * 3000, "[" * 20_000, '{"a":' * 1500 + "1" + "}" * 1500, "[1,]", "{1:2}"),
]
TEXTS = [
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "é" * 300, "x" * 5000, "🦘", "\r\nX-A: b"),
    *("null", "None", "true", "***", "NaN", "-1", "1e400", "{{ x }}", "${jndi}", "%00", "%2e%2e%2f", "../../x", "//h"),
    *("2026-01-05", "2026-01-05T10:00:00", "2026-01-05T10:00:00+11:00", "2026-01-05T10:00:00.123456789Z", "20260105"),
    *("0001-01-01T00:00:00", "0001-01-01", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59-23:59", "2026-W01-1"),
    *("2026-02-30", "2026-04-05T02:30:00", "2026-10-04T02:30:00", "2026-01-05T24:00:00", "1899-12-31", "2200-01-01"),
    *("BHP", "BHP.ASX", "BHP.ASX@TM", "bhp", "BHP.ASX@TM@TM", "B/H", "İ", "ß.ß", "*", "ACTIVE", "DENIED"),
    *("%" + "25" * 2000, "%" + "25" * 5000, "[" * 5000, "(" * 5000, "a." * 5000 + "a", "'" * 3001, "\\" * 3001),
]

texts = st.sampled_from(TEXTS) | st.text(max_size=30)
numbers = st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
"""Any JSON, as data; texts may hold what can't be encoded."""
literals = st.sampled_from(LITERALS).map(Literal)
python_values = st.one_of(
    values,
    st.sampled_from([float("nan"), float("inf"), 10**400, -(10**4000), b"bytes", object(), {1, 2}, (), {}]),
    st.dictionaries(scalars, scalars, max_size=2),
    st.integers(1, 60).map(lambda depth: nested(depth)),
)
"""Whatever a template that gives Python's own objects, or an XCom, may hold."""


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def write(value: Any) -> bytes:
    """Write JSON with raw literals and duplicate keys."""
    return "".join(_written(value)).encode("utf-8", "surrogatepass")


def _written(value: Any) -> Iterator[str]:
    if isinstance(value, Literal):
        yield str(value)
    elif isinstance(value, dict):
        yield "{"
        comma = ""
        for key, item in value.items():
            for each in item.values if isinstance(item, Twice) else [item]:
                yield f"{comma}{json.dumps(key)}:"
                yield from _written(each)
                comma = ","
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for number, item in enumerate(value):
            yield "," if number else ""
            yield from _written(item)
        yield "]"
    elif isinstance(value, Twice):
        yield from _written(value.values[0])
    else:
        # What a server that escapes nothing would send.
        yield json.dumps(value, ensure_ascii=False)


@st.composite
def changed(draw: st.DrawFn, valid: Any, others: st.SearchStrategy[Any] = values, most: int = 3) -> Any:
    """Return JSON that differs from valid one in a few places."""
    made = deepcopy(valid)
    for _ in range(draw(st.integers(0, most))):
        made = _change(draw, made, others)
    return made


def _change(draw: st.DrawFn, value: Any, others: st.SearchStrategy[Any]) -> Any:
    inner = isinstance(value, dict | list) and bool(value)
    if not inner or draw(st.integers(0, 3)) == 0:
        return draw(st.one_of(others, st.just([value]), st.just({"value": value})))
    if isinstance(value, dict):
        name = draw(st.sampled_from(list(value)))
        match draw(st.sampled_from(["into", "into", "into", "drop", "twice", "add"])):
            case "drop":
                return {key: item for key, item in value.items() if key != name}
            case "twice":
                return value | {name: Twice(value[name], draw(others))}
            case "add":
                return value | {draw(texts): draw(others)}
        return value | {name: _change(draw, value[name], others)}
    at = draw(st.integers(0, len(value) - 1))
    match draw(st.sampled_from(["into", "into", "into", "drop", "twice", "many"])):
        case "drop":
            return value[:at] + value[at + 1 :]
        case "twice":
            return [*value, value[at]]
        case "many":
            return value * draw(st.integers(1, 20))
    return [*value[:at], _change(draw, value[at], others), *value[at + 1 :]]


@st.composite
def bodies(draw: st.DrawFn, valid: Any) -> bytes:
    """Return the bytes of a reply: JSON that is nearly right, often written or sent wrongly."""
    written = write(draw(changed(valid, values | literals)))
    match draw(st.sampled_from(["as it is"] * 6 + ["cut", "flip", "insert", "utf-16", "bom", "gzip", "any", "long"])):
        case "cut":
            return written[: draw(st.integers(0, len(written)))]
        case "flip":
            at = draw(st.integers(0, max(0, len(written) - 1)))
            return written[:at] + bytes([draw(st.integers(0, 255))]) + written[at + 1 :]
        case "insert":
            at = draw(st.integers(0, len(written)))
            return written[:at] + draw(st.binary(max_size=8)) + written[at:]
        case "utf-16":
            return written.decode("utf-8", "replace").encode("utf-16")
        case "bom":
            return b"\xef\xbb\xbf" + written
        case "gzip":
            return gzip.compress(written)
        case "any":
            return draw(st.binary(max_size=200))
        case "long":
            return written + b" " * 20_000
    return written


def bomb(size: int) -> bytes:
    """Return gzip that unpacks to a number of bytes, with a thousandth of the size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


http_statuses = st.sampled_from(
    [200, 201, 204, 302, 304, 400, 401, 403, 404, 408, 410, 425, 429, 500, 502, 503, 504, 599]
)
retry_afters = st.one_of(
    st.sampled_from(
        ["0", "1", "5.5", "-1", "1e3", "9" * 90, "9" * 400, "٣", "²", " 7 ", "0x10", "nan", "inf", "\t", ";"]
    ),
    st.sampled_from(
        [
            "Wed, 21 Oct 2026 07:28:00 GMT",
            "Wed, 21 Oct 2026 07:28:00 +9999",
            "Wed, 21 Oct 2026 07:28:00 -2400",
            "Wed, 31 Feb 2026 25:61:61 GMT",
            "Fri, 31 Dec 9999 23:59:59 -2359",
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "21 Oct 2026",
            ",,,, :: --",
        ]
    ),
    st.from_regex(
        r"[A-Z][a-z]{2}, [0-9]{1,5} [A-Z][a-z]{2} [0-9]{1,6} [0-9:. ]{0,12} [A-Z+-][A-Z0-9]{0,6}", fullmatch=True
    ),
    st.text('0123456789 :,.+-GMTUJanFeb()"\\', max_size=40),
    st.text(max_size=120),
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "x-request-id": texts,
        "retry-after": retry_afters,
        "content-type": texts,
        "location": texts,
    },
)
