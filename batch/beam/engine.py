"""The job of a cluster's engine: who it is, what it does, and how it is cancelled when its driver has gone.

An engine goes on with a job whose driver has ended. Its workers cannot change the dataset
(batch.output.attempt), but they use the cluster. So the driver cancels its job when it ends early, and the
next attempt asks for the job of an attempt that could not: Beam's job service if it is still there (Beam's
Job API, `GetState` and `Cancel`), otherwise Flink's REST API (`/jobs/overview`, `PATCH /jobs/<id>`).
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from batch.monitoring.json_record import JsonRecord

_TIMEOUT_SECONDS = 5.0
_ENDED = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED", "STOPPED", "FINISHED", "CANCELED")
"""States of Beam and of Flink in which a job does nothing any more."""


@dataclass(frozen=True)
class EngineJob(JsonRecord):
    """The job of a run, as its attempt records it.

    Attributes:
        name: name of the job, which contains the token of the attempt.
        runner: name of Beam's runner.
        endpoint: address of Beam's job service, HOST:PORT; "" if the driver started its own.
        id: id of the job at that service; "" before it is known.
        flink: address of Flink's REST API, HOST:PORT or a URL; "" for none.
        pool: address of the workers' pool as the engine sees it; "" for none.
    """

    name: str
    runner: str
    endpoint: str = ""
    id: str = ""
    flink: str = ""
    pool: str = ""

    @classmethod
    def from_options(cls, options: Any, name: str) -> EngineJob:
        """Return the job of a pipeline with these options (apache_beam PipelineOptions)."""
        from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions, StandardOptions

        portable = options.view_as(PortableOptions)
        master = str(options.view_as(FlinkRunnerOptions).flink_master or "")
        is_external = portable.environment_type == "EXTERNAL"
        return cls(
            name,
            str(options.view_as(StandardOptions).runner).rpartition(".")[2],
            endpoint=str(portable.job_endpoint or ""),
            flink="" if master.startswith("[") else master,
            pool=str(portable.environment_config or "") if is_external else "",
        )

    @property
    def where(self) -> str:
        """The places to look for the job at, in words."""
        places = [f"job {self.id}" if self.id else f"job {self.name}", f"runner {self.runner}"]
        places += [f"Flink at {_flink_url(self.flink)}"] if self.flink else []
        places += [f"job server {self.endpoint}"] if self.endpoint else []
        return ", ".join([*places, *([f"worker pool {self.pool}"] if self.pool else [])])

    def cancel(self) -> str:
        """Cancel the job if the engine still runs it, and return what was found, in words; "" for nothing.

        Raises:
            OSError: the engine does not answer, so that the job may still be running.
        """
        state, cancelled = "", False
        if self.endpoint and self.id:
            state, cancelled = _cancel_beam_job(self.endpoint, self.id)
        elif self.flink:
            state, cancelled = _cancel_flink_job(_flink_url(self.flink), self.name)
        elif self.endpoint or self.runner != "FlinkRunner":
            raise OSError("it cannot be asked for this job")
        return f"It was {state} and has been cancelled." if cancelled else ""


def _cancel_beam_job(endpoint: str, job_id: str) -> tuple[str, bool]:
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        try:
            request = beam_job_api_pb2.GetJobStateRequest(job_id=job_id)
            found = service.GetState(request, timeout=_TIMEOUT_SECONDS).state
            state = beam_job_api_pb2.JobState.Enum.Name(found)
            if state in _ENDED:
                return state, False
            service.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=job_id), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if error.code() in (
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.UNKNOWN,
            ):  # a job server that restarted
                return "unknown", False
            raise OSError(f"{endpoint} answers {error.code().name}") from error
    return state, True


def _cancel_flink_job(url: str, name: str) -> tuple[str, bool]:
    # An own engine is asked without a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/jobs/overview", timeout=_TIMEOUT_SECONDS) as response:
        content = response.read()
    try:
        jobs = json.loads(content)["jobs"]
        running = [job for job in jobs if name in job["name"] and job["state"] not in _ENDED]
    except (ValueError, LookupError, TypeError) as error:
        raise OSError(f"{url} is not the REST API of Flink") from error
    for job in running:
        request = urllib.request.Request(f"{url}/jobs/{job['jid']}?mode=cancel", method="PATCH")
        opener.open(request, timeout=_TIMEOUT_SECONDS).close()
    return (str(running[0]["state"]), True) if running else ("", False)


def _flink_url(master: str) -> str:
    return master if "://" in master else f"http://{master}"
