"""The doors in front of a server's application: who may not is told so before anything is begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from streamer.access import Access, Grant, Refusal
from streamer.dialects import Handshake
from streamer.tokens import Scope

ScopeOf: TypeAlias = Callable[[str, str], Scope | None]
"""What a request needs, by method and path, None where everybody may; of a WebSocket the method is
``WEBSOCKET``."""

_TARGET, _GUEST = "streamer.target", "streamer.guest"
"""What is told to the application behind, in the connection's scope."""


def scope_of(method: str, path: str) -> Scope | None:
    """Return what a request to a server needs: whatever is not named here takes calls."""
    if path in ("/healthz", "/readyz"):
        return None
    if path == "/metrics":
        return "metrics"
    if path == "/v1/watch" or path == "/v1/calls" or path.startswith("/v1/calls/"):
        return "watch" if method in ("GET", "HEAD", "WEBSOCKET") else "admin"
    return "send"


class Doors:
    """An ASGI application that lets requests through to another, or refuses them in words.

    A token in the URL goes no further than here, but for :func:`handshake_of`, which signatures
    need whole. A WebSocket that takes calls holds a place of its token's until it is closed.

    Args:
        app: the application behind.
        access: who may.
        refused: told the code of each refusal.
        needs: what a request needs.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        *,
        refused: Callable[[str], None] = lambda code: None,
        needs: ScopeOf = scope_of,
    ) -> None:
        self._app = app
        self._access = access
        self._refused = refused
        self._needs = needs

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI 3 says."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "WEBSOCKET")
        needed = self._needs(method, scope["path"])
        with ExitStack() as stack:
            answer: Grant | Refusal = Grant()
            handshake = handshake_of(scope)
            if needed is not None:
                answer = self._access.check(handshake, needed)
            if isinstance(answer, Grant) and needed == "send" and method == "WEBSOCKET":
                place = self._access.take_place(answer)
                if isinstance(place, Refusal):
                    answer = place
                else:
                    stack.enter_context(place)
            if isinstance(answer, Refusal):
                self._refused(answer.code)
                await _refuse(answer, scope, send)
                return
            passed = _without_token(scope) | {_TARGET: handshake.target, _GUEST: answer.name}
            await self._app(passed, receive, _accepting(answer, send))


def guest_of(scope: AsgiScope) -> str:
    """Return the name of the token with which a request came in; empty where none was needed."""
    return str(scope.get(_GUEST, ""))


def handshake_of(scope: AsgiScope) -> Handshake:
    """Return what a request says, its target as it was before any token was cut out."""
    query = scope.get("query_string", b"").decode("latin-1")
    path = scope.get("raw_path") or quote(scope["path"]).encode()
    target = path.decode("latin-1") + (f"?{query}" if query else "")
    headers = (
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, value in scope["headers"]
    )
    return Handshake(
        path=scope["path"],
        query=tuple(parse_qsl(query, keep_blank_values=True)),
        headers=tuple(headers),
        target=scope.get(_TARGET, target),
    )


def _without_token(scope: AsgiScope) -> dict[str, Any]:
    """Return the scope without a token in its query: nobody behind is to see or log it."""
    if b"token=" not in scope.get("query_string", b""):
        return dict(scope)
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in pairs if name != "token"])
    return {**scope, "query_string": kept.encode("ascii")}


def _accepting(grant: Grant, send: Send) -> Send:
    """Return a ``send`` that names the subprotocol with which a browser brought its token."""
    if grant.subprotocol is None:
        return send

    async def naming(message: Message) -> None:
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message = {**message, "subprotocol": grant.subprotocol}
        await send(message)

    return naming


async def _refuse(refusal: Refusal, scope: AsgiScope, send: Send) -> None:
    """Answer with the refusal's status and words, or close where an ASGI server has none."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
            return
        kind = "websocket.http.response"
    body = {"type": "error", "code": refusal.code, "message": refusal.message}
    headers = {"content-type": "application/json", "cache-control": "no-store", **refusal.headers}
    data = json.dumps(body).encode()
    headers["content-length"] = str(len(data))
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": pairs})
    await send({"type": f"{kind}.body", "body": data})
