"""The process that hears many calls: WebSockets in, one scorer behind them, health beside them.

The application (:func:`create_app`) runs under any ASGI server; :func:`serve` runs it under
uvicorn, with the limits of :mod:`streamer.transport`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from streamer.batching import Batcher, Scorer
from streamer.errors import ConfigError, SerStreamError
from streamer.live import LiveCall, LiveConfig
from streamer.model import Model, Provider
from streamer.session import SessionConfig
from streamer.transport import BoundedConfig, BoundedServer

_log = logging.getLogger(__name__)
_RETRY_S = 10


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What an operator may choose.

    ``max_calls`` are heard at once, the next ones refused in words; ``max_connections`` counts
    whatever is connected. A peer has ``handshake_timeout_s`` to become a WebSocket; one that
    sends no audio for ``idle_timeout_s``, or reads nothing for ``send_timeout_s``, is closed. A
    stopping server gives its calls ``drain_timeout_s`` to get their last events.

    Raises:
        ConfigError: a value outside its range, or an address that others can reach.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    session: SessionConfig = field(default_factory=SessionConfig)
    analyse_agents: bool = False
    min_step_s: float = 0.1
    max_calls: int = 200
    max_connections: int = 1000
    max_message_bytes: int = 2**20
    handshake_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    drain_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise ConfigError(
                f"host {self.host!r}: expected a loopback address such as 127.0.0.1, because this "
                "server asks nobody who they are; put a proxy that does before it"
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port}: expected 0 to 65535")
        if not 0 < self.max_calls <= self.max_connections:
            raise ConfigError(
                f"max_calls {self.max_calls}, max_connections {self.max_connections}: expected "
                "one call or more, and no more of them than connections"
            )
        if not 1024 <= self.max_message_bytes <= 2**26:
            raise ConfigError(
                f"max_message_bytes {self.max_message_bytes}: expected 1024 to {2**26}"
            )
        for name in ("handshake", "idle", "send", "drain"):
            timeout_s = getattr(self, f"{name}_timeout_s")
            if not 0.0 < timeout_s <= 86400.0:
                raise ConfigError(f"{name}_timeout_s {timeout_s}: expected more than 0, to a day")


class Service:
    """The calls that are going on, and what scores them.

    Args:
        config: limits, and what is inferred.
        scorer: may also come later; until then calls are refused with "try again".
    """

    def __init__(self, config: ServerConfig, scorer: Scorer | None = None) -> None:
        self.config = config
        self.scorer = scorer
        self._live = LiveConfig(
            session=config.session,
            analyse_agents=config.analyse_agents,
            min_step_s=config.min_step_s,
            idle_timeout_s=config.idle_timeout_s,
            send_timeout_s=config.send_timeout_s,
        )
        self._calls: set[LiveCall] = set()
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def num_calls(self) -> int:
        """Calls that are being heard."""
        return len(self._calls)

    def app(self) -> Starlette:
        """Return the ASGI application; its ``state.service`` is this."""
        app = Starlette(
            routes=[
                WebSocketRoute("/v1/stream", self._stream),
                Route("/v1/stream", self._upgrade_required),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                WebSocketRoute("/{path:path}", self._no_such_path),
            ]
        )
        app.state.service = self
        return app

    async def drain(self, timeout_s: float) -> int:
        """Take no more calls, end those that are going on; return how many had to be abandoned.

        Each gets its last events, its summary, and close 1001, if there is time for it.
        """
        self._is_draining = True
        for call in list(self._calls):
            call.end()
        try:
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
        except TimeoutError:
            num_left = self.num_calls
            _log.warning("drain timeout_s=%g calls_left=%d", timeout_s, num_left)
            for call in list(self._calls):
                call.abandon()
            await self._is_empty.wait()
            return num_left
        return 0

    def _refusal(self) -> tuple[str, str] | None:
        """Code and sentence for a call that cannot be taken now."""
        if self._is_draining:
            return "stopping", f"the server is stopping: try again in {_RETRY_S} s"
        if self.scorer is None:
            return "not_ready", f"the model is not loaded yet: try again in {_RETRY_S} s"
        if len(self._calls) >= self.config.max_calls:
            return (
                "busy",
                f"no room for a call, the limit is {self.config.max_calls}: try again in "
                f"{_RETRY_S} s",
            )
        return None

    async def _stream(self, websocket: WebSocket) -> None:
        call = LiveCall(websocket, self._live)
        refusal = self._refusal()
        if refusal is not None or self.scorer is None:
            await call.refuse(*(refusal or ("not_ready", "")))
            return
        self._calls.add(call)
        self._is_empty.clear()
        try:
            await call.run(self.scorer)
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._is_empty.set()

    async def _no_such_path(self, websocket: WebSocket) -> None:
        """Refuse the handshake in words where the ASGI server can; else it says 403."""
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(
                PlainTextResponse("nothing here: expected the path /v1/stream\n", 404)
            )
        else:
            await websocket.close()

    async def _upgrade_required(self, request: Request) -> Response:
        return PlainTextResponse(
            "expected a WebSocket here\n", 426, {"upgrade": "websocket", "connection": "upgrade"}
        )

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def _readyz(self, request: Request) -> Response:
        refusal = self._refusal()
        body = {
            "ready": refusal is None,
            "reason": None if refusal is None else refusal[0],
            "model": None if self.scorer is None else self.scorer.card.name,
            "calls": self.num_calls,
            "max_calls": self.config.max_calls,
        }
        headers = {} if refusal is None else {"retry-after": str(_RETRY_S)}
        return JSONResponse(body, 200 if refusal is None else 503, headers)


def create_app(scorer: Scorer, config: ServerConfig | None = None) -> Starlette:
    """Return the ASGI application, for an ASGI server of one's own.

    Such a server sets its own limits on connections and messages; ``config`` sets those on calls.
    """
    return Service(config or ServerConfig(), scorer).app()


def serve(config: ServerConfig, model_path: Path | None = None, provider: Provider = "auto") -> int:
    """Run a server in this process until SIGINT or SIGTERM.

    It listens at once and is ready when the model's golden vectors have come out.

    Returns:
        The exit status: 0; 1 where it cannot listen or fails; 2 where the model cannot be loaded.
    """

    def load() -> Batcher:
        return Batcher(Model.load(model_path, provider=provider))

    return run(config, load)


def run(config: ServerConfig, load: Callable[[], AbstractContextManager[Scorer]]) -> int:
    """Do what :func:`serve` does, with any scorer, which ``load`` makes on a thread."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listener = socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        _log.error("cannot listen on %s port %d: %s", config.host, config.port, error)
        return 1
    process = ServerProcess(config, load)
    with listener, process:
        process.run([listener])
    return process.status


