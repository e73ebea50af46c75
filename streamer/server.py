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
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from streamer.access import Access, reload_tokens
from streamer.alerts import check_labels
from streamer.api import api_routes
from streamer.batching import Batcher, Scorer
from streamer.dialects.registry import NATIVE_PATH, PATHS
from streamer.doors import Doors
from streamer.errors import ConfigError, SerStreamError
from streamer.hub import RETRY_S, Hub, HubConfig
from streamer.live import Connection, LiveConfig
from streamer.logs import configure
from streamer.metrics import Metrics
from streamer.model import Model, Provider
from streamer.records import CallObserver, Store
from streamer.server_config import ServerConfig as ServerConfig
from streamer.store import Store as CallStore
from streamer.tls import load_certificate, tls_context
from streamer.tokens import load_tokens
from streamer.transport import BoundedConfig, BoundedServer
from streamer.webhooks import WebhookObserver, Webhooks

_log = logging.getLogger(__name__)

_LAST_POSTS_S = 2.0
"""What webhooks have at the end, however long the calls took."""
_FAREWELL_S = (1.0, 4.0)
"""What closes have at least, however long calls took, and at most: after 5 s uvicorn gives up."""


class Service:
    """The calls that are going on, what scores them, and the HTTP around them.

    Args:
        config: limits, and what is inferred; its ``store`` is for whoever makes one.
        scorer: may also come later; until then calls are refused with "try again".
        store: keeps the calls, if any does; whoever made it closes it.
        observers: follow all calls.

    Raises:
        ConfigError: the tokens cannot be read, webhooks cannot be sent, or an alert is for a label
            that the scorer's model does not have.
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
        self._webhooks = Webhooks(config.webhooks) if config.webhooks.targets else None
        posting = [] if self._webhooks is None else [WebhookObserver(self._webhooks)]
        self.hub = Hub(
            HubConfig(
                session=config.session,
                analyse_agents=config.analyse_agents,
                alerts=config.alerts,
                max_calls=config.max_calls,
                resume_timeout_s=config.resume_timeout_s,
                pressure=config.pressure,
            ),
            store=store,
            observers=[self.metrics, *posting, *observers],
        )
        self._kept = store if isinstance(store, CallStore) else None
        self._watch(self.metrics)
        self.scorer = scorer
        self._live = LiveConfig(
            min_step_s=config.min_step_s,
            idle_timeout_s=config.idle_timeout_s,
            send_timeout_s=config.send_timeout_s,
            secrets=config.secrets,
            refused=self.metrics.call_refused,
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
        if scorer is not None:
            check_labels(self.config.alerts, scorer.card.labels)
        if isinstance(scorer, Batcher):
            self.metrics.watch_queue(lambda: scorer.num_waiting)
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
                *api_routes(self.hub, self._kept, send_timeout_s=self.config.send_timeout_s),
                WebSocketRoute("/{path:path}", self._no_such_path),
            ],
            middleware=[Middleware(Doors, access=self.access, refused=self.metrics.call_refused)],
        )
        app.state.service = self
        return app

    async def drain(self, timeout_s: float) -> int:
        """Take no more calls, end those that are going on; return how many had to be abandoned.

        Each gets its last events, its summary, and close 1001, if there is time for it. Webhooks
        that wait are tried once more.
        """
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + timeout_s
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
        if self._webhooks is not None:
            await self._webhooks.aclose(max(_LAST_POSTS_S, deadline_s - clock()))
        return num_left

    def _watch(self, metrics: Metrics) -> None:
        """Have the numbers that others know asked for whenever somebody looks."""
        metrics.watch_readiness(lambda: self.hub.refusal() is None)
        metrics.watch_pressure(lambda: self.hub.pressure.level)
        if (webhooks := self._webhooks) is not None:
            metrics.watch_webhooks(lambda: webhooks.state)
        if (kept := self._kept) is not None:
            metrics.watch_store(lambda: kept.state.fault, lambda: kept.state.num_pending_bytes)

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
        The exit status: 0; 1 where it cannot listen or fails; 2 where the model cannot be loaded,
        or has no such label as an alert is for.

    Raises:
        ConfigError: the store, the tokens, the certificate or the webhooks cannot be used.
    """

    def load() -> Batcher:
        return Batcher(Model.load(model_path, provider=provider))

    return run(config, load)


def run(config: ServerConfig, load: Callable[[], AbstractContextManager[Scorer]]) -> int:
    """Do what :func:`serve` does, with any scorer, which ``load`` makes on a thread."""
    if not logging.getLogger().handlers:
        configure()
    # Made first: who cannot keep what it hears must not begin to listen. Closed last.
    kept = nullcontext() if config.store is None else CallStore(config.store)
    with kept as store:
        process = ServerProcess(config, load, store=store)
        try:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            listener = socket.create_server((config.host, config.port), family=family, backlog=1024)
        except OSError as error:
            _log.error("cannot listen on %s port %d: %s", config.host, config.port, error)
            return 1
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
        self._tls: ssl.SSLContext | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            self._tls = tls_context(config.tls_cert, config.tls_key)
        super().__init__(
            BoundedConfig(
                self.service.app(),
                max_connections=config.max_connections,
                max_message_bytes=config.max_message_bytes,
                handshake_timeout_s=config.handshake_timeout_s,
                tls=self._tls,
            )
        )
        self._load = load
        self._scorers = ExitStack()
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
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
        """Stop accepting, end the calls, then the rest.

        A peer that does not read its last events, or does not answer the close, is dropped.
        """
        loop = asyncio.get_running_loop()
        drained_at_s = loop.time() + self.service.config.drain_timeout_s
        for server in self.servers:
            server.close()
        if await self.service.drain(self.service.config.drain_timeout_s):
            self.abort_connections()
        self.abort_idle()
        if self._watching is not None:
            self._watching.cancel()
        if self._loading is not None:
            await self._loading
        rest_s = min(max(drained_at_s - loop.time(), _FAREWELL_S[0]), _FAREWELL_S[1])
        dropping = loop.call_later(rest_s, self.abort_connections)
        await super().shutdown(sockets)
        dropping.cancel()
        _log.info("stopped")

    async def _make_ready(self) -> None:
        try:
            scorer = self._scorers.enter_context(await asyncio.to_thread(self._load))
            self.service.scorer = scorer
        except SerStreamError as error:
            _log.error("no model: %s", error)
            self.status = 2
        except Exception:  # noqa: BLE001 - a task's edge: the process must end, not serve without a model
            _log.exception("no model")
            self.status = 1
        else:
            _log.info("ready model=%s", scorer.card.name)
            return
        self.should_exit = True
