"""Access to the labelling page: loopback and TLS, the token, Host (DNS rebinding), Origin, media type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.errors import InputError
from trainer.labelling.access import PAGE_POLICY, PageSettings, find_refusal, is_allowed_host

SETTINGS = PageSettings(port=8765, token="secret-token")
REACHABLE = PageSettings(host="0.0.0.0", insecure=True, token="secret-token")


def refuse(settings: PageSettings = SETTINGS, **changes: Any) -> int | None:
    request: dict[str, Any] = {
        "token": "secret-token",
        "host": "127.0.0.1:8765",
        "origin": None,
        "site": None,
        "content_type": None,
    }
    found = find_refusal(settings, **{**request, **changes})
    return found and found[0]


def test_own_page_is_allowed() -> None:
    assert refuse() is None
    assert refuse(origin="http://127.0.0.1:8765", site="same-origin", content_type="application/json") is None
    assert refuse(host="localhost:8765", origin="http://localhost:8765") is None


def test_forwarded_port_is_allowed() -> None:
    assert refuse(host="localhost:9000", origin="http://localhost:9000") is None


@pytest.mark.parametrize("token", ["", "secret-toke", "secret-token1", "SECRET-TOKEN", "sécret\ud800"])
def test_wrong_token_is_not_found(token: str) -> None:
    assert refuse(token=token) == 404


@pytest.mark.parametrize(
    "host",
    [
        "",
        "attacker.example",
        "attacker.example:8765",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
        "localhost@attacker.example",
        "attacker.example@localhost",
        "192.168.1.5:8765",
        "[::1",
    ],
)
def test_foreign_host_is_rejected_against_dns_rebinding(host: str) -> None:
    assert refuse(host=host, origin=f"http://{host}") == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:8765", "127.8.8.8"])
def test_names_of_the_loopback_interface_are_allowed(host: str) -> None:
    assert is_allowed_host(host, SETTINGS)


def test_reachable_server_allows_its_addresses_and_no_foreign_domain() -> None:
    assert is_allowed_host("192.168.1.5:8765", REACHABLE)
    assert is_allowed_host("[fe80::1]:8765", REACHABLE)
    assert not is_allowed_host("attacker.example", REACHABLE)
    named = PageSettings(host="labels.example", insecure=True)
    assert is_allowed_host("labels.example:443", named)
    assert not is_allowed_host("attacker.example", named)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://attacker.example",
        "https://127.0.0.1:8765",
        "http://127.0.0.1:8766",
        "http://localhost:8765",
    ],
)
def test_foreign_origin_is_rejected(origin: str) -> None:
    assert refuse(origin=origin) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_request_of_another_site_is_rejected(site: str) -> None:
    assert refuse(site=site) == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"]
)
def test_body_that_other_sites_may_send_is_rejected(kind: str) -> None:
    assert refuse(content_type=kind) == 415


def test_other_hosts_demand_tls_or_an_explicit_flag() -> None:
    with pytest.raises(InputError, match=r"can read the photos and the token.*--tls_cert.*--insecure"):
        PageSettings(host="0.0.0.0")
    with pytest.raises(InputError, match="Only one of"):
        PageSettings(tls_cert=Path("cert.pem"))
    assert PageSettings(host="0.0.0.0", insecure=True).scheme == "http"
    assert PageSettings("0.0.0.0", 0, Path("c.pem"), Path("k.pem")).scheme == "https"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
def test_loopback_exposes_nothing(host: str) -> None:
    assert PageSettings(host=host).describe_exposure() == ""


def test_exposure_is_described() -> None:
    text = REACHABLE.describe_exposure()
    assert "every machine that reaches this one" in text
    assert "Without TLS" in text
    encrypted = PageSettings("10.0.0.5", 0, Path("c.pem"), Path("k.pem"))
    assert "Without TLS" not in encrypted.describe_exposure()


def test_token_is_random_long_and_in_no_message() -> None:
    first, second = PageSettings(), PageSettings()
    assert first.token != second.token
    assert len(first.token) >= 32
    assert first.token not in repr(first)


def test_url_has_the_token_and_brackets_an_ipv6_address() -> None:
    assert SETTINGS.make_url(8765) == "http://127.0.0.1:8765/secret-token/"
    assert PageSettings(host="::1", token="t").make_url(1) == "http://[::1]:1/t/"


def test_policy_of_the_page_allows_its_own_files_alone() -> None:
    assert PAGE_POLICY.startswith("default-src 'none'; ")
    for word in ("unsafe", "*", "data:", "http"):
        assert word not in PAGE_POLICY
