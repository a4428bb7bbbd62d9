"""Client of model servers that speak TensorFlow Serving's gRPC protocol; does not import TensorFlow.

    with Client("localhost:8500", model="food") as client:
        for prediction in client.classify(["a.jpg", "b.jpg"]):
            print(prediction.status, prediction.label, prediction.score)

        for photo, prediction in client.iclassify(Path("photos").rglob("*.jpg")):
            ...

    async with AsyncClient("dns:///food.serving:8500", model="food", label="stable") as client:
        predictions = await client.classify([upload])

Both clients perform the same sans-I/O operations (`sans_io`, `operations`, `retry`). `photos` turns what
callers hold into requests, `responses` turns responses into records.
"""

from serving.client.async_client import AsyncClient as AsyncClient
from serving.client.channel import ClientConfig as ClientConfig
from serving.client.channel import SecretHeaders as SecretHeaders
from serving.client.channel import Tls as Tls
from serving.client.client import Client as Client
from serving.client.photos import MAX_BYTES as MAX_BYTES
from serving.client.photos import MAX_PHOTOS as MAX_PHOTOS
from serving.client.photos import Photo as Photo
from serving.client.photos import classify as classify
from serving.client.responses import Embedding as Embedding
from serving.client.responses import Metadata as Metadata
from serving.client.responses import Signature as Signature
from serving.client.responses import State as State
from serving.client.responses import TensorInfo as TensorInfo
from serving.client.responses import VersionStatus as VersionStatus
from serving.client.responses import decode_predictions
from serving.client.retry import Retry as Retry
from serving.client.telemetry import Metrics as Metrics
from serving.contract import Prediction as Prediction

predictions = decode_predictions
"""Decode the outputs of `serving_default`; see serving/client/responses.py."""
