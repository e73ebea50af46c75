"""Calls over HTTP: a list of them, one of them, its deletion, and a WebSocket to look on.

Who may is not decided here; see ``docs/api.md`` for what is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, NamedTuple, cast

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamer.call import ROLES
from streamer.call_views import (
    CallView,
    call_json,
    turns_csv,
    view_of_kept,
    view_of_live,
    watched_json,
)
from streamer.dialects import CloseCode
from streamer.events import Summary
from streamer.hub import Hub
from streamer.kept import CallFilter, KeptCall, KeptEvent, StoreError
from streamer.records import CallEvent, CallSnapshot
from streamer.store import Store

_STATES = ("live", "parked", "ended")
_DEFAULT_LIMIT, _MAX_LIMIT = 50, 500
_MAX_GOING_ON = 10_000
"""Calls that have not ended: far more than a process hears."""
_EVENTS_AT_ONCE = 1000
_RETRY_S = 10
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""What people felt is nothing for a cache."""


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: of the HTTP response.
        code: for programs.
        found: what there was.
        expected: what there should have been.
    """

    def __init__(self, status: int, code: str, found: str, expected: str) -> None:
        super().__init__(f"{found}: expected {expected}")
        self.status = status
        self.code = code
        self.found, self.expected = found[:200], expected

    def body(self) -> dict[str, Any]:
        """Return what the client gets."""
        return {
            "type": "error",
            "code": self.code,
            "message": f"found {self.found}: expected {self.expected}",
            "found": self.found,
            "expected": self.expected,
        }


class _Question(NamedTuple):
    """What a list is asked for."""

    state: str | None
    wanted: CallFilter
    limit: int


def api_routes(
    hub: Hub, store: Store | None = None, *, send_timeout_s: float = 30.0
) -> list[BaseRoute]:
    """Return the routes that show calls.

    Args:
        hub: the calls that go on.
        store: those that were; None where none are kept.
        send_timeout_s: how long a watcher may read nothing before it is dropped.
    """
    api = _Api(hub, store, send_timeout_s)
    return [
        Route("/v1/calls", _answering(api.calls), methods=["GET"]),
        Route("/v1/calls/{session}", _answering(api.call), methods=["GET"]),
        Route("/v1/calls/{session}", _answering(api.delete), methods=["DELETE"]),
        Route("/v1/watch", _answering(api.upgrade_required), methods=["GET"]),
        WebSocketRoute("/v1/watch", api.watch),
    ]


class _Api:
    def __init__(self, hub: Hub, store: Store | None, send_timeout_s: float) -> None:
        self._hub = hub
        self._store = store
        self._send_timeout_s = send_timeout_s

    # Answers

    async def calls(self, request: Request) -> Response:
        """Calls, newest first, a page at a time."""
        question = _question(request.query_params)
        views = await self._find(question)
        page, rest = views[: question.limit], views[question.limit :]
        cursor = _cursor_of(*page[-1][0]) if rest else None
        return _json({"calls": [view for _, view in page], "next_cursor": cursor})

    async def call(self, request: Request) -> Response:
        """One call, as JSON or CSV."""
        session, is_csv = request.path_params["session"], False
        if session.endswith(".csv"):
            session, is_csv = session.removesuffix(".csv"), True
        query = _parameters(request.query_params, "events", "format")
        _one_of(query, "events", ("all",))
        form = _one_of(query, "format", ("json", "csv"))
        is_csv |= form == "csv" or (form is None and _prefers_csv(request))
        kept = None if self._store is None else await self._store.call(session)
        snapshot = self._live().get(session)
        view = self._view(kept, snapshot)
        if view is None:
            raise _unknown(session)
        events = await self._events(kept)
        if is_csv:
            turns = [] if snapshot is None else list(snapshot.turns.values())
            return Response(
                turns_csv(view, events, turns),
                media_type="text/csv; charset=utf-8; header=present",
                headers=_HEADERS | {"content-disposition": _attachment(view)},
            )
        body = call_json(view, events, snapshot)
        if "events" not in query or kept is None:
            return Response(body, media_type="application/json", headers=_HEADERS)
        whole = self._with_events(body, session)
        return StreamingResponse(whole, media_type="application/json", headers=_HEADERS)

    async def delete(self, request: Request) -> Response:
        """A call is kept no longer."""
        session = request.path_params["session"]
        _parameters(request.query_params)
        kept = None if self._store is None else await self._store.call(session)
        snapshot = self._live().get(session)
        if snapshot is not None or (kept is not None and kept.ended_at is None):
            raise ApiError(409, "call_not_ended", f"call {session!r} going on", "one that ended")
        if self._store is None or not await self._store.delete(session):
            raise _unknown(session)
        return Response(status_code=204, headers=_HEADERS)

    async def upgrade_required(self, request: Request) -> Response:
        """A plain GET of what is a WebSocket."""
        error = ApiError(426, "upgrade_required", "a plain HTTP request", "a WebSocket handshake")
        return _json(error.body(), 426, {"upgrade": "websocket", "connection": "upgrade"})

    async def watch(self, websocket: WebSocket) -> None:
        """Show all calls, or one, until the watcher goes or that call is over."""
        with suppress(WebSocketDisconnect, TimeoutError, OSError, RuntimeError):
            await websocket.accept()
            try:
                session = _parameters(websocket.query_params, "call").get("call")
                if session is not None and session not in self._live():
                    raise ApiError(404, "unknown_call", f"call {session!r}", "one that goes on")
            except ApiError as error:
                await self._refuse_watcher(websocket, error)
                return
            showing = asyncio.create_task(self._show(websocket, session))
            hearing = asyncio.create_task(self._hear(websocket))
            try:
                await asyncio.wait({showing, hearing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (showing, hearing):
                    task.cancel()
                ended = await asyncio.gather(showing, hearing, return_exceptions=True)
            for outcome in ended:
                if isinstance(outcome, ApiError):
                    await self._refuse_watcher(websocket, outcome)
                elif isinstance(outcome, Exception):
                    raise outcome

    # What they are made of

    async def _find(self, question: _Question) -> list[tuple[tuple[float, str], CallView]]:
        """Calls by start and session, newest first: those asked for and one more, if there are."""
        live = self._live()
        found: dict[str, tuple[tuple[float, str], CallView]] = {}
        if self._store is not None:
            is_of_few = question.state in ("live", "parked")
            limit = _MAX_GOING_ON if is_of_few else question.limit + 1
            for kept in await self._store.calls(question.wanted, limit):
                view = self._view(kept, live.get(kept.session))
                assert view is not None
                found[kept.session] = (kept.started_at, kept.session), view
        for session, snapshot in live.items():
            if session not in found and _is_wanted(snapshot, question.wanted):
                place = snapshot.record.started_at, session
                found[session] = place, view_of_live(snapshot)
        views = [item for item in found.values() if question.state in (None, item[1].state)]
        return sorted(views, key=lambda item: item[0], reverse=True)[: question.limit + 1]

    def _live(self) -> dict[str, CallSnapshot]:
        return {snapshot.record.session: snapshot for snapshot in self._hub.calls()}

    def _view(self, kept: KeptCall | None, snapshot: CallSnapshot | None) -> CallView | None:
        if snapshot is not None:
            return view_of_live(snapshot, kept)
        if kept is None:
            return None
        may_return = self._store is not None and self._store.is_left(kept.session)
        return view_of_kept(kept, may_return=may_return)

    async def _events(self, kept: KeptCall | None) -> list[KeptEvent]:
        if kept is None or self._store is None:
            return []
        return await self._store.events(kept.session, but_emotions=True)

    async def _with_events(self, body: bytes, session: str) -> AsyncIterator[bytes]:
        """Add all events to a JSON object, some at a time: a day's call is no answer at once."""
        assert self._store is not None
        yield body[:-1] + b',"events":['
        last_seq, comma = -1, ""
        while events := await self._store.events(
            session, after_seq=last_seq, limit=_EVENTS_AT_ONCE
        ):
            yield (comma + ",".join(event.json for event in events)).encode()
            last_seq, comma = events[-1].seq, ","
        yield b"]}"

    async def _show(self, websocket: WebSocket, session: str | None) -> None:
        watched = cast(Any, self._hub.watch(session))
        async with aclosing(watched) as items:
            async for item in items:
                async with asyncio.timeout(self._send_timeout_s):
                    await websocket.send_text(watched_json(item))
                is_last = isinstance(item, CallEvent) and isinstance(item.event, Summary)
                if session is not None and is_last:
                    await websocket.close(CloseCode.NORMAL)
                    return

    async def _hear(self, websocket: WebSocket) -> None:
        """Wait until the watcher leaves; it has nothing to say."""
        message = await websocket.receive()
        if message["type"] != "websocket.disconnect":
            raise ApiError(400, "bad_message", "a message from a watcher", "none: it only looks on")

    async def _refuse_watcher(self, websocket: WebSocket, error: ApiError) -> None:
        async with asyncio.timeout(self._send_timeout_s):
            await websocket.send_text(json.dumps(error.body()))
            await websocket.close(CloseCode.POLICY, error.code)


