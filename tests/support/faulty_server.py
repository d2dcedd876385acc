"""The server for benchmarks, failing at one request in ten in every way that servers fail, and counting all it does.

Which requests fail is decided by what they ask for and not by chance: of every ten different ones it is the turn of
one, and of each kind of fault in turn. A fault strikes the first attempt, so that a call that is sent again is
answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
from collections import Counter
from typing import Any
from urllib.request import urlopen

from tests.support.bulk_server import COUNTS, LOGIN, SERIES, TOKEN, RequestProtocol, answer, reply
from tests.support.process import ServerProcess

WRITES = "/orders/v4"
FAULTS = (
    *("500", "502", "503", "503 at once", "504", "408", "dropped", "cut", "slow"),
    *("half gzip", "401 for an expired token", "reset later"),
)
"""What comes in turn."""
RARE = {"429": 6001, "429 at once": 1201, "not JSON": 4001, "wrong type": 7001}
"""What slows a whole run down, or ends it, comes to the first of so many requests each."""
WRITE_FAULTS = (*FAULTS, "429 at once", "not JSON", "wrong type", "400")
SLOW = 0.3


class FaultyServer(ServerProcess):
    """Runs the server in a separate process, on a free port of loopback."""

    def __init__(self) -> None:
        super().__init__("tests.support.faulty_server")

    def has_started(self) -> bool:
        self.url = self._process.stdout.readline().strip()
        return bool(self.url)

    def counts(self) -> dict[str, Any]:
        """Return how many requests there were by what they were answered with, and how often each write came."""
        with urlopen(f"{self.url}{COUNTS}", timeout=30) as response:
            counts: dict[str, Any] = json.load(response)
        return counts


class _State:
    """What the server knows, over all connections."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.seen: set[bytes] = set()
        self.reads = self.written = self.issued = 0
        self.valid: str | None = None
        self.replaced = False

    def counts(self) -> dict[str, Any]:
        return {"answers": self.answers, "tokens": self.tokens, "writes": self.writes, "refused": self.refused}

    def token(self) -> tuple[str, bytes]:
        """Answer a request for a token; the first one and every one after a refusal fail once."""
        self.issued += 1
        if self.issued % 2:
            return "503 at once", reply(503, b"").replace(b"\r\n", b"\r\nRetry-After: 0\r\n", 1)
        self.valid = f"token-{self.issued}"
        return "200", reply(
            200, json.dumps({"access_token": self.valid, "expires_in": 3600, "token_type": "Bearer"}).encode()
        )

    def fault(self, method: str, target: str, body: bytes) -> str | None:
        """Return what goes wrong with a request, if anything does."""
        identity = f"{method} {target} ".encode() + body
        if identity in self.seen:
            return None
        self.seen.add(identity)
        if method == "POST" and target == WRITES:
            self.written += 1
            turn, kinds = divmod(self.written, 10)[0], WRITE_FAULTS
            number = self.written
        else:
            self.reads += 1
            number, turn, kinds = self.reads, self.reads // 10, FAULTS
            for kind, every in RARE.items():
                if number % every == 0:
                    return kind
        kind = kinds[turn % len(kinds)] if number % 10 == 0 else None
        if kind == "401 for an expired token":
            # A replacement that is refused as well would be left alone for a while.
            if self.replaced:
                return "500"
            self.replaced, self.valid = True, None
        return kind


class _Connection(RequestProtocol):
    def __init__(self, state: _State) -> None:
        super().__init__()
        self._state = state

    def requested(self, method: str, target: str, authorization: str, body: bytes) -> None:
        if target == COUNTS:
            self._transport.write(reply(200, json.dumps(self._state.counts()).encode()))
            self._transport.close()
        elif target == LOGIN:
            kind, answered = self._state.token()
            self._state.tokens[kind] += 1
            self._transport.write(answered)
        else:
            self._answer(method, target, authorization, body)

    def _answer(self, method: str, target: str, authorization: str, body: bytes) -> None:
        state = self._state
        kind = state.fault(method, target, body)
        if state.valid is None or authorization != f"Bearer {state.valid}":
            kind = "401 for an expired token"
        if method == "POST" and target == WRITES:
            (state.refused if kind and kind.startswith("401") else state.writes)[json.loads(body)["notes"]] += 1
        state.answers[kind or "200"] += 1
        good = self._good(method, target, body)
        match (kind or "200").split():
            case ["401", *_]:
                self._transport.write(reply(401, b""))
            case [status, *asks] if status.isdigit() and status != "200":
                refusal = reply(int(status), b'{"message": "a fault"}')
                self._transport.write(refusal.replace(b"\r\n", b"\r\nRetry-After: 0\r\n", 1) if asks else refusal)
            case ["dropped"]:
                self._transport.abort()
            case ["reset", "later"]:
                self._transport.write(good[:40])
                raw: socket.socket = self._transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()
            case ["cut"]:
                self._transport.write(good[:-5])
                self._transport.close()
            case ["half", "gzip"]:
                # Starts as gzip does, and ends.
                content = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
                self._transport.write(reply(503, content).replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1))
            case ["not", "JSON"]:
                self._transport.write(reply(200, b"<html>It works.</html>"))
            case ["wrong", "type"]:
                self._transport.write(reply(200, b'[{"openPrice": "a lot"}]'))
            case ["slow"]:
                asyncio.get_running_loop().call_later(SLOW, self._transport.write, good)
            case _:
                self._transport.write(good)

    def _good(self, method: str, target: str, body: bytes) -> bytes:
        if method == "POST" and target == WRITES:
            return reply(200, b'{"orderNumber": 1}')
        if target.startswith(SERIES):
            return reply(200, bars_of(target.removeprefix(SERIES).partition(".")[0]))
        return answer(method, target, f"Bearer {TOKEN}", body)


def volume_of(code: str, day: int) -> int:
    """Return the volume of a bar, which no other security has."""
    return int(code[1:]) * 10 + day


def bars_of(code: str) -> bytes:
    """Return three daily bars of a security such as S0042."""
    bars = [
        {
            **dict.fromkeys(("openPrice", "highPrice", "lowPrice", "closePrice"), 4000 + day),
            "totalVolume": volume_of(code, day),
            "timeSeriesDate": f"2026-03-0{day}",
        }
        for day in (2, 3, 4)
    ]
    return json.dumps(bars).encode()


async def serve() -> None:
    """Serve until the process is ended; the URL is printed first."""
    state = _State()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    asyncio.run(serve())
