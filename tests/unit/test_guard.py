"""The rule for unit tests is enforced, not only written down."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys

import grpc
import pytest


@pytest.mark.parametrize("package", ["tensorflow", "apache_beam"])
def test_importing_tensorflow_or_beam_fails(package: str) -> None:
    assert package not in sys.modules
    with pytest.raises(pytest.fail.Exception, match=rf"import \('{package}"):
        importlib.import_module(package)


def test_opening_a_socket_fails() -> None:
    with socket.socket() as one, pytest.raises(pytest.fail.Exception, match=r"socket\.bind"):
        one.bind(("127.0.0.1", 0))


def test_opening_a_grpc_channel_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"grpc\.insecure_channel"):
        grpc.insecure_channel("localhost:1")


def test_starting_a_process_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"subprocess\.Popen"):
        subprocess.run([sys.executable, "--version"], check=False)
