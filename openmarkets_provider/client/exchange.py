"""One call: sending it, its retries, and reading its reply. The whole retry policy is here."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from openmarkets_provider.client.http.clients import NoAnswer, Reply
from openmarkets_provider.client.http.replies import (
    doubt,
    read_reply,
    unreadable_reply,
    wrong_contents,
)
from openmarkets_provider.client.io import Group, Io, PacedIo
from openmarkets_provider.client.metrics import Metrics
from openmarkets_provider.client.pulled import Pulled
from openmarkets_provider.client.ratelimit.hold import DEFAULT_HOLD, MAX_SPREAD, Holds, OnHold, spread
from openmarkets_provider.exceptions import (
    OpenmarketsError,
    OpenmarketsInvalidResponse,
    OpenmarketsNotFound,
    OpenmarketsRateLimited,
)
from openmarkets_provider.query.plan import ApiCall

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
MAX_SERVER_WAIT = 60.0
"""Longest ``Retry-After`` in seconds that a call waits for; for a longer one it fails."""
MAX_WAIT = MAX_SERVER_WAIT + MAX_SPREAD
"""Longest pause in seconds: the wait that a server asks for, plus the random spread."""
MAX_HOLD_WAIT = 5 * MAX_SERVER_WAIT
"""Longest total time in seconds that one call waits for holds, while the API keeps answering 429."""
MANY_RECORDS = 100
"""Parsing more records takes a millisecond or longer, and is done outside the event loop."""
_COME_BACK = 2 * MAX_SERVER_WAIT
_FIRST_WAIT = 0.5

T = TypeVar("T")


def pause(error: OpenmarketsError, attempt: int, *, safe_to_repeat: bool) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up. Pure.

    :param error: the error of the attempt.
    :param attempt: 1 for the first.
    :param safe_to_repeat: a fact of the endpoint. If False, a call is sent again only if it certainly did not leave
        this machine.
    """
    if not error.transient or attempt >= MAX_ATTEMPTS or (error.sent and not safe_to_repeat):
        return None
    retry_after = error.retry_after
    if retry_after is not None and retry_after > MAX_SERVER_WAIT:
        return None
    backoff: float = _FIRST_WAIT * 2 ** (attempt - 1)
    # Not for cryptography: it spreads the retries of tasks that failed together.
    jitter: float = random.uniform(0.5, 1.0)  # noqa: S311
    if isinstance(error, OpenmarketsRateLimited):
        retry_after = DEFAULT_HOLD if retry_after is None else retry_after
        return retry_after + spread(retry_after)
    if retry_after is None:
        return backoff * jitter
    return retry_after + backoff * (jitter - 0.5)


class Received(NamedTuple):
    """The reply to a call.

    :ivar json: the body; None if it is empty.
    :ivar request_id: as echoed by the reply; otherwise as sent.
    :ivar hidden: texts that an error must not show.
    """

    json: Any
    status: int
    request_id: str
    hidden: tuple[str, ...]

    def explain(self, error: OpenmarketsError) -> OpenmarketsError:
        """Return an error; if it is about the contents of this reply, with its request id and the server's words."""
        if not isinstance(error, OpenmarketsInvalidResponse) or error.request_id is not None:
            return error
        return wrong_contents(error, self.json, self.status, self.request_id, self.hidden)


