"""DNS of the cluster: the addresses of headless services, as CoreDNS answers them."""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.kubernetes.api import Api

DOMAIN = "cluster.local"

TTL_SECONDS = 5
"""As of CoreDNS by default."""

POLL_SECONDS = 0.3

_SERVICE = "kubernetes.io/service-name"


def read_addresses(api: Api) -> dict[str, set[str]]:
    """Return the addresses of the endpoints that each service publishes, by its name in the DNS."""
    found: dict[str, set[str]] = defaultdict(set)
    status, answer = api.call("GET", "/apis/discovery.k8s.io/v1/endpointslices")
    assert status == 200, answer
    for endpoint_slice in answer["items"]:
        metadata = endpoint_slice["metadata"]
        service = metadata.get("labels", {}).get(_SERVICE)
        addresses = found[f"{service}.{metadata['namespace']}.svc.{DOMAIN}."]
        for endpoint in endpoint_slice.get("endpoints") or []:
            # Ready is also true for those of a service that publishes the ones that are not.
            if endpoint.get("conditions", {}).get("ready", True):
                addresses.update(endpoint["addresses"])
    return dict(found)


def answer_query(query: dns.message.QueryMessage, table: Mapping[str, set[str]]) -> dns.message.Message:
    """Answer a query of one name with its A records."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.AA
    question = query.question[0]
    addresses = table.get(str(question.name).lower())
    if not addresses:
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(question.name, TTL_SECONDS, "IN", "A", *sorted(addresses)))
    return response


@contextmanager
def run_dns(api: Api, address: str) -> Iterator[None]:
    """Answer queries over UDP at port 53 of an address, in threads."""
    table: dict[str, set[str]] = {}
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_SECONDS):
            try:
                current = read_addresses(api)
            except OSError:  # as a resolver does, keep the last answer
                time.sleep(1)
                continue
            table.update(current)
            for name in table.keys() - current.keys():
                del table[name]

    def serve(udp: socket.socket) -> None:
        while not done.is_set():
            try:
                content, sender = udp.recvfrom(4096)
                query = dns.message.from_wire(content)
            except (TimeoutError, dns.exception.DNSException):
                continue
            if isinstance(query, dns.message.QueryMessage) and query.question:
                udp.sendto(answer_query(query, table).to_wire(), sender)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((address, 53))
        udp.settimeout(0.5)
        threads = [threading.Thread(target=poll), threading.Thread(target=serve, args=(udp,))]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()
