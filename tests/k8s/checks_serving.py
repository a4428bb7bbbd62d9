"""Checks of the model servers: flags, configuration files, rollouts, networks and scaling."""

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
    read_config_files,
    resolve_mount,
    select_kind,
    server,
    server_flags,
)

# Flags of tensorflow_serving/model_servers/main.cc. The server logs "unknown argument" for any other flag
# and ignores it.
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


def check_tensorflow_serving_flags(manifests: list[Manifest]) -> list[str]:
    if is_local(manifests):
        return []
    _, container = server(manifests)
    findings = []
    if container["command"] != ["/usr/bin/tensorflow_model_server"]:
        findings.append("not the binary itself: the image's entrypoint swallows signals")
    for arg in container["args"]:
        name, equals, _ = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in (SERVER_SETTINGS if equals else SERVER_SWITCHES):
            findings.append(f"{arg} is not a flag of the server, or has no value")
    given = server_flags(manifests)
    if "batching_parameters_file" in given and "enable_batching" not in given:
        findings.append("the server does not start: a batching file without batching")
    return findings


def synced_bucket(manifests: list[Manifest]) -> str:
    """Return the bucket from which a sidecar copies versions and model.config for the servers, or ""."""
    for _, _, container in containers(manifests):
        if container["name"] == "sync":
            return {env["name"]: str(env["value"]) for env in container["env"]}["BUCKET"]
    return ""


def check_labels_can_move(manifests: list[Manifest]) -> list[str]:
    """Check that the server polls the file that promotions write, and accepts labels of unloaded versions."""
    given = server_flags(manifests)
    findings = []
    if not 0 < float(given.get("model_config_file_poll_wait_seconds", 0)) <= 60:
        findings.append("does not poll model.config")
    if "allow_version_labels_for_unavailable_models" not in given:
        findings.append("cannot start with labels")
    written = {
        flags(arguments(container))["model_config_file"]
        for _, _, container in containers(manifests)
        if container.get("command", [""])[-1] in ("promote", "rollback")
    }
    bucket = synced_bucket(manifests)
    read = f"{bucket}/model.config" if bucket else given.get("model_config_file")
    if written != {read}:
        findings.append(f"reads {read}, promotions write {written}")
    seed = next(c for _, _, c in containers(manifests) if c["name"] == "seed")
    if f'ln "/models/.$HOSTNAME" {given.get("model_config_file")}' not in seed["args"][0]:
        findings.append("nothing creates the first model.config")
    return findings


def check_config_files_parse(manifests: list[Manifest]) -> list[str]:
    """Check that the configuration files parse as the server's messages; session.config has its own test."""
    messages = {
        "model.config": protos.ModelServerConfig,
        "batching_parameters.txt": protos.BatchingParameters,
        "monitoring.config": protos.MonitoringConfig,
    }
    findings = []
    for name, text in read_config_files(manifests).items():
        try:
            message: Any = text_format.Parse(text, messages[name]()) if name in messages else None
        except text_format.ParseError as error:
            findings.append(f"{name}: {error}")
            continue
        if name == "monitoring.config" and not message.prometheus_config.enable:
            findings.append("no metrics")
    return findings


def check_models_agree(manifests: list[Manifest]) -> list[str]:
    """Check that servers, jobs and probes use the same model and the same base path."""
    config: Any = text_format.Parse(read_config_files(manifests)["model.config"], protos.ModelServerConfig())
    models = list(config.model_config_list.config)
    if [(model.name, model.model_platform) for model in models] != [("food", "tensorflow")]:
        return [f"model.config has {[model.name for model in models]}"]
    if models[0].model_version_policy.WhichOneof("policy_choice") or models[0].version_labels:
        return ["model.config names versions before there are any"]
    findings = []
    pod, container = server(manifests)
    base = models[0].base_path
    poll_seconds = float(server_flags(manifests).get("file_system_poll_wait_seconds", 1))
    if base.startswith("gs://") and poll_seconds < 30:
        findings.append("lists a bucket every second, which is expensive")
    bucket = synced_bucket(manifests)
    wanted = f"{bucket}/food" if bucket else base
    for owner, other, job in containers(manifests):
        given = flags(arguments(job))
        for flag in {"model_base_path", "live", "model"} & given.keys():
            same = given[flag] == wanted
            if "://" not in wanted + given[flag]:
                same = resolve_mount(other, job, given[flag])[:2] == resolve_mount(pod, container, wanted)[:2]
            if not same:
                findings.append(f"{owner}: --{flag}={given[flag]} is not the base path of the servers")
    for owner, _, job in containers(manifests):
        if flags(arguments(job)).get("model_name", "food") != "food":
            findings.append(f"{owner}: uses another model name")
    return findings