class Exchange:
    """Sends calls over an Io, with retries.

    :param holds: logs and counts the waits for a hold.
    :param metrics: counts requests and retries.
    :param pulled: has the replies of earlier attempts, and stores new ones. It blocks.
    """

    def __init__(self, io: Io, holds: Holds, metrics: Metrics, pulled: Pulled | None = None) -> None:
        self._io = io
        self._holds = holds
        self._metrics = metrics
        self._pulled = pulled

    def for_group(self, group: Group[Any]) -> Exchange:
        """Return an exchange for the calls of one run, which limits them to the slots of the run's group."""
        return Exchange(PacedIo(self._io, group), self._holds, self._metrics, self._pulled)

    def with_pulled(self, pulled: Pulled | None) -> Exchange:
        """Return an exchange that stores its replies, and does not send a call that has one."""
        return Exchange(self._io, self._holds, self._metrics, pulled)

    @property
    def earlier(self) -> int:
        """Number of calls that were answered in an earlier attempt."""
        return 0 if self._pulled is None else self._pulled.earlier

    def forget(self, call: ApiCall) -> None:
        """Forget the reply to a call that fails the run, so that the next attempt sends it again."""
        if self._pulled is not None:
            self._pulled.forget(call)

    async def ask(self, call: ApiCall) -> Any:
        """Send a call as :meth:`receive`, and return the JSON of the reply."""
        return (await self.receive(call)).json

    async def receive(self, call: ApiCall) -> Received:
        """Send a call, and return the reply.

        :raises OpenmarketsError: the call failed. The error is not transient if the call may have been carried out and
            is not safe to repeat.
        """
        if self._pulled is not None and (reply := self._pulled.find(call)) is not None:
            return _read(call, reply, "")
        return await self.persist(lambda: self.attempt(call), safe_to_repeat=call.safe_to_repeat)

    async def compute(self, records: int, work: Callable[[], T]) -> T:
        """Process the records of a reply, and return the result.

        :param records: their number. For a few, another thread is not worth its cost.
        """
        return await self._io.compute(work) if records > MANY_RECORDS else work()

    async def persist(self, attempt: Callable[[], Awaitable[T]], *, safe_to_repeat: bool) -> T:
        """Make attempts until one succeeds or the retry policy gives up."""
        number = 0
        while True:
            number += 1
            try:
                return await attempt()
            except OpenmarketsError as error:
                wait = pause(error, number, safe_to_repeat=safe_to_repeat)
                if wait is None:
                    if error.sent and not safe_to_repeat:
                        # Callers that retry transient errors must not retry this one.
                        error.transient = False
                    raise
                log.info("%s Trying again in %.1f s (attempt %d failed).", error, wait, number)
                self._metrics.count(f"retries.{getattr(error, 'status', None) or 'transport'}")
                rate_limited = isinstance(error, OpenmarketsRateLimited)
            await self._io.sleep(wait, rate_limited=rate_limited)

    async def attempt(self, call: ApiCall) -> Received:
        """Send a call once, and read its reply.

        :raises OpenmarketsError: the call failed.
        """
        request_id = str(uuid.uuid4())
        reply = await self._send(call, request_id)
        try:
            received = _read(call, reply, request_id)
        except OpenmarketsError as error:
            await self._note(call, error)
            if isinstance(error, OpenmarketsNotFound):
                self._store(call, reply, request_id)
            raise
        self._store(call, reply, received.request_id)
        return received

    def _store(self, call: ApiCall, reply: Reply, request_id: str) -> None:
        if self._pulled is not None:
            self._pulled.add(call, reply, request_id)

    async def _note(self, call: ApiCall, error: OpenmarketsError) -> None:
        """Record that the reply is an error. Share a 429 with all callers."""
        error.sent = True
        if isinstance(error, OpenmarketsRateLimited):
            await self._io.record_hold(call.api, error.retry_after)

    async def _send(self, call: ApiCall, request_id: str) -> Reply:
        try:
            reply = await self._send_when_free(call, request_id)
        except NoAnswer as error:
            self._metrics.sent(call.label, request_id, None)
            advice = f" [request id {request_id}]{doubt(call) if error.sent else ''}"
            raise error.explain(call.label, advice, request_id) from error.__cause__
        except OpenmarketsInvalidResponse as error:
            self._metrics.sent(call.label, request_id, error.status)
            failure = unreadable_reply(call, error, request_id)
            await self._note(call, failure)
            raise failure from None
        self._metrics.sent(call.label, request_id, reply.status)
        return reply

    async def _send_when_free(self, call: ApiCall, request_id: str) -> Reply:
        """Send a call as soon as its API is not on hold. These waits do not count as attempts.

        :raises OpenmarketsRateLimited: the hold is too long to wait for.
        """
        waited = 0.0
        while True:
            try:
                return await self._io.send(call, request_id)
            except OnHold as hold:
                left = hold.seconds
            wait = left + spread(left)
            if left > MAX_SERVER_WAIT:
                problem, later = f"asked another call to wait (429), and {left:.0f} s of that are left", left
            elif waited + wait > MAX_HOLD_WAIT:
                problem, later = f"has answered other calls with 429 for {waited:.0f} s", _COME_BACK
            else:
                self._holds.report_wait(call.api, left, wait)
                await self._io.sleep(wait, rate_limited=True)
                waited += wait
                continue
            raise OpenmarketsRateLimited(
                f"{call.label}: not sent: the {call.api} API {problem}.",
                status=429,
                endpoint=call.label,
                retry_after=later + spread(later),
                on_hold=True,
            )


def _read(call: ApiCall, reply: Reply, request_id: str) -> Received:
    """Read a reply.

    :param request_id: as sent. If the reply echoes another one, that one is used.
    """
    json = read_reply(call, reply.status, reply.headers, reply.body, request_id, reply.hidden)
    return Received(json, reply.status, reply.headers.get("x-request-id") or request_id, reply.hidden)
