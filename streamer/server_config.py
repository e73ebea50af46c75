"""What an operator may choose of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from streamer.access import AccessConfig, check_address
from streamer.alerts import AlertRule, check_rules
from streamer.dialects.registry import DialectSecrets
from streamer.errors import ConfigError
from streamer.pressure import PressureConfig
from streamer.session import SessionConfig
from streamer.store import StoreConfig
from streamer.webhook_config import WebhooksConfig


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What an operator may choose.

    ``max_calls`` are heard at once, the next ones refused in words; ``max_connections`` counts
    whatever is connected. A peer has ``handshake_timeout_s`` to become a WebSocket; one that
    sends no audio for ``idle_timeout_s``, or reads nothing for ``send_timeout_s``, is closed. One
    that was cut off may come back within ``resume_timeout_s``. A stopping server gives its calls
    ``drain_timeout_s`` to get their last events. ``pressure`` says when windows are left out.

    Who may come is in the file ``tokens``, see :mod:`streamer.tokens`; without one all of this
    machine may. ``store`` says where calls are kept, None: nowhere.

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
    store: StoreConfig | None = None
    webhooks: WebhooksConfig = field(default_factory=WebhooksConfig)

    def __post_init__(self) -> None:
        check_address(
            self.host,
            has_tokens=self.tokens is not None,
            has_tls=self.tls_cert is not None and self.tls_key is not None,
            is_behind_proxy=self.plaintext_behind_proxy,
        )
        check_rules(self.alerts, analyse_agents=self.analyse_agents)
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
