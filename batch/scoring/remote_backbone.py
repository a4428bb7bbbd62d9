"""Embedding on a model server (`--server`). The heads run in the worker.

The server is asked for `embed` only. A head is a single matrix product, and running it in the worker gives
bit-identical scores whether an embedding is new or from the store, computed here or on the server. So a run
can continue without its server, and several heads are scored in one pass.

Embeddings of another backbone would corrupt the store for all later runs. The protocol has no field for the
fingerprint, so the server's model is verified by its head: `classify_embedding` must return the same
probabilities as the local bundle, which only a head trained on the same embeddings does. From then on
requests name the version number that was verified, whatever the server loads in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch.scoring import head_runner
from batch.scoring.embed import UNANSWERED
from batch.scoring.head_runner import HeadRunner
from serving import contract
from serving.bundle import Bundle
from serving.client import Client, ClientConfig, Embedding, Retry
from serving.errors import BundleError, ModelNotFound, ServerError

RETRY_UNTIL_TIMEOUT = Retry(attempts=1 << 30, first=0.2, most=10.0)
"""Retries until the timeout of the request; the backoff grows to 10 s."""

FIRST_RESPONSE_SECONDS = 10.0
"""Longest wait for the first response of a server, so that a wrong address fails quickly."""

SERVER = "server"
"""Engine of a server that does not name its own (batch.monitoring.engines.EngineRecord)."""

ROWS_PER_OUTPUT = 32
"""Photos per output of `RemoteBackbone.imap`."""

PROBES = 64
"""Embeddings that are sent to verify a head."""

_NONZERO_PER_PROBE = 8
_TOLERANCE = 2e-3
"""Allowed difference of probabilities of one head on two kinds of processors; GPUs may multiply with 11 bits
(TF32)."""


class RemoteBackbone:
    """Backbone that sends photos to a model server; a drop-in for `serving.runtime.Model`.

    Args:
        client: client of the model. It is never closed, since it is used until the process ends.
        dimension: length of an embedding.
        engine: engine that the server names; "" if it names none, as TensorFlow Serving.
        cpu: CPU that the server names, or "".

    Attributes:
        engine, cpu: see batch.monitoring.engines.EngineRecord.
    """

    def __init__(self, client: Client, dimension: int, engine: str = "", cpu: str = "") -> None:
        self.engine, self.cpu = engine or SERVER, cpu
        self._client = client
        self._blank = np.zeros(dimension, np.float32)

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs of `embed` for any number of photos, several at a time, in bounded memory.

        The client keeps as many requests in flight as the server takes without queueing. If the server
        fails on a photo even when it is sent alone, the photo gets a blank embedding and the reason in the
        output `batch.scoring.embed.UNANSWERED`.

        Raises:
            ServerError: the server did not answer within the client's timeout.
        """
        assert (signature, input_name) == (contract.EMBED, contract.IMAGE_BYTES)
        try:
            with closing(self._client.iembed(items)) as responses:
                while batch := [embedding for _, embedding in islice(responses, ROWS_PER_OUTPUT)]:
                    yield self._to_outputs(batch)
        except ServerError as error:
            error.remedy += " Then run the same command again; finished shards are kept."
            raise

    def _to_outputs(self, batch: Sequence[Embedding]) -> dict[str, NDArray[Any]]:
        vectors = [self._blank if one.vector is None else one.vector for one in batch]
        return {
            contract.EMBEDDING: np.stack(vectors),
            contract.STATUS: np.array([one.status.encode() for one in batch], object),
            contract.HEIGHT: np.array([one.height for one in batch], np.int32),
            contract.WIDTH: np.array([one.width for one in batch], np.int32),
            UNANSWERED: np.array([one.detail for one in batch], object),
        }


