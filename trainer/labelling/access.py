"""Access to the labelling page: address and certificate of the server, checks of requests, headers.

The page shows private photos and changes the answers, and other pages that are open in the browser can send
requests to this machine. A request is answered only if

- its path begins with the token, which only the address printed by the command has;
- its Host is a name of this server, since a foreign domain may resolve to this machine (DNS rebinding);
- its Origin, if it has one, is the page itself, and it does not come from a page of another site;
- a request that changes something has a body of type JSON, which other sites cannot send without permission.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from serving.errors import InputError

LOOPBACK = "127.0.0.1"

_JSON = "application/json"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Content-Security-Policy of the page: its own files and nothing else."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address contains the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of all responses."""


@dataclass(frozen=True)
class PageSettings:
    """Address of the labelling page.

    Attributes:
        host: address or name to listen on.
        port: TCP port; 0 picks a free one.
        tls_cert: PEM file with the certificate chain; None for no TLS.
        tls_key: PEM file of its private key.
        insecure: listen without TLS on an address that other machines reach.
        token: secret part of the address.
    """

    host: str = LOOPBACK
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: TLS is incomplete, or other machines could read the traffic.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("Only one of --tls_cert and --tls_key is given.", remedy="Give both or neither.")
        if not (self.is_local or self.uses_tls or self.insecure):
            raise InputError(
                f"--host {self.host} lets other machines open the page, and without TLS everybody on the way "
                "can read the photos and the token, and change the answers.",
                remedy="Give --tls_cert and --tls_key, or --insecure if the network is trusted.",
            )

    @property
    def is_local(self) -> bool:
        """True if only this machine can connect."""
        return _is_loopback(self.host)

    @property
    def uses_tls(self) -> bool:
        """True if the traffic is encrypted."""
        return self.tls_cert is not None

    @property
    def scheme(self) -> str:
        """Scheme of the address: "http" or "https"."""
        return "https" if self.uses_tls else "http"

    def load_certificate(self) -> ssl.SSLContext | None:
        """Return the TLS context of the server; None without TLS.

        Raises:
            InputError: a file cannot be read, or the key does not belong to the certificate.
        """
        if self.tls_cert is None or self.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"{self.tls_cert} and {self.tls_key} cannot be used for TLS: {error}.",
                remedy="Give PEM files of a certificate and of its private key.",
            ) from error
        return context

    def make_url(self, port: int) -> str:
        """Return the address of the page, which contains the token."""
        host = self.host
        if _is_unspecified(host):
            host = socket.gethostname()
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}/{self.token}/"

    def describe_exposure(self) -> str:
        """Return sentences that say what other machines can reach; "" for nothing."""
        if self.is_local:
            return ""
        reach = "every machine that reaches this one" if _is_unspecified(self.host) else "other machines"
        text = (
            f"The page listens on {self.host}: {reach} can connect, and whoever has its address, with the "
            "token, sees all listed photos and can answer."
        )
        if not self.uses_tls:
            text += " Without TLS everybody on the way can read the photos and the token."
        return text


def is_allowed_host(header: str, settings: PageSettings) -> bool:
    """Return whether a Host header names this server.

    A literal IP address passes unless the server is local: no domain of somebody else can be behind it. The
    port does not matter, so that a forwarded port works.
    """
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return False
    if not name or "@" in header:
        return False
    if _is_loopback(name):
        return True
    if settings.is_local:
        return False
    names = {settings.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return name in names or _parse_address(name) is not None


def find_refusal(
    settings: PageSettings,
    *,
    token: str,
    host: str,
    origin: str | None,
    site: str | None,
    content_type: str | None,
) -> tuple[int, str] | None:
    """Return the HTTP status and the reason for which a request is rejected; None if it is allowed.

    Args:
        settings: address and token of the page.
        token: first part of the path.
        host: header Host.
        origin: header Origin, if there is one.
        site: header Sec-Fetch-Site, if there is one; None for the page itself, to which other pages may link.
        content_type: media type of the body of a request that changes something; None for others.
    """
    if not is_allowed_host(host, settings):
        return 403, "The Host of the request is not this server."
    if not hmac.compare_digest(token.encode(errors="replace"), settings.token.encode()):
        return 404, "Not found. Open the address that hubhead label printed last: each start has a new one."
    if origin is not None and origin != f"{settings.scheme}://{host}":
        return 403, "The request comes from another site."
    if site is not None and site not in ("same-origin", "none"):
        return 403, "The request comes from another site."
    if content_type is not None and content_type != _JSON:
        return 415, f"The body must be {_JSON}."
    return None


def _is_loopback(host: str) -> bool:
    address = _parse_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _is_unspecified(host: str) -> bool:
    address = _parse_address(host)
    return not host or (address is not None and address.is_unspecified)


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
