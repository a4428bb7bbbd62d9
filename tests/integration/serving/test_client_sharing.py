"""Clients and channels that are copied, used after a fork, in another event loop, or by the other client."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from typing import Any

import grpc
import pytest

from serving import protos
from serving.client import AsyncClient, Client, ClientConfig
from serving.errors import InputError
from tests.support.fake_grpc_server import Answer, answer_for, fake_grpc_server

pytestmark = pytest.mark.server


def test_client_cannot_be_pickled_or_copied_and_says_what_to_do() -> None:
    with Client("localhost:1", model="food") as client:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(InputError, match=r"Client\(config\)"):
                attempt(client)
        with pytest.raises(InputError, match=r"Client\(config\)"):
            pickle.dumps(AsyncClient("localhost:1", model="food"))
    assert pickle.loads(pickle.dumps(ClientConfig("localhost:1", "food"))).model == "food"


FORK = """
import os, sys
import numpy as np
from serving.client import Client
from serving.errors import InputError

with Client(sys.argv[1], model="food") as client:
    client.classify([b"photo"])
    child = os.fork()
    if child == 0:
        uses = (
            lambda: client.classify([b"photo"]),
            lambda: list(client.iclassify([b"photo"])),
            lambda: client.run("x", {"x": np.zeros(1)}),
            client.status,
        )
        for use in uses:
            try:
                use()
            except InputError as error:
                print(error, flush=True)
        client.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(client.classify([b"photo"])[0].label)  # the child left the parent's connection alone
"""


def test_client_that_is_used_after_a_fork_says_what_to_do() -> None:
    answers: dict[str, Answer] = {protos.PREDICT: lambda *_: answer_for([b"photo"])}
    with fake_grpc_server(answers) as address:
        done = subprocess.run(
            [sys.executable, "-c", FORK, address], capture_output=True, text=True, check=True, timeout=60
        )
    *errors, label = done.stdout.splitlines()
    assert len(errors) == 4
    assert all("Open a client in each process, after the fork." in error for error in errors)
    assert label == "apple"


FORK_FIRST = """
import asyncio, os, sys
from serving.client import AsyncClient

client = AsyncClient(sys.argv[1], model="food", convert=False)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

async def ask():
    async with client:
        print((await client.classify([b"photo"]))[0].label)

asyncio.run(ask())
"""


def test_async_client_that_has_not_been_used_survives_a_fork() -> None:
    answers: dict[str, Answer] = {protos.PREDICT: lambda *_: answer_for([b"photo"])}
    with fake_grpc_server(answers) as address:
        done = subprocess.run(
            [sys.executable, "-c", FORK_FIRST, address],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert done.stdout == "apple\n"


def test_async_client_in_another_event_loop_says_what_to_do() -> None:
    answers: dict[str, Answer] = {protos.PREDICT: lambda *_: answer_for([b"photo"])}
    with fake_grpc_server(answers) as address:
        client = AsyncClient(address, model="food")
        assert asyncio.run(client.classify([b"photo"]))[0].label == "apple"

        async def stream() -> Any:
            return [pair async for pair in client.iclassify([b"photo"])]

        for use in (lambda: client.classify([b"photo"]), stream, client.status):
            with pytest.raises(InputError, match="each event loop"):
                asyncio.run(use())
        asyncio.run(client.close())


def test_channel_of_another_event_loop_is_an_error_that_says_what_to_do() -> None:
    async def open_client() -> AsyncClient:
        return AsyncClient("localhost:1", model="food", channel=grpc.aio.insecure_channel("localhost:1"))

    async def use(client: AsyncClient) -> None:
        with pytest.raises(InputError, match=r"another event loop than its channel\. Open an AsyncClient in"):
            await client.status()
        await client.close()

    client = asyncio.run(open_client())
    asyncio.run(use(client))


def test_channel_of_the_other_kind_is_an_error_that_says_what_to_do() -> None:
    async def give_async_channel() -> None:
        async with grpc.aio.insecure_channel("localhost:1") as channel:
            with pytest.raises(
                InputError, match=r"one of grpc\.aio\. Open it with grpc, or use it with an Async"
            ):
                Client("localhost:1", model="food", channel=channel)  # type: ignore[arg-type]

    asyncio.run(give_async_channel())
    error = pytest.raises(InputError, match=r"blocks\. Open it with grpc\.aio, or use it with a Client")
    with grpc.insecure_channel("localhost:1") as channel, error:
        AsyncClient("localhost:1", model="food", channel=channel)  # type: ignore[arg-type]