def check_batching(manifests: list[Manifest]) -> list[str]:
    """Check that batch sizes are those of the warm-up, and that there are enough threads to fill batches.

    Each waiting request occupies a thread of the server, so it needs one per row that batches may hold.
    """
    if is_local(manifests):
        return []
    batching: Any = text_format.Parse(
        read_config_files(manifests)["batching_parameters.txt"], protos.BatchingParameters()
    )
    findings = []
    if tuple(batching.allowed_batch_sizes) != contract.WARMUP_BATCH_SIZES:
        findings.append(f"allows {batching.allowed_batch_sizes}, warmed up for {contract.WARMUP_BATCH_SIZES}")
    if batching.max_batch_size.value != max(batching.allowed_batch_sizes, default=0):
        findings.append("the server does not start: the last allowed size must be max_batch_size")
    batches = batching.num_batch_threads.value + batching.max_enqueued_batches.value
    rows = batching.max_execution_batch_size.value or batching.max_batch_size.value
    if int(server_flags(manifests).get("grpc_max_threads", 0)) < batches * rows:
        findings.append(f"too few threads for {batches} batches of {rows}")
    _, container = server(manifests)
    if str(batching.num_batch_threads.value) != container["resources"]["requests"]["cpu"]:
        findings.append("num_batch_threads must equal the requested CPUs")
    return findings


