"""The job of a cluster's engine: who it is, what it does, and how it is cancelled when its driver has gone.

An engine goes on with a job whose driver has ended. Its workers cannot change the dataset
(batch.output.attempt), but they use the cluster. So the driver cancels its job when it ends early, and the
next attempt asks for the job of an attempt that could not: Beam's job service if it is still there and knows
the job (Beam's Job API, `GetJobs` and `Cancel`), otherwise Flink's REST API (`/jobs/overview`,
`PATCH /jobs/<id>`). A job server that restarted, such as the sidecar of a new pod, knows no earlier job.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from batch.beam.imports import import_beam
from batch.monitoring.json_record import JsonRecord

_TIMEOUT_SECONDS = 5.0
_NAME_OPTION = "beam:option:job_name:v1"
_ENDED = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED", "STOPPED", "FINISHED", "CANCELED")
"""States of Beam and of Flink in which a job does nothing any more."""


@dataclass(frozen=True)
class EngineJob(JsonRecord):
    """The job of a run, as its attempt records it.

    Attributes:
        name: name of the job.
        runner: name of Beam's runner.
        endpoint: address of Beam's job service, HOST:PORT; "" if the driver started its own.
        id: id of the job at that service; "" before it is known.
        flink: address of Flink's REST API, HOST:PORT or a URL; "" for none.
        pool: address of the workers' pool as the engine sees it; "" for none.
        is_named: True if the user named the job. Otherwise the name has the token of the attempt, so that the
            job can be found by it.
    """

    name: str
    runner: str
    endpoint: str = ""
    id: str = ""
    flink: str = ""
    pool: str = ""
    is_named: bool = False

    @classmethod
    def from_options(cls, options: Any, name: str) -> EngineJob:
        """Return the job of a pipeline with these options (apache_beam PipelineOptions), which get the name.

        Args:
            options: options of Beam.
            name: name of the job, with a token, unless the options have one.
        """
        from apache_beam.options.pipeline_options import (
            FlinkRunnerOptions,
            GoogleCloudOptions,
            PortableOptions,
            StandardOptions,
        )

        cloud = options.view_as(GoogleCloudOptions)
        is_named = cloud.job_name is not None
        cloud.job_name = cloud.job_name or name
        portable = options.view_as(PortableOptions)
        master = str(options.view_as(FlinkRunnerOptions).flink_master or "")
        is_external = portable.environment_type == "EXTERNAL"
        return cls(
            str(cloud.job_name),
            str(options.view_as(StandardOptions).runner).rpartition(".")[2],
            endpoint=str(portable.job_endpoint or ""),
            flink="" if master.startswith("[") else master,
            pool=str(portable.environment_config or "") if is_external else "",
            is_named=is_named,
        )

    @property
    def where(self) -> str:
        """The places to look for the job at, in words."""
        places = [f"job {self.id}" if self.id else f"job {self.name}", f"runner {self.runner}"]
        places += [f"Flink at {_flink_url(self.flink)}"] if self.flink else []
        places += [f"job server {self.endpoint}"] if self.endpoint else []
        return ", ".join([*places, *([f"worker pool {self.pool}"] if self.pool else [])])

    @property
    def services(self) -> tuple[str, str]:
        """The services that can be asked for the job."""
        return self.endpoint, self.flink

    def cancel(self) -> str:
        """Cancel the job if the engine still runs it, and return what was found, in words; "" for nothing.

        Raises:
            OSError: the engine does not answer or does not know the job, which may still be running.
        """
        name = "" if self.is_named else self.name
        if not any(self.services) and self.runner == "FlinkRunner":
            return ""  # Flink within the driver's own job server, which ends with it
        error: OSError | None = OSError("it cannot be asked for this job")
        if self.endpoint and (self.id or name):
            try:
                if (found := _cancel_beam_job(self.endpoint, self.id, name)) is not None:
                    return found
                # Without an id the job has probably never been submitted.
                error = OSError(f"the job server {self.endpoint} does not know it") if self.id else None
            except OSError as failure:
                error = failure
        if self.flink and name:
            return _cancel_flink_job(_flink_url(self.flink), name)
        if error:
            raise error
        return ""

    def read_state(self) -> str:
        """Return the state of the job as Beam's job service calls it, such as RUNNING.

        Raises:
            OSError: the service does not answer.
        """
        with _call_job_service(self.endpoint) as (service, messages):
            if not self.id:
                service.GetJobs(messages.GetJobsRequest(), timeout=_TIMEOUT_SECONDS)
                return "not submitted yet"
            found = service.GetState(
                messages.GetJobStateRequest(job_id=self.id), timeout=_TIMEOUT_SECONDS
            ).state
        return str(messages.JobState.Enum.Name(found))


@contextmanager
def _call_job_service(endpoint: str) -> Iterator[tuple[Any, Any]]:
    """Provide a stub of Beam's job service and its messages, and raise errors of calls as OSError."""
    import grpc

    import_beam()
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    # An own engine is asked without a proxy.
    with grpc.insecure_channel(endpoint, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            yield beam_job_api_pb2_grpc.JobServiceStub(channel), beam_job_api_pb2
        except grpc.RpcError as error:
            raise OSError(f"the job server {endpoint} answers {error.code().name}") from error


def _cancel_beam_job(endpoint: str, job_id: str, name: str) -> str | None:
    """Cancel a job that is given by its id or, without one, its name; return None if it is unknown."""
    with _call_job_service(endpoint) as (service, messages):
        for job in service.GetJobs(messages.GetJobsRequest(), timeout=_TIMEOUT_SECONDS).job_info:
            # Beam's Python SDK submits every job under the name `job`; the real one is among its options.
            if job_id in (job.job_id, "") and (job_id or job.pipeline_options[_NAME_OPTION] == name):
                state = messages.JobState.Enum.Name(job.state)
                if state in _ENDED:
                    return ""
                service.Cancel(messages.CancelJobRequest(job_id=job.job_id), timeout=_TIMEOUT_SECONDS)
                return f"It was {state} and has been cancelled."
    return None


def _cancel_flink_job(url: str, name: str) -> str:
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
    return f"It was {running[0]['state']} and has been cancelled." if running else ""


def _flink_url(master: str) -> str:
    return master if "://" in master else f"http://{master}"
