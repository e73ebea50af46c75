"""The process that hears many calls: WebSockets in, one scorer behind them, health beside them.

The application (:func:`create_app`) runs under any ASGI server; :func:`serve` runs it under
uvicorn, with the limits of :mod:`streamer.transport`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from streamer.access import Access, AccessConfig, check_address, reload_tokens
from streamer.alerts import AlertRule
from streamer.batching import Batcher, Scorer
from streamer.dialects.registry import NATIVE_PATH, PATHS, DialectSecrets
from streamer.doors import Doors
from streamer.errors import ConfigError, SerStreamError
from streamer.hub import RETRY_S, Hub, HubConfig
from streamer.live import Connection, LiveConfig
from streamer.logs import configure
from streamer.metrics import Metrics
from streamer.model import Model, Provider
from streamer.pressure import PressureConfig
from streamer.records import CallObserver, Store
from streamer.session import SessionConfig
from streamer.tls import load_certificate, tls_context
from streamer.tokens import load_tokens
from streamer.transport import BoundedConfig, BoundedServer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What an operator may choose.

    ``max_calls`` are heard at once, the next ones refused in words; ``max_connections`` counts
    whatever is connected. A peer has ``handshake_timeout_s`` to become a WebSocket; one that
    sends no audio for ``idle_timeout_s``, or reads nothing for ``send_timeout_s``, is closed. One
    that was cut off may come back within ``resume_timeout_s``. A stopping server gives its calls
    ``drain_timeout_s`` to get their last events. ``pressure`` says when windows are left out.

    Raises:
        ConfigError: a value outside its range, or an address that others can reach.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    tokens: Path | None = None
    access: AccessConfig = field(default_factory=AccessConfig)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    plaintext_behind_proxy: bool = False
    session: SessionConfig = field(default_factory=SessionConfig)
    analyse_agents: bool = False
    min_step_s: float = 0.1
    max_calls: int = 200
    max_connections: int = 1000
    max_message_bytes: int = 2**20
    handshake_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    resume_timeout_s: float = 60.0
    drain_timeout_s: float = 10.0
    alerts: tuple[AlertRule, ...] = ()
    secrets: DialectSecrets = field(default_factory=DialectSecrets)
    pressure: PressureConfig = field(default_factory=PressureConfig)

    def __post_init__(self) -> None:
        check_address(
            self.host,
            has_tokens=self.tokens is not None,
            has_tls=self.tls_cert is not None and self.tls_key is not None,
            is_behind_proxy=self.plaintext_behind_proxy,
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
        if not 0.0 <= self.resume_timeout_s <= 3600.0:
            raise ConfigError(
                f"resume_timeout_s {self.resume_timeout_s}: expected 0, which is never, to an hour"
            )


class Service:
    """The calls that are going on, what scores them, and the HTTP around them.

    Args:
        config: limits, and what is inferred.
        scorer: may also come later; until then calls are refused with "try again".
        store: keeps the calls, if any does.
        observers: follow all calls.
    """

    def __init__(
        self,
        config: ServerConfig,
        scorer: Scorer | None = None,
        *,
        store: Store | None = None,
        observers: Sequence[CallObserver] = (),
    ) -> None:
        self.config = config
        self.access = Access(config.access, load_tokens(config.tokens) if config.tokens else ())
        self.metrics = Metrics(max_calls=config.max_calls)
        self.hub = Hub(
            HubConfig(
                session=config.session,
                analyse_agents=config.analyse_agents,
                alerts=config.alerts,
                max_calls=config.max_calls,
                resume_timeout_s=config.resume_timeout_s,
                pressure=config.pressure,
            ),
            scorer=None if scorer is None else self.metrics.timed(scorer),
            store=store,
            observers=[self.metrics, *observers],
        )
        self.metrics.watch_readiness(lambda: self.hub.refusal() is None)
        self.metrics.watch_pressure(lambda: self.hub.pressure.level)
        self._live = LiveConfig(
            min_step_s=config.min_step_s,
            idle_timeout_s=config.idle_timeout_s,
            send_timeout_s=config.send_timeout_s,
            secrets=config.secrets,
        )
        self._connections: set[Connection] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def scorer(self) -> Scorer | None:
        """What scores the calls, once it is there."""
        return self.hub.scorer

    @scorer.setter
    def scorer(self, scorer: Scorer | None) -> None:
        self.hub.scorer = None if scorer is None else self.metrics.timed(scorer)

    @property
    def num_calls(self) -> int:
        """Calls that are being heard."""
        return self.hub.num_calls

    def app(self) -> Starlette:
        """Return the ASGI application; its ``state.service`` is this."""
        app = Starlette(
            routes=[
                *(WebSocketRoute(path, self._stream) for path in PATHS),
                *(Route(path, self._upgrade_required) for path in PATHS),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                self.metrics.route(),
                WebSocketRoute("/{path:path}", self._no_such_path),
            ],
            middleware=[Middleware(Doors, access=self.access, refused=self.metrics.call_refused)],
        )
        app.state.service = self
        return app

    async def drain(self, timeout_s: float) -> int:
        """Take no more calls, end those that are going on; return how many had to be abandoned.

        Each gets its last events, its summary, and close 1001, if there is time for it.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        for connection in list(self._connections):
            connection.end()
        num_left = await self.hub.drain(timeout_s)
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._is_empty.wait()
        except TimeoutError:
            num_left = num_left or len(self._connections)
            for connection in list(self._connections):
                connection.abandon()
            await self._is_empty.wait()
        self.hub.close()
        return num_left

    async def _stream(self, websocket: WebSocket) -> None:
        connection = Connection(websocket, self.hub, self._live)
        self._connections.add(connection)
        self._is_empty.clear()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            if not self._connections:
                self._is_empty.set()

    async def _no_such_path(self, websocket: WebSocket) -> None:
        """Refuse the handshake in words where the ASGI server can; else it says 403."""
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(
                PlainTextResponse(f"nothing here: expected the path {NATIVE_PATH}\n", 404)
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
        refusal = self.hub.refusal()
        body = {
            "ready": refusal is None,
            "reason": None if refusal is None else refusal[0],
            "model": None if self.scorer is None else self.scorer.card.name,
            "calls": self.num_calls,
            "max_calls": self.config.max_calls,
        }
        headers = {} if refusal is None else {"retry-after": str(RETRY_S)}
        return JSONResponse(body, 200 if refusal is None else 503, headers)


def create_app(
    scorer: Scorer,
    config: ServerConfig | None = None,
    *,
    store: Store | None = None,
    observers: Sequence[CallObserver] = (),
) -> Starlette:
    """Return the ASGI application, for an ASGI server of one's own.

    Such a server sets its own limits on connections and messages; ``config`` sets those on calls.
    """
    return Service(config or ServerConfig(), scorer, store=store, observers=observers).app()


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
    if not logging.getLogger().handlers:
        configure()
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
        store: keeps the calls, if any does.
        observers: follow all calls.
    """

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[], AbstractContextManager[Scorer]],
        *,
        store: Store | None = None,
        observers: Sequence[CallObserver] = (),
    ) -> None:
        self.service = Service(config, store=store, observers=observers)
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
            scheme = "ws" if self._tls is None else "wss"
            _log.info("listening url=%s://%s/v1/stream", scheme, address)
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._watching = asyncio.create_task(self.service.metrics.watch_loop())
        self._loading = asyncio.create_task(self._make_ready())

    def reload(self) -> None:
        """Read the tokens and the certificate again, as on SIGHUP; calls go on."""
        config = self.service.config
        try:
            if config.tokens is not None:
                reload_tokens(self.service.access, config.tokens)
            if self._tls is not None and config.tls_cert and config.tls_key:
                load_certificate(self._tls, config.tls_cert, config.tls_key)
        except ConfigError as error:
            _log.error("not reloaded: %s", error)
        else:
            _log.info("reloaded")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the calls, then the rest."""
        for server in self.servers:
            server.close()
        if await self.service.drain(self.service.config.drain_timeout_s):
            self.abort_connections()
        if self._watching is not None:
            self._watching.cancel()
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