def _answering(
    answer: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Say in JSON why there is no answer."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request)
        except ApiError as error:
            return _json(error.body(), error.status)
        except (StoreError, msgspec.DecodeError) as error:
            unavailable = ApiError(503, StoreError.code, str(error), "a store that can be used")
            return _json(unavailable.body(), 503, {"retry-after": str(_RETRY_S)})

    return endpoint


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(body),
        status,
        media_type="application/json",
        headers=_HEADERS | (headers or {}),
    )


def _unknown(session: str) -> ApiError:
    return ApiError(404, "unknown_call", f"call {session!r}", "the session of a live or kept call")


def _attachment(view: CallView) -> str:
    name = "".join(sign for sign in view.session if sign.isascii() and sign.isalnum())
    return f'attachment; filename="call-{name}.csv"'


# What is asked


def _parameters(query: QueryParams, *allowed: str) -> dict[str, str]:
    """The query's parameters, each once."""
    given = query.multi_items()
    for name, _ in given:
        if name not in allowed:
            known = " or ".join(allowed) or "none"
            raise ApiError(400, "bad_parameter", f"parameter {name!r}", known)
        if len(query.getlist(name)) > 1:
            raise ApiError(400, "bad_parameter", f"parameter {name!r} twice", "it once")
    return dict(given)


