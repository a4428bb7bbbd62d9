"""What holds for the model servers: their flags, files, rollouts and scaling."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import text_format

from serving import contract, protos
from tests.k8s.reading import (
    Check,
    Manifest,
    arguments,
    containers,
    find,
    flags,
    is_local,
    location,
    of_kind,
    server,
    server_flags,
    settings_of,
)

# The flags of tensorflow_serving/model_servers/main.cc. The server says "unknown argument" of any
# other and starts without it.
SERVER_SWITCHES = frozenset(
    re.findall(
        r"\w+",
        """allow_version_labels_for_unavailable_models enable_batching enable_grpc_healthcheck_service
    enable_model_warmup enable_per_model_batching_parameters enable_profiler
    enable_serialization_as_tensor_content enable_signature_method_name_check flush_filesystem_caches
    prefer_tflite_model remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support
    skip_initialize_tpu use_alts_credentials version xla_cpu_compilation_enabled
    xla_gpu_compilation_enabled""",
    )
)
SERVER_SETTINGS = frozenset(
    re.findall(
        r"\w+",
        """batching_parameters_file file_system_poll_wait_seconds grpc_channel_arguments grpc_max_threads
    grpc_socket_path load_retry_interval_micros max_num_load_retries mixed_precision model_base_path
    model_config_file model_config_file_poll_wait_seconds model_name monitoring_config_file
    num_load_threads num_request_iterations_for_warmup num_tflite_interpreters_per_pool num_tflite_pools
    num_unload_threads per_process_gpu_memory_fraction platform_config_file port rest_api_num_threads
    rest_api_port rest_api_timeout_in_ms saved_model_tags ssl_config_file
    tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism tensorflow_session_config_file
    tensorflow_session_parallelism thread_pool_factory_config_file""",
    )
)


def tensorflow_serving_knows_its_flags(manifests: list[Manifest]) -> list[str]:
    if is_local(manifests):
        return []
    _, container = server(manifests)
    findings = []
    if container["command"] != ["/usr/bin/tensorflow_model_server"]:
        findings.append("not the binary itself: the image's entrypoint swallows signals")
    for arg in container["args"]:
        name, equals, _ = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in (SERVER_SETTINGS if equals else SERVER_SWITCHES):
            findings.append(f"{arg} is no flag of the server, or lacks its value")
    given = server_flags(manifests)
    if "batching_parameters_file" in given and "enable_batching" not in given:
        findings.append("the server refuses to start: a batching file without batching")
    return findings


def labels_can_move(manifests: list[Manifest]) -> list[str]:
    """The server reads the file that promotions write, and starts where its labels are ahead of it."""
    given = server_flags(manifests)
    findings = []
    if not 0 < float(given.get("model_config_file_poll_wait_seconds", 0)) <= 60:
        findings.append("does not read model.config again")
    if "allow_version_labels_for_unavailable_models" not in given:
        findings.append("cannot start with labels")
    written = {
        flags(arguments(container))["model_config_file"]
        for _, _, container in containers(manifests)
        if container.get("command", [""])[-1] in ("promote", "rollback")
    }
    if written != {given.get("model_config_file")}:
        findings.append(f"reads {given.get('model_config_file')}, promotions write {written}")
    seed = next(c for _, _, c in containers(manifests) if c["name"] == "seed")
    if f'ln "/models/.$HOSTNAME" {given.get("model_config_file")}' not in seed["args"][0]:
        findings.append("nobody makes the first model.config")
    return findings


def files_parse(manifests: list[Manifest]) -> list[str]:
    """As the messages that the server reads them as; session.config has a test of its own."""
    messages = {
        "model.config": protos.ModelServerConfig,
        "batching_parameters.txt": protos.BatchingParameters,
        "monitoring.config": protos.MonitoringConfig,
    }
    findings = []
    for name, text in settings_of(manifests).items():
        try:
            message: Any = text_format.Parse(text, messages[name]()) if name in messages else None
        except text_format.ParseError as error:
            findings.append(f"{name}: {error}")
            continue
        if name == "monitoring.config" and not message.prometheus_config.enable:
            findings.append("no metrics")
    return findings


def models_agree(manifests: list[Manifest]) -> list[str]:
    """One model, where the servers, the jobs and the probe look for it."""
    config: Any = text_format.Parse(settings_of(manifests)["model.config"], protos.ModelServerConfig())
    models = list(config.model_config_list.config)
    if [(model.name, model.model_platform) for model in models] != [("food", "tensorflow")]:
        return [f"model.config has {[model.name for model in models]}"]
    if models[0].model_version_policy.WhichOneof("policy_choice") or models[0].version_labels:
        return ["model.config names versions before there are any"]
    findings = []
    pod, container = server(manifests)
    base = models[0].base_path
    if base.startswith("gs://"):
        if float(server_flags(manifests).get("file_system_poll_wait_seconds", 1)) < 30:
            findings.append("asks a bucket every second, which costs")
    elif "persistentVolumeClaim" in location(pod, container, base)[0]:
        for owner, other, job in containers(manifests):
            given = flags(arguments(job))
            for flag in {"model_base_path", "live", "model"} & given.keys():
                there = location(other, job, given[flag])
                if there[:2] != location(pod, container, base)[:2]:
                    findings.append(f"{owner}: --{flag}={given[flag]} is not where the servers look")
    for owner, _, job in containers(manifests):
        if flags(arguments(job)).get("model_name", "food") != "food":
            findings.append(f"{owner}: asks for another model")
    return findings


def batching_fits_the_bundle(manifests: list[Manifest]) -> list[str]:
    """Batches have the sizes that bundles are warmed for, and the server threads enough to fill them.

    A thread of the server waits with each request, so it needs one for each that a batch may hold.
    """
    if is_local(manifests):
        return []
    batching: Any = text_format.Parse(
        settings_of(manifests)["batching_parameters.txt"], protos.BatchingParameters()
    )
    findings = []
    if tuple(batching.allowed_batch_sizes) != contract.WARMUP_BATCH_SIZES:
        findings.append(f"allows {batching.allowed_batch_sizes}, warmed for {contract.WARMUP_BATCH_SIZES}")
    if batching.max_batch_size.value != max(batching.allowed_batch_sizes, default=0):
        findings.append("the server refuses to start: the last allowed size must be max_batch_size")
    batches = batching.num_batch_threads.value + batching.max_enqueued_batches.value
    if int(server_flags(manifests).get("grpc_max_threads", 0)) < batches * batching.max_batch_size.value:
        findings.append(f"too few threads for {batches} batches of {batching.max_batch_size.value}")
    _, container = server(manifests)
    if str(batching.num_batch_threads.value) != container["resources"]["requests"]["cpu"]:
        findings.append("a batch thread for each requested CPU")
    return findings


def servers_drain(manifests: list[Manifest]) -> list[str]:
    """Clients leave a server before it is killed.

    A client's connection ends at its age, which gRPC varies by a tenth; only then does it look for
    other servers.
    """
    pod, container = server(manifests)
    age = re.search(
        r"grpc\.max_connection_age_ms=(\d+)", server_flags(manifests).get("grpc_channel_arguments", "")
    )
    leaving = int(age[1]) / 1000 * 1.1 if age else float("inf")
    waiting = int(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])[-1])
    grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
    if leaving < waiting < grace:
        return []
    return [f"clients leave within {leaving} s, preStop waits {waiting} s, the kill comes after {grace} s"]


def rollouts_end(manifests: list[Manifest]) -> list[str]:
    """A rollout gets on, and never leaves nobody to answer."""
    spec = find(manifests, "Deployment", "hubhead-serving")["spec"]
    rolling = spec["strategy"]["rollingUpdate"]
    surge, unavailable = rolling["maxSurge"], rolling["maxUnavailable"]
    replicas = spec.get("replicas", 2)
    findings = []
    if surge == 0 and unavailable == 0:
        findings.append("no server may end and none may be added")
    if unavailable >= replicas:
        findings.append(f"all {replicas} servers may be away at once")
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        away = budget["spec"].get("maxUnavailable", replicas - budget["spec"].get("minAvailable", 0))
        if away < 1:
            findings.append("nodes can never be drained")
        elif away >= replicas > 1:
            findings.append("all servers may be evicted at once")
    pod, _ = server(manifests)
    keys = [spread["topologyKey"] for spread in pod["spec"].get("topologySpreadConstraints", [])]
    if "kubernetes.io/hostname" not in keys:
        findings.append("all servers may be on one node")
    return findings


def services_are_of_their_kind(manifests: list[Manifest]) -> list[str]:
    """gRPC clients see every server, REST clients one address, promotions also who is not ready."""
    specs = {m["metadata"]["name"]: m["spec"] for m in of_kind(manifests, "Service")}
    found = {
        name: (spec.get("clusterIP") == "None", spec.get("publishNotReadyAddresses", False))
        for name, spec in specs.items()
    }
    wanted = {
        "hubhead-serving-grpc": (True, False),
        "hubhead-serving-control": (True, True),
        "hubhead-serving-rest": (False, False),
    }
    return [] if found == wanted else [f"services (headless, also who is not ready): {found}"]


def networks_are_closed(manifests: list[Manifest]) -> list[str]:
    policies = {m["metadata"]["name"]: m["spec"] for m in of_kind(manifests, "NetworkPolicy")}
    findings = []
    if policies.get("hubhead-closed") != {"podSelector": {}, "policyTypes": ["Ingress"]}:
        findings.append("pods are open to everybody")
    serving = policies.get("hubhead-serving", {})
    if "Egress" not in serving.get("policyTypes", []) or serving.get("egress"):
        findings.append("servers may call anybody")
    sources = [
        source
        for policy in policies.values()
        for rule in policy.get("ingress", [])
        for source in rule.get("from", [{}])
    ]
    if any(source == {} or source.get("namespaceSelector") == {} for source in sources):
        findings.append("a rule lets everybody in")
    return findings


def gpus_are_used(manifests: list[Manifest]) -> list[str]:
    """An image for GPUs, a GPU, and what goes with it; or none of it."""
    pod, container = server(manifests)
    gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu")
    given = server_flags(manifests)
    session = settings_of(manifests).get("session.config", "")
    environment = {env["name"]: env["value"] for env in container.get("env", [])}
    cache = environment.get("CUDA_CACHE_PATH")
    signs = {
        "a GPU": gpus == "1",
        "the image for GPUs": container["image"].endswith("-gpu"),
        "a toleration": any(t.get("key") == "nvidia.com/gpu" for t in pod["spec"].get("tolerations", [])),
        "memory as it is needed": "tensorflow_session_config_file" in given
        and re.search(r"^gpu_options\s*{\s*allow_growth:\s*true\s*}", session, re.MULTILINE) is not None,
        "a cache for kernels": bool(cache) and location(pod, container, cache or "")[2],
    }
    if all(signs.values()) or not any(signs.values()):
        return []
    return [f"lacks {[sign for sign, there in signs.items() if not there]}, and has the rest"]


def scaling_is_sound(manifests: list[Manifest]) -> list[str]:
    """One says how many servers there are: the Deployment, or what scales it by the time in the queue."""
    given = "replicas" in find(manifests, "Deployment", "hubhead-serving")["spec"]
    scalers = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    findings = []
    if given is bool(scalers):
        findings.append("both or none of the Deployment and a scaler say how many servers there are")
    for scaler in scalers:
        spec = scaler["spec"]
        target = spec["scaleTargetRef"]
        if (target.get("kind", "Deployment"), target["name"]) != ("Deployment", "hubhead-serving"):
            findings.append(f"scales {target}")
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        high = spec.get("maxReplicas", spec.get("maxReplicaCount", 0))
        if not 2 <= low <= high:
            findings.append(f"scales from {low} to {high}")
        for trigger in spec.get("triggers", []):
            query = trigger["metadata"]["query"]
            if ":batching_session:queuing_latency_sum" not in query or "clamp_min" not in query:
                findings.append("does not scale by the time in the queue, or divides by zero")
    return findings


CHECKS: list[Check] = [
    tensorflow_serving_knows_its_flags,
    labels_can_move,
    files_parse,
    models_agree,
    batching_fits_the_bundle,
    servers_drain,
    rollouts_end,
    services_are_of_their_kind,
    networks_are_closed,
    gpus_are_used,
    scaling_is_sound,
]
