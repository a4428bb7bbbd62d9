"""DNS of the end-to-end test: answers about headless services are those of CoreDNS."""

from __future__ import annotations

from typing import Any

import dns.message
import dns.rcode
import pytest

from tests.support.kubernetes.names import TTL_SECONDS, answer_query, read_addresses

NAME = "servers.hubhead.svc.cluster.local."


class FakeApi:
    """An API server that lists these slices of endpoints."""

    def __init__(self, *slices: dict[str, Any]) -> None:
        self._slices = slices

    def call(self, method: str, path: str) -> tuple[int, Any]:
        assert (method, path) == ("GET", "/apis/discovery.k8s.io/v1/endpointslices")
        return 200, {"items": self._slices}


def make_slice(*endpoints: tuple[str, bool | None]) -> dict[str, Any]:
    """Return a slice of endpoints with addresses and readiness, None for an unknown one."""
    labels = {"kubernetes.io/service-name": "servers"}
    made = [
        {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}
        for address, ready in endpoints
    ]
    return {"metadata": {"namespace": "hubhead", "labels": labels}, "endpoints": made}


def ask(kind: str, name: str = NAME, *slices: dict[str, Any]) -> tuple[dns.rcode.Rcode, list[str]]:
    query = dns.message.make_query(name, kind)
    assert isinstance(query, dns.message.QueryMessage)
    api: Any = FakeApi(*slices)
    answer = dns.message.from_wire(answer_query(query, read_addresses(api)).to_wire())
    assert answer.id == query.id
    return answer.rcode(), sorted(str(record) for records in answer.answer for record in records)


def test_addresses_are_those_of_ready_endpoints_of_all_slices() -> None:
    slices = make_slice(("10.0.0.2", True), ("10.0.0.3", False)), make_slice(("10.0.0.1", None))
    assert ask("A", NAME, *slices) == (dns.rcode.NOERROR, ["10.0.0.1", "10.0.0.2"])
    assert ask("A", NAME.upper(), *slices) == (dns.rcode.NOERROR, ["10.0.0.1", "10.0.0.2"])


def test_a_name_without_an_address_of_the_other_family_exists() -> None:
    assert ask("AAAA", NAME, make_slice(("10.0.0.2", True))) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize("slices", [(), (make_slice(("10.0.0.3", False)),)], ids=["no service", "none ready"])
def test_a_service_without_ready_endpoints_has_no_name(slices: tuple[dict[str, Any], ...]) -> None:
    assert ask("A", NAME, *slices) == (dns.rcode.NXDOMAIN, [])


def test_answers_may_be_kept_for_seconds_only() -> None:
    query = dns.message.make_query(NAME, "A")
    assert isinstance(query, dns.message.QueryMessage)
    (records,) = answer_query(query, {NAME: {"10.0.0.1"}}).answer
    assert records.ttl == TTL_SECONDS <= 30
