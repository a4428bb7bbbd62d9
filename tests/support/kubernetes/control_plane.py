"""A control plane on loopback: etcd and API server, and if wanted controllers and scheduler, as processes."""

from __future__ import annotations

import datetime
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.support.fake_model import free_port
from tests.support.kubernetes.api import Api

START_SECONDS = 300.0
"""Time limit of the start; it takes half a minute on a loaded machine."""

CONTROLLERS = "*,-node-lifecycle-controller"
"""All that are on by default, but the one that expects heartbeats, which fake nodes do not send."""

KUBELET_CLIENT = "kubelet-client.pem"
"""File with key and certificate of the API server as a client of kubelets."""

REAL_NODE = "node"
"""Name of the node that a kubelet registers."""

USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{REAL_NODE}", "system:nodes"),
}
"""Name and group of each user. The API server grants the system users their rights by itself."""


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane.

    Attributes:
        api: client of the API server, as an administrator.
        kubeconfig: file for kubectl, of the same user.
        certificate, key: files of a certificate that the fake nodes use too.
        top: directory of all state and logs.
    """

    api: Api
    kubeconfig: Path
    certificate: Path
    key: Path
    top: Path

    def kubectl(self, *arguments: str | Path, stdin: str = "", check: bool = True) -> Any:
        """Run kubectl, and return the completed process with its output as text.

        Raises:
            AssertionError: it failed, unless `check` is False.
        """
        done = subprocess.run(
            ["kubectl", *map(str, arguments)],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which kubectl finds this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}


@contextmanager
def run_control_plane(binaries: Path, top: Path, *, controllers: str) -> Iterator[ControlPlane]:
    """Run a control plane with an empty state.

    Args:
        binaries: directory of the programs of Kubernetes.
        top: directory for state and logs.
        controllers: controllers to run, beside a scheduler, such as CONTROLLERS; "" for the API server alone.
    """
    tokens = {user: secrets.token_hex(16) for user in USERS}
    _write_credentials(top, tokens)
    port, etcd_port = free_port(), free_port()
    address = f"https://127.0.0.1:{port}"
    certificate, key = top / "pki" / "apiserver.crt", top / "pki" / "apiserver.key"
    with ExitStack() as stack:

        def start(name: str, *command: str | Path) -> subprocess.Popen[bytes]:
            return stack.enter_context(run_process(top / f"{name}.log", *command))

        start("etcd", "etcd", *_etcd_flags(top, etcd_port))
        server = start("kube-apiserver", binaries / "kube-apiserver", *_api_flags(top, port, etcd_port))
        wait_for(server, top / "kube-apiserver.log", certificate.exists)
        for user, token in tokens.items():
            _write_kubeconfig(top / f"{user}.kubeconfig", address, certificate, token)
        api = stack.enter_context(closing(Api(port, certificate, tokens["admin"])))
        wait_for(server, top / "kube-apiserver.log", api.is_ready)
        if controllers:
            start(
                "controller-manager",
                binaries / "kube-controller-manager",
                *_controller_flags(top, controllers),
            )
            start("scheduler", binaries / "kube-scheduler", *_scheduler_flags(top))
            wait_for(
                server,
                top / "controller-manager.log",
                lambda: bool(api.find("serviceaccounts", "default", "default")),
            )
        yield ControlPlane(api, top / "admin.kubeconfig", certificate, key, top)


def _etcd_flags(top: Path, port: int) -> list[str]:
    address, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    return [
        f"--data-dir={top / 'etcd'}",
        f"--listen-client-urls={address}",
        f"--advertise-client-urls={address}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # nothing of it outlives the tests
    ]


def _api_flags(top: Path, port: int, etcd_port: int) -> list[str]:
    """Return the flags of the API server, which signs a certificate for itself in its --cert-dir."""
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",  # without it a machine with no default route is an error
        f"--secure-port={port}",
        f"--cert-dir={top / 'pki'}",
        f"--token-auth-file={top / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",  # that Pod Security refuses it is what is tested
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={top / 'accounts.key'}",
        f"--service-account-signing-key-file={top / 'accounts.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={top / KUBELET_CLIENT}",
        f"--kubelet-client-key={top / KUBELET_CLIENT}",
    ]


def _controller_flags(top: Path, controllers: str) -> list[str]:
    return [
        *_client_flags(top, "controller-manager"),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={top / 'accounts.key'}",
        f"--root-ca-file={top / 'pki' / 'apiserver.crt'}",
        f"--controllers={controllers}",
        "--pvclaimbinder-sync-period=2s",  # 15 s without it, which a claim may wait for its volume
    ]


def _scheduler_flags(top: Path) -> list[str]:
    return _client_flags(top, "scheduler")


def _client_flags(top: Path, user: str) -> list[str]:
    config = top / f"{user}.kubeconfig"
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        "--leader-elect=false",
        "--kube-api-qps=500",  # by default they limit themselves to 20 and 50 requests per second
        "--kube-api-burst=1000",
    ]


def _write_credentials(top: Path, tokens: Mapping[str, str]) -> None:
    """Write the tokens of the users, and the key that signs those of service accounts."""
    top.mkdir(parents=True, exist_ok=True)
    lines = [f"{token},{USERS[user][0]},{user},{USERS[user][1]}" for user, token in tokens.items()]
    _write_private(top / "tokens.csv", "\n".join(lines).encode())
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(top / "accounts.key", pem)
    _write_private(top / KUBELET_CLIENT, pem + _self_sign(key, "kube-apiserver"))


def _self_sign(key: rsa.RSAPrivateKey, name: str) -> bytes:
    """Return a certificate by which a client with this key is known to a server that trusts it alone."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _write_private(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)


def _write_kubeconfig(path: Path, address: str, certificate: Path, token: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": address, "certificate-authority": str(certificate)}}
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    _write_private(path, yaml.safe_dump(config).encode())


@contextmanager
def run_process(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its output in a log, and stop it at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[bytes], log: Path, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true while a process runs.

    Raises:
        AssertionError: the process ended, or START_SECONDS passed.
    """
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"not ready, {log} ends with\n{log.read_text('utf-8', 'replace')[-2000:]}")
        time.sleep(0.2)