def resolve_version(server: ClientConfig, bundles: Sequence[Bundle]) -> ClientConfig:
    """Return the connection with the model name and version number that the server has; no TensorFlow.

    Args:
        server: connection, with or without a model and a version. By default the newest of the bundles is
            requested.
        bundles: bundles of the run; the server must serve one of them.

    Raises:
        ServerError: no server answers, or it has no such model or version.
        BundleError: the server has another model.
    """
    newest = max(bundles, key=lambda model: model.version)
    requested = replace(
        server,
        model=server.model or newest.name,
        timeout=min(server.timeout or FIRST_RESPONSE_SECONDS, FIRST_RESPONSE_SECONDS),
    )
    by_bundle = server.version is None and server.label is None and newest.version > 0
    if by_bundle:
        requested = replace(requested, version=newest.version)
    with Client(replace(requested, convert=False)) as client:
        try:
            metadata = client.metadata()
        except ModelNotFound as error:
            if by_bundle:
                error.remedy = (
                    f"Serve {newest.path} there, or give its name on the server with --model_name"
                    " and its version with --model_version or --label."
                )
            raise
    _check_signatures(metadata.signatures, newest, f"{requested.model} at {requested.target}")
    version = metadata.version or requested.version
    return replace(requested, version=version, label=None, timeout=server.timeout)


def _check_signatures(signatures: Any, model: Bundle, where: str) -> None:
    """Check that the server's model has the signatures of a hubhead bundle, with embeddings of equal length.

    Raises:
        BundleError: a signature is missing, or embeddings have another length.
    """
    dimension = model.metadata.dimension
    for name, tensors in (
        (contract.EMBED, "outputs"),
        (contract.CLASSIFY_EMBEDDING, "inputs"),
    ):
        found = signatures.get(name)
        info = getattr(found, tensors).get(contract.EMBEDDING) if found else None
        if info is None:
            raise BundleError(
                f"The model {where} has no signature {name!r} with a tensor {contract.EMBEDDING!r}.",
                remedy=f"Serve the bundle {model.path} there.",
            )
        if info.shape and info.shape[-1] not in (None, dimension):
            raise BundleError(
                f"The model {where} has embeddings of {info.shape[-1]} numbers; those of {model.path}"
                f" have {dimension}.",
                remedy=f"Serve the bundle {model.path} there.",
            )


def connect(server: ClientConfig, heads: Sequence[HeadRunner]) -> RemoteBackbone:
    """Connect to the backbone on a model server, and verify that it is the one of the heads.

    Raises:
        ServerError: no server answers, or it has no such model or version.
        BundleError: the server has another model.
    """
    resolved = resolve_version(server, [head.bundle for head in heads])
    with ExitStack() as stack:
        client = Client(replace(resolved, convert=False, retry=RETRY_UNTIL_TIMEOUT))
        stack.callback(client.close)
        verify_head(client, heads)
        metadata = client.metadata()
        stack.pop_all()  # the client stays open
    return RemoteBackbone(client, heads[0].bundle.metadata.dimension, metadata.engine, metadata.cpu)


def verify_head(client: Client, heads: Sequence[HeadRunner]) -> None:
    """Verify that the server's model has one of the heads, by its probabilities for fixed embeddings.

    Raises:
        ServerError: no server answers.
        BundleError: the server has another model.
    """
    embeddings = probe_embeddings(heads[0].bundle.metadata.dimension)
    inputs = {contract.EMBEDDING: embeddings.astype(np.float32)}
    remote = client.run(contract.CLASSIFY_EMBEDDING, inputs).get(contract.PROBABILITIES)
    for head in heads:
        block = head_runner.pad_block(embeddings)
        local = head.run({contract.EMBEDDING: block})[contract.PROBABILITIES][:PROBES]
        if remote is not None and remote.shape == local.shape and np.allclose(remote, local, 0, _TOLERANCE):
            return
    paths = " or ".join(str(head.bundle.path) for head in heads)
    raise BundleError(
        f"The model {client.model} at {client.target} is not {paths}: its head gives other probabilities.",
        remedy="Give the --model that is served there, or its version with --model_version or --label."
        " Embeddings of another backbone would corrupt the embedding store.",
    )


def probe_embeddings(dimension: int) -> NDArray[np.float16]:
    """Return embeddings that distinguish heads. They are sparse, so that every single weight matters.

    Returns:
        float16 [PROBES,dimension], the same on every call.
    """
    generator = np.random.default_rng(0)
    embeddings = np.zeros((PROBES, dimension), np.float16)
    for row in embeddings:
        at = generator.choice(dimension, min(_NONZERO_PER_PROBE, dimension), replace=False)
        row[at] = generator.uniform(0.5, 2.0, len(at))
    return embeddings
