"""The backbone on a model server (`--server`): photos are embedded there, and heads run here.

Only `embed` is asked of the server. The head is one product of matrices, and the answers of a worker
that has it are the same to the last bit whether a photo was embedded now or is in the store, here or
there; so a run may go on without its server, and several heads are scored in one pass.

Embeddings of another backbone would spoil the store for every later run. A fingerprint does not
travel over the protocol, so a server is told by its head: `classify_embedding` has to answer there
as the bundle does here, which only a head trained on the same embeddings does. The version that was
looked at is then asked for by its number, whatever the server loads meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch.scoring import head_runner
from batch.scoring.head_runner import HeadRunner
from batch.scoring.shard import UNANSWERED
from serving import contract
from serving.bundle import Bundle
from serving.client import Client, ClientConfig, Embedding, Retry
from serving.errors import BundleError, ModelNotFound, ServerError

RETRY_UNTIL_TIMEOUT = Retry(attempts=1 << 30, first=0.2, most=10.0)
"""For as long as the timeout of a request allows; some six times a minute at last."""

FIRST_RESPONSE_SECONDS = 10.0
"""For the first answer of a server, at most: nobody is to wait for an address that is wrong."""

ROWS_PER_OUTPUT = 32
"""Photos in one output."""

PROBES = 64
_NONZERO_PER_PROBE = 8
_TOLERANCE = 2e-3
"""Between probabilities of one head on processors of two kinds; a GPU multiplies with 11 bits."""


class RemoteBackbone:
    """What a worker needs of `serving.runtime.Model`, asked of a server.

    Args:
        client: of the model; it is closed by nobody, as the worker lives as long as its process.
        dimension: of an embedding.
    """

    def __init__(self, client: Client, dimension: int) -> None:
        self._client = client
        self._blank = np.zeros(dimension, np.float32)

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """The outputs of `embed` for any number of photos, some at a time, in bounded memory.

        Several requests are under way, as many as the server takes without a queue. A photo that the
        server fails on, alone too, has no embedding and the reason in `batch.scoring.shard.UNANSWERED`.

        Raises:
            ServerError: it did not answer for as long as the client's timeout.
        """
        assert (signature, input_name) == (contract.EMBED, contract.IMAGE_BYTES)
        try:
            with closing(self._client.iembed(items)) as answers:
                while some := [embedding for _, embedding in islice(answers, ROWS_PER_OUTPUT)]:
                    yield self._outputs(some)
        except ServerError as error:
            error.remedy += " Then run the same command again: what is finished is kept."
            raise

    def _outputs(self, some: Sequence[Embedding]) -> dict[str, NDArray[Any]]:
        return {
            contract.EMBEDDING: np.stack([self._blank if one.vector is None else one.vector for one in some]),
            contract.STATUS: np.array([one.status.encode() for one in some], object),
            contract.HEIGHT: np.array([one.height for one in some], np.int32),
            contract.WIDTH: np.array([one.width for one in some], np.int32),
            UNANSWERED: np.array([one.detail for one in some], object),
        }


def resolve_version(server: ClientConfig, bundles: Sequence[Bundle]) -> ClientConfig:
    """The same server with the name and the number of the version that is to be asked; no TensorFlow.

    Args:
        server: where it is, and what to ask it for; by default for the newest of the bundles.
        bundles: one of them is served there.

    Raises:
        ServerError: nothing answers there, or there is no such model or version.
        BundleError: it is another model.
    """
    newest = max(bundles, key=lambda model: model.version)
    asked = replace(
        server,
        model=server.model or newest.name,
        timeout=min(server.timeout, FIRST_RESPONSE_SECONDS),
    )
    by_bundle = server.version is None and server.label is None and newest.version > 0
    if by_bundle:
        asked = replace(asked, version=newest.version)
    with asked.client(convert=False) as client:
        try:
            about = client.metadata()
        except ModelNotFound as error:
            if by_bundle:
                error.remedy = (
                    f"Serve {newest.path} there, or say what it is called with --model_name"
                    " and --model_version or --label."
                )
            raise
    _check_signatures(about.signatures, newest, f"{asked.model} at {asked.target}")
    return replace(asked, version=about.version or asked.version, label=None, timeout=server.timeout)


def _check_signatures(signatures: Any, model: Bundle, where: str) -> None:
    dimension = model.metadata.dimension
    for name, tensors in (
        (contract.EMBED, "outputs"),
        (contract.CLASSIFY_EMBEDDING, "inputs"),
    ):
        found = signatures.get(name)
        info = getattr(found, tensors).get(contract.EMBEDDING) if found else None
        if info is None:
            raise BundleError(
                f"The model {where} has no signature {name!r} with embeddings.",
                remedy=f"Serve {model.path} there.",
            )
        if info.shape and info.shape[-1] not in (None, dimension):
            raise BundleError(
                f"The model {where} has embeddings of {info.shape[-1]} numbers; those of {model.path}"
                f" have {dimension}.",
                remedy=f"Serve {model.path} there.",
            )


def connect(server: ClientConfig, heads: Sequence[HeadRunner]) -> RemoteBackbone:
    """The backbone there, after a look at whether it is that of the heads.

    Raises:
        ServerError: nothing answers there, or there is no such model or version.
        BundleError: it is another model.
    """
    found = resolve_version(server, [one.bundle for one in heads])
    client = found.client(convert=False, retry=RETRY_UNTIL_TIMEOUT)
    try:
        verify_head(client, heads)
    except BaseException:
        client.close()
        raise
    return RemoteBackbone(client, heads[0].bundle.metadata.dimension)


def verify_head(client: Client, heads: Sequence[HeadRunner]) -> None:
    """Make sure that the model of one of the heads answers.

    Raises:
        ServerError: nothing answers.
        BundleError: it is another model.
    """
    embeddings = probe_embeddings(heads[0].bundle.metadata.dimension)
    inputs = {contract.EMBEDDING: embeddings}
    there = client.run(contract.CLASSIFY_EMBEDDING, inputs).get(contract.PROBABILITIES)
    for one in heads:
        block = np.zeros((head_runner.BLOCK_ROWS, embeddings.shape[1]), np.float32)
        block[:PROBES] = embeddings
        here = one.run({contract.EMBEDDING: block})[contract.PROBABILITIES][:PROBES]
        if there is not None and there.shape == here.shape and np.allclose(there, here, 0, _TOLERANCE):
            return
    paths = " or ".join(str(one.bundle.path) for one in heads)
    raise BundleError(
        f"The model {client.model} at {client.target} is not {paths}: its head gives other probabilities.",
        remedy="Give the --model that is served, or the version with --model_version or --label."
        " Its embeddings would not go with those in the store.",
    )


def probe_embeddings(dimension: int) -> NDArray[np.float32]:
    """Embeddings that tell heads apart: few numbers in each are not 0, so that single weights show.

    Returns:
        float32 [PROBES,dimension], the same every time.
    """
    generator = np.random.default_rng(0)
    found = np.zeros((PROBES, dimension), np.float32)
    for row in found:
        at = generator.choice(dimension, min(_NONZERO_PER_PROBE, dimension), replace=False)
        row[at] = generator.uniform(0.5, 2.0, len(at))
    return found