def check_servers_drain(manifests: list[Manifest]) -> list[str]:
    """Check that clients leave a server before it is killed.

    A client discovers other servers when its connection reaches its maximum age, which gRPC varies by 10 %.
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
    return [
        f"clients reconnect within {leaving} s, preStop waits {waiting} s, the kill comes after {grace} s"
    ]


def check_rollouts(manifests: list[Manifest]) -> list[str]:
    """Check that a rollout can make progress, and that it always leaves a server running."""
    spec = find(manifests, "Deployment", "hubhead-serving")["spec"]
    rolling = spec["strategy"]["rollingUpdate"]
    surge, unavailable = rolling["maxSurge"], rolling["maxUnavailable"]
    replicas = spec.get("replicas", 2)
    findings = []
    if surge == 0 and unavailable == 0:
        findings.append("no server may be stopped and none may be added")
    if unavailable >= replicas:
        findings.append(f"all {replicas} servers may be unavailable at once")
    for budget in select_kind(manifests, "PodDisruptionBudget"):
        away = budget["spec"].get("maxUnavailable", replicas - budget["spec"].get("minAvailable", 0))
        if away < 1:
            findings.append("nodes can never be drained")
        elif away >= replicas > 1:
            findings.append("all servers may be evicted at once")
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            findings.append("servers that are not ready hold up the drain of a node")
    pod, _ = server(manifests)
    keys = [spread["topologyKey"] for spread in pod["spec"].get("topologySpreadConstraints", [])]
    if "kubernetes.io/hostname" not in keys:
        findings.append("all servers may be on one node")
    return findings


def check_services(manifests: list[Manifest]) -> list[str]:
    """Check the services: headless for gRPC, one address for REST, unready servers for promotions."""
    specs = {m["metadata"]["name"]: m["spec"] for m in select_kind(manifests, "Service")}
    found = {
        name: (spec.get("clusterIP") == "None", spec.get("publishNotReadyAddresses", False))
        for name, spec in specs.items()
    }
    wanted = {
        "hubhead-serving-grpc": (True, False),
        "hubhead-serving-control": (True, True),
        "hubhead-serving-rest": (False, False),
    }
    return [] if found == wanted else [f"services (headless, publishes unready servers): {found}"]


def check_network_policies(manifests: list[Manifest]) -> list[str]:
    policies = {m["metadata"]["name"]: m["spec"] for m in select_kind(manifests, "NetworkPolicy")}
    findings = []
    if policies.get("hubhead-closed") != {"podSelector": {}, "policyTypes": ["Ingress"]}:
        findings.append("pods accept traffic from anywhere")
    serving = policies.get("hubhead-serving", {})
    if "Egress" not in serving.get("policyTypes", []) or serving.get("egress"):
        findings.append("servers have unrestricted egress")
    sources = [
        source
        for policy in policies.values()
        for rule in policy.get("ingress", [])
        for source in rule.get("from", [{}])
    ]
    if any(source == {} or source.get("namespaceSelector") == {} for source in sources):
        findings.append("a rule allows traffic from anywhere")
    return findings


def check_gpus(manifests: list[Manifest]) -> list[str]:
    """Check that image, GPU request, toleration, memory growth and kernel cache are all set, or none."""
    pod, container = server(manifests)
    gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu")
    given = server_flags(manifests)
    session = read_config_files(manifests).get("session.config", "")
    environment = {env["name"]: env["value"] for env in container.get("env", [])}
    cache = environment.get("CUDA_CACHE_PATH")
    settings = {
        "a GPU": gpus == "1",
        "the image for GPUs": container["image"].endswith("-gpu"),
        "a toleration": any(t.get("key") == "nvidia.com/gpu" for t in pod["spec"].get("tolerations", [])),
        "memory growth": "tensorflow_session_config_file" in given
        and re.search(r"^gpu_options\s*{\s*allow_growth:\s*true\s*}", session, re.MULTILINE) is not None,
        "a cache for kernels": bool(cache) and resolve_mount(pod, container, cache or "")[2],
    }
    if all(settings.values()) or not any(settings.values()):
        return []
    return [f"lacks {[setting for setting, there in settings.items() if not there]}, and has the rest"]


def check_mixed_precision(manifests: list[Manifest]) -> list[str]:
    """Check that a setting for mixed precision is one that the server reads, and suits its hardware.

    float16 is for GPUs, by the session's configuration; bfloat16 by a flag, for CPUs that compute with it.
    """
    pod, container = server(manifests)
    given = server_flags(manifests)
    has_gpu = "nvidia.com/gpu" in container["resources"].get("limits", {})
    session = read_config_files(manifests).get("session.config", "")
    rewritten = re.search(r"^graph_options\s*{.*auto_mixed_precision:\s*ON\b", session, re.MULTILINE)
    findings = []
    if "platform_config_file" in given:
        findings.append("with a platform config file the server ignores batching and session.config")
    if rewritten and not (has_gpu and "tensorflow_session_config_file" in given):
        findings.append("float16 without a GPU, or in a session.config that the server does not read")
    if "mixed_precision" not in given:
        return findings
    if given["mixed_precision"] != "bfloat16":
        findings.append(f"the server ignores --mixed_precision={given['mixed_precision']}")
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = [term["matchExpressions"] for term in required.get("nodeSelectorTerms", [])]
    wanted = {"AMXBF16", "AVX512BF16"}
    if has_gpu or not terms or {e["key"].rpartition(".")[2] for term in terms for e in term} - wanted:
        findings.append("bfloat16 on a GPU, or on CPUs that may lack the instructions for it")
    return findings


def check_scaling(manifests: list[Manifest]) -> list[str]:
    """Check that either the Deployment or a scaler by queueing time sets the number of servers."""
    given = "replicas" in find(manifests, "Deployment", "hubhead-serving")["spec"]
    scalers = select_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    findings = []
    if given is bool(scalers):
        findings.append("both or neither of the Deployment and a scaler set the number of servers")
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
                findings.append("does not scale by the queueing time, or divides by zero")
    return findings


CHECKS: list[Check] = [
    check_tensorflow_serving_flags,
    check_labels_can_move,
    check_config_files_parse,
    check_models_agree,
    check_batching,
    check_servers_drain,
    check_rollouts,
    check_services,
    check_network_policies,
    check_gpus,
    check_mixed_precision,
    check_scaling,
]