class ServerProcess(BoundedServer):
    """One service and its scorer under uvicorn; :func:`run` says how it is used.

    Args:
        config: what the operator chose.
        load: makes the scorer, on a thread, once the server listens. If it fails, the server ends
            with ``status`` 2 where there is no such model or it is bad, 1 for any other fault.
    """

    def __init__(
        self, config: ServerConfig, load: Callable[[], AbstractContextManager[Scorer]]
    ) -> None:
        self.service = Service(config)
        super().__init__(
            BoundedConfig(
                self.service.app(),
                max_connections=config.max_connections,
                max_message_bytes=config.max_message_bytes,
                handshake_timeout_s=config.handshake_timeout_s,
            )
        )
        self._load = load
        self._scorers = ExitStack()
        self._loading: asyncio.Task[None] | None = None
        self.status = 0

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._scorers.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say where, and begin to load the model."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            _log.info("listening url=ws://%s/v1/stream", address)
        self._loading = asyncio.create_task(self._make_ready())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the calls, then the rest."""
        for server in self.servers:
            server.close()
        if await self.service.drain(self.service.config.drain_timeout_s):
            self.abort_connections()
        if self._loading is not None:
            await self._loading
        await super().shutdown(sockets)
        _log.info("stopped")

    async def _make_ready(self) -> None:
        try:
            scorer = await asyncio.to_thread(self._load)
        except SerStreamError as error:
            _log.error("no model: %s", error)
            self.status = 2
        except Exception:  # noqa: BLE001 - a task's edge: the process must end, not serve without a model
            _log.exception("no model")
            self.status = 1
        else:
            self.service.scorer = self._scorers.enter_context(scorer)
            _log.info("ready model=%s", self.service.scorer.card.name)
            return
        self.should_exit = True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