def _one_of(query: dict[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    value = query.get(name)
    if value is not None and value not in allowed:
        raise ApiError(400, "bad_parameter", f"{name} {value!r}", " or ".join(allowed))
    return value


def _question(parameters: QueryParams) -> _Question:
    query = _parameters(parameters, "state", "call_id", "label", "role", "since", "limit", "cursor")
    state = _one_of(query, "state", _STATES)
    wanted = CallFilter(
        is_ended=None if state is None else state == "ended",
        call_id=query.get("call_id"),
        label=query.get("label"),
        role=_one_of(query, "role", ROLES),
        since_s=_since(query["since"]) if "since" in query else None,
        before=_place_of(query["cursor"]) if "cursor" in query else None,
    )
    limit = query.get("limit", str(_DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _MAX_LIMIT):
        raise ApiError(400, "bad_parameter", f"limit {limit!r}", f"1 to {_MAX_LIMIT}")
    return _Question(state, wanted, int(limit))


def _since(text: str) -> float:
    """Unix time of an ISO 8601 time with its offset."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise ApiError(
            400,
            "bad_parameter",
            f"since {text!r}",
            "a time with its offset (a plus sign as %2B), such as 2026-01-31T08:00:00Z",
        ) from None


def _cursor_of(started_at: float, session: str) -> str:
    """Where a page ended, in one word."""
    return base64.urlsafe_b64encode(json.dumps([started_at, session]).encode()).decode()


def _place_of(cursor: str) -> tuple[float, str]:
    try:
        place = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
        started_at, session = msgspec.json.decode(place, type=tuple[float, str])
        if not math.isfinite(started_at):
            raise ValueError
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise ApiError(
            400, "bad_parameter", f"cursor {cursor!r}", "next_cursor of the page before"
        ) from None
    return started_at, session


def _is_wanted(snapshot: CallSnapshot, wanted: CallFilter) -> bool:
    """Whether a live call that is not kept yet, or not at all, is asked for."""
    record = snapshot.record
    return (
        not wanted.is_ended
        and wanted.call_id in (None, record.call_id)
        and (wanted.role is None or wanted.role in record.roles)
        and (wanted.since_s is None or record.started_at >= wanted.since_s)
        and (wanted.before is None or (record.started_at, record.session) < wanted.before)
        and (
            wanted.label is None
            or any(
                turn.label == wanted.label and wanted.role in (None, turn.role)
                for turn in snapshot.turns.values()
            )
        )
    )


def _prefers_csv(request: Request) -> bool:
    """Whether the ``Accept`` header names CSV above JSON (RFC 9110, section 12.5.1)."""
    weights = {"text/csv": 0.0, "application/json": 0.0}
    for item in request.headers.get("accept", "").split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        if kind in weights:
            quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            with suppress(ValueError):
                weights[kind] = float(quality)
    return weights["text/csv"] > weights["application/json"]
