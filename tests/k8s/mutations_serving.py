"""Mutations of the model servers."""

from __future__ import annotations

from tests.k8s.mutations import Mutation, edit, pod_of_server, serve, spec_of, swap
from tests.k8s.reading import container, find

AGE = "--grpc_channel_arguments=grpc.max_connection_age_ms=30000"

SERVING = [
    Mutation(
        "a service selects no pod",
        lambda m: spec_of(m, "Service", "hubhead-serving-grpc")["selector"].update(
            {"app.kubernetes.io/component": "server"}
        ),
    ),
    Mutation(
        "a disruption budget that selects the jobs too",
        lambda m: spec_of(m, "PodDisruptionBudget").update(
            selector={"matchLabels": {"app.kubernetes.io/part-of": "hubhead"}}
        ),
    ),
    Mutation(
        "a disruption budget that prevents draining",
        lambda m: spec_of(m, "PodDisruptionBudget").update(maxUnavailable=0),
    ),
    Mutation(
        "a service targets an unknown port",
        lambda m: spec_of(m, "Service", "hubhead-serving-rest")["ports"][0].update(targetPort="http"),
    ),
    Mutation(
        "the gRPC service has one address",
        lambda m: spec_of(m, "Service", "hubhead-serving-grpc").pop("clusterIP"),
    ),
    Mutation(
        "callers reach unready servers",
        lambda m: spec_of(m, "Service", "hubhead-serving-grpc").update(publishNotReadyAddresses=True),
    ),
    Mutation(
        "the first promotion finds no server",
        lambda m: spec_of(m, "Service", "hubhead-serving-control").pop("publishNotReadyAddresses"),
    ),
    Mutation(
        "a probe of an unused port",
        lambda m: serve(m)["livenessProbe"]["grpc"].update(port=8502),
    ),
    Mutation(
        "a busy server is killed",
        lambda m: serve(m)["livenessProbe"].update(failureThreshold=1, periodSeconds=5),
    ),
    Mutation("no time to load the models", lambda m: serve(m)["startupProbe"].update(failureThreshold=3)),
    Mutation(
        "ready without a stable version",
        lambda m: serve(m)["readinessProbe"]["httpGet"].update(path="/v1/models/food"),
    ),
    Mutation("no readiness probe", lambda m: serve(m).pop("readinessProbe")),
    Mutation("the server listens on another port", lambda m: swap(serve(m), "--port=8500", "--port=9000")),
    Mutation(
        "the health service is disabled", lambda m: swap(serve(m), "--enable_grpc_healthcheck_service", None)
    ),
    Mutation("a flag is mistyped", lambda m: swap(serve(m), "--enable_batching", "--enable_batch")),
    Mutation(
        "a flag of the local server is mistyped",
        lambda m: swap(serve(m), "--port=8500", "--prot=8500"),
        "local",
    ),
    Mutation(
        "an invalid value of a flag of the local server",
        lambda m: swap(serve(m), "--port=8500", "--port=grpc"),
        "local",
    ),
    Mutation("a batching file without batching", lambda m: swap(serve(m), "--enable_batching", None)),
    Mutation(
        "the entrypoint instead of the binary",
        lambda m: serve(m).update(command=["/usr/bin/tf_serving_entrypoint.sh"]),
    ),
    Mutation(
        "the server does not read promotions",
        lambda m: swap(serve(m), "--model_config_file_poll_wait_seconds=5", None),
    ),
    Mutation(
        "the server cannot start with labels",
        lambda m: swap(serve(m), "--allow_version_labels_for_unavailable_models", None),
    ),
    Mutation(
        "the server never reads promotions",
        lambda m: swap(
            serve(m),
            "--model_config_file=/models/model.config",
            "--model_config_file=/etc/tensorflow-serving/model.config",
        ),
    ),
    Mutation("no maximum connection age", lambda m: swap(serve(m), AGE, None)),
    Mutation("connections outlive preStop", lambda m: swap(serve(m), AGE, AGE + "0")),
    Mutation(
        "grace period shorter than preStop",
        lambda m: pod_of_server(m).update(terminationGracePeriodSeconds=30),
    ),
    Mutation("no preStop", lambda m: serve(m).pop("lifecycle")),
    Mutation(
        "a mistyped grace period field",
        lambda m: pod_of_server(m).update(
            terminationGracePeriod=pod_of_server(m).pop("terminationGracePeriodSeconds")
        ),
    ),
    Mutation(
        "a rollout without surge and without unavailable servers",
        lambda m: spec_of(m, "Deployment")["strategy"]["rollingUpdate"].update(maxSurge=0),
    ),
    Mutation(
        "all servers unavailable in a rollout",
        lambda m: spec_of(m, "Deployment")["strategy"]["rollingUpdate"].update(maxUnavailable=2),
    ),
    Mutation("all servers on one node", lambda m: pod_of_server(m).pop("topologySpreadConstraints")),
    Mutation(
        "a spread over other pods",
        lambda m: pod_of_server(m)["topologySpreadConstraints"][0].update(
            labelSelector={"matchLabels": {"app": "hubhead"}}
        ),
    ),
    Mutation(
        "a batch size without warm-up",
        lambda m: edit(
            m, "batching_parameters.txt", "allowed_batch_sizes: 16\n", "allowed_batch_sizes: 24\n"
        ),
    ),
    Mutation(
        "batches larger than the allowed sizes",
        lambda m: edit(
            m, "batching_parameters.txt", "max_batch_size { value: 32 }", "max_batch_size { value: 64 }"
        ),
    ),
    Mutation(
        "too few threads to fill a batch",
        lambda m: swap(serve(m), "--grpc_max_threads=384", "--grpc_max_threads=16"),
    ),
    Mutation(
        "a batching parameter is mistyped",
        lambda m: edit(m, "batching_parameters.txt", "batch_timeout_micros", "batch_timeout_ms"),
    ),
    Mutation(
        "a damaged model.config",
        lambda m: edit(m, "model.config", "model_config_list {", "model_config_list"),
    ),
    Mutation(
        "servers and promotions use different base paths",
        lambda m: edit(m, "model.config", "/models/food", "/models/birds"),
    ),
    Mutation("another model name", lambda m: edit(m, "model.config", '"food"', '"foods"')),
    Mutation("metrics are off", lambda m: edit(m, "monitoring.config", "enable: true", "enable: false")),
    Mutation(
        "a GPU limited but not requested",
        lambda m: serve(m)["resources"]["requests"].pop("nvidia.com/gpu"),
        "gpu",
    ),
    Mutation(
        "the GPU image without a GPU",
        lambda m: [part.pop("nvidia.com/gpu") for part in serve(m)["resources"].values()],
        "gpu",
    ),
    Mutation(
        "a server takes the whole GPU",
        lambda m: edit(m, "session.config", "allow_growth: true", "allow_growth: false"),
        "gpu",
    ),
    Mutation(
        "a read-only kernel cache",
        lambda m: next(v for v in serve(m)["volumeMounts"] if v["name"] == "cuda-cache").update(
            readOnly=True
        ),
        "gpu",
    ),
    Mutation(
        "float16 in a session.config that no flag names",
        lambda m: swap(
            serve(m), "--tensorflow_session_config_file=/etc/tensorflow-serving/session.config", None
        ),
        "mixed-precision",
    ),
    Mutation(
        "a platform config file, with which batching is ignored",
        lambda m: serve(m)["args"].append("--platform_config_file=/etc/tensorflow-serving/session.config"),
        "mixed-precision",
    ),
    Mutation(
        "a precision that the server does not know",
        lambda m: swap(serve(m), "--mixed_precision=bfloat16", "--mixed_precision=float16"),
        "mixed-precision-cpu",
    ),
    Mutation(
        "bfloat16 on CPUs of any kind",
        lambda m: pod_of_server(m).pop("affinity"),
        "mixed-precision-cpu",
    ),
    Mutation(
        "a surge without a spare GPU",
        lambda m: spec_of(m, "Deployment")["strategy"]["rollingUpdate"].update(maxSurge=1, maxUnavailable=0),
        "gpu-scarce",
        caught=False,
    ),
    Mutation(
        "half the memory that two versions need",
        lambda m: [part.update(memory="512Mi") for part in serve(m)["resources"].values()],
        caught=False,
    ),
    Mutation(
        "servers accept traffic from anywhere", lambda m: m.remove(find(m, "NetworkPolicy", "hubhead-closed"))
    ),
    Mutation(
        "a policy for an unknown port",
        lambda m: spec_of(m, "NetworkPolicy")["ingress"][0]["ports"][0].update(port="http"),
    ),
    Mutation("servers with unrestricted egress", lambda m: spec_of(m, "NetworkPolicy").update(egress=[{}])),
    Mutation(
        "an autoscaler of an unknown deployment",
        lambda m: spec_of(m, "HorizontalPodAutoscaler")["scaleTargetRef"].update(name="serving"),
        "autoscaling",
    ),
    Mutation(
        "an autoscaler and a fixed number", lambda m: spec_of(m, "Deployment").update(replicas=2), "keda"
    ),
    Mutation(
        "a monitor of a port that no service has",
        lambda m: spec_of(m, "ServiceMonitor")["endpoints"][0].update(port="http"),
        "servicemonitor",
    ),
    Mutation(
        "servers that are not ready hold up a drain",
        lambda m: spec_of(m, "PodDisruptionBudget").pop("unhealthyPodEvictionPolicy"),
    ),
    Mutation(
        "jobs on the volume instead of the servers' bucket",
        lambda m: swap(
            container(m, "hubhead-train", "validate"), "--live=gs://BUCKET/food", "--live=/models/food"
        ),
        "storage-gs",
    ),
    Mutation(
        "promotions to another bucket than the servers'",
        lambda m: swap(
            container(m, "hubhead-promote", "promote"),
            "--model_base_path=s3://BUCKET/food",
            "--model_base_path=s3://BUCKET/birds",
        ),
        "storage-s3",
    ),
    Mutation(
        "labels in a model.config that the servers do not copy",
        lambda m: swap(
            container(m, "hubhead-rollback", "rollback"),
            "--model_config_file=s3://BUCKET/model.config",
            "--model_config_file=/models/model.config",
        ),
        "storage-s3",
    ),
    Mutation(
        "a bucket listed every second",
        lambda m: swap(serve(m), "--file_system_poll_wait_seconds=60", None),
        "storage-gs",
    ),
]
