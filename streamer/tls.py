"""The server's certificate: read at start, and again while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from streamer.errors import ConfigError


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a context for a server: TLS 1.2 or newer, HTTP/1.1.

    Args:
        cert: the chain of certificates, PEM, the server's own first.
        key: its private key, PEM, without a passphrase.

    Raises:
        ConfigError: a file cannot be read, or the two do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, cert, key)
    return context


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Give a context its certificate, for the connections that come from now on.

    Raises:
        ConfigError: as :func:`tls_context` says; the context then keeps the one that it had.
    """
    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}: expected PEM") from error
    try:
        # First into another: a failure may leave a context with half of what it was given.
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            target.load_cert_chain(cert, key, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
        raise ConfigError(
            f"certificate {cert} with key {key}: {reason}: expected a PEM chain and its key, "
            "without a passphrase"
        ) from error


def _no_passphrase() -> str:
    """Answer OpenSSL, which would else ask on the terminal."""
    return ""
