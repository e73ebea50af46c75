"""The doors before an application: over real sockets, and as any ASGI server asks."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from socket import create_server
from typing import Any

import pytest
import uvicorn
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from streamer.access import Access, AccessConfig
from streamer.doors import Doors, handshake_of, scope_of
from streamer.tokens import Scope, Token, digest_of

DEADLINE_S = 30.0
TOKENS = tuple(
    Token(name=name, scopes=frozenset(scopes), digest=digest_of(f"ser_{name}"))  # type: ignore[arg-type]
    for name, *scopes in (("pbx", "send"), ("desk", "watch"), ("root", "admin", "metrics"))
)


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """Tell what came through: a WebSocket its query, until it closes; HTTP with 204."""
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await websocket.send_text(scope["query_string"].decode())
        await websocket.receive()
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


@contextmanager
def serving(access: Access, refused: list[str]) -> Iterator[int]:
    app = Doors(behind, access, refused=refused.append)
    config = uvicorn.Config(
        app, ws="websockets-sansio", log_config=None, lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(config)
    with create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(DEADLINE_S)


def test_over_real_sockets() -> None:
    refused: list[str] = []
    access = Access(AccessConfig(max_calls_per_token=1), TOKENS)
    with serving(access, refused) as port:
        url = f"ws://127.0.0.1:{port}/v1/stream"
        with pytest.raises(InvalidStatus) as caught:
            connect(url, proxy=None)
        response = caught.value.response
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert json.loads(response.body)["code"] == "no_token"
        with connect(f"{url}?rate=8000&token=ser_pbx&a=%C3%A9", proxy=None) as connection:
            assert connection.recv(DEADLINE_S) == "rate=8000&a=%C3%A9"
            with pytest.raises(InvalidStatus) as caught:
                connect(url, proxy=None, additional_headers={"Authorization": "Bearer ser_pbx"})
            assert caught.value.response.status_code == 429
            connection.send("done")
            with suppress(ConnectionClosed):
                connection.recv(DEADLINE_S)
        subprotocols: Any = ["bearer", "ser_pbx"]
        with connect(url, proxy=None, subprotocols=subprotocols) as connection:
            assert connection.subprotocol == "bearer"
            connection.send("done")
        client = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        for path, status in (("/healthz", 204), ("/v1/calls", 401)):
            client.request("GET", path)
            answer = client.getresponse()
            answer.read()
            assert answer.status == status
        client.close()
    assert refused == ["no_token", "token_busy", "no_token"]
    assert access.num_calls("pbx") == 0


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
        ("GET", "/metrics", "metrics"),
        ("WEBSOCKET", "/v1/watch", "watch"),
        ("GET", "/v1/calls", "watch"),
        ("GET", "/v1/calls/5e55", "watch"),
        ("DELETE", "/v1/calls/5e55", "admin"),
        ("POST", "/v1/calls/5e55", "admin"),
        ("WEBSOCKET", "/v1/stream", "send"),
        ("WEBSOCKET", "/twilio", "send"),
        ("GET", "/v1/callsigns", "send"),
    ],
)
def test_what_requests_need(method: str, path: str, needed: Scope | None) -> None:
    assert scope_of(method, path) == needed


def asked(kind: str, path: str, **more: Any) -> list[dict[str, Any]]:
    """Return what is sent to a request."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": [], "query_string": b"", **more}
    asyncio.run(Doors(behind, Access(tokens=TOKENS))(scope, receive, send))
    return sent


def test_a_token_that_may_not_delete() -> None:
    headers = [(b"authorization", b"Bearer ser_desk")]
    start, body = asked("http", "/v1/calls/5e55", method="DELETE", headers=headers)
    assert start["status"] == 403
    assert json.loads(body["body"])["code"] == "no_scope"
    headers = [(b"Authorization", b"Bearer ser_root")]
    assert asked("http", "/v1/calls/5e55", method="DELETE", headers=headers)[0]["status"] == 204


def test_a_server_without_words_closes() -> None:
    (close,) = asked("websocket", "/v1/stream")
    assert close["type"] == "websocket.close" and close["reason"] == "no_token"


def test_what_is_no_request_goes_through() -> None:
    assert asked("lifespan", "") == []


def test_handshake_of_bytes_that_are_no_text() -> None:
    handshake = handshake_of(
        {"path": "/x", "query_string": b"a=%ff&b=\xff&token", "headers": [(b"X-\xff", b"\xfe")]}
    )
    assert handshake.header("x-\xff") == "\xfe"
    assert [name for name, _ in handshake.query] == ["a", "b", "token"]
