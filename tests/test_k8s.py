"""The manifests of k8s/ are valid by Kubernetes' schemas, and right where no schema looks.

A check is a pure function from the list of manifests to its findings, so that a test can break a
manifest on purpose and hear the check speak.
"""

from __future__ import annotations

import copy
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving import contract

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
BASE = K8S / "base"

Manifest = dict[str, Any]
Check = Callable[[list[Manifest]], list[str]]

needs_builder = pytest.mark.needs("kubectl|kustomize")

KUBERNETES_VERSIONS = [
    f"1.{minor}" for minor in range(29, int(kubernetes_validate.latest_version().split(".")[1]) + 1)
]

COMMANDS = {
    "train": "trainer.cli",
    "score": "batch.cli",
    "validate": "serving.commands.validate",
    "promote": "serving.commands.promote",
    "rollback": "serving.commands.promote",
    "compare": "serving.commands.compare",
    "predict": "serving.commands.predict",
}

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


# Reading manifests


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]


def job_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The spec of every Job, a CronJob's included, by the name of its owner."""
    return {
        m["metadata"]["name"]: m["spec"]["jobTemplate"]["spec"] if m["kind"] == "CronJob" else m["spec"]
        for m in of_kind(manifests, "Job", "CronJob")
    }


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Every pod or pod template, by the name of its owner."""
    templates = {m["metadata"]["name"]: m["spec"]["template"] for m in of_kind(manifests, "Deployment")}
    templates |= {name: spec["template"] for name, spec in job_specs(manifests).items()}
    return templates | {m["metadata"]["name"]: m for m in of_kind(manifests, "Pod")}


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Owner's name, pod and container, for every container."""
    for owner, pod in pods(manifests).items():
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            yield owner, pod, container


def flags(container: Manifest) -> dict[str, str]:
    """Flags by name; "" where a flag has no value."""
    parts = (arg.removeprefix("--").partition("=") for arg in container.get("args", []))
    return {name: value for name, _, value in parts}


def server(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """Pod template and container of TensorFlow Serving."""
    pod = find(manifests, "Deployment", "hubhead-serving")["spec"]["template"]
    return pod, pod["spec"]["containers"][0]


def location(pod: Manifest, container: Manifest, path: str) -> tuple[Manifest, str, bool]:
    """Where a path inside a container lies: its volume, the path below, and whether it is writable.

    Raises:
        LookupError: it lies on no volume.
    """
    for mount in container.get("volumeMounts", []):
        if path == mount["mountPath"] or path.startswith(mount["mountPath"] + "/"):
            volume = {v["name"]: v for v in pod["spec"]["volumes"]}[mount["name"]]
            return volume, path.removeprefix(mount["mountPath"]), not mount.get("readOnly", False)
    raise LookupError(path)


def configuration(manifests: list[Manifest], flag: str) -> str:
    """The text of the file that a flag of the server names."""
    pod, container = server(manifests)
    volume, below, _ = location(pod, container, flags(container)[flag])
    return str(find(manifests, "ConfigMap", volume["configMap"]["name"])["data"][below.removeprefix("/")])


def batching_parameters(text: str) -> Any:
    """A text proto as tensorflow.serving.BatchingParameters, which no package ships.

    Its fields as of tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
    """
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="test", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    fields = file.message_type.add(name="BatchingParameters").field
    for number, name in enumerate(
        ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"), start=1
    ):
        fields.add(name=name, number=number, type=kind.TYPE_MESSAGE, type_name=".google.protobuf.Int64Value")
    fields.add(
        name="thread_pool_name", number=5, type=kind.TYPE_MESSAGE, type_name=".google.protobuf.StringValue"
    )
    fields.add(name="allowed_batch_sizes", number=6, type=kind.TYPE_INT64, label=kind.LABEL_REPEATED)
    fields.add(name="pad_variable_length_inputs", number=7, type=kind.TYPE_BOOL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    parameters = message_factory.GetMessageClass(pool.FindMessageTypeByName("test.BatchingParameters"))()
    return text_format.Parse(text, parameters)


def model_configs(text: str) -> Sequence[Any]:
    """The models of a text proto tensorflow.serving.ModelServerConfig."""
    from tensorflow_serving.config import model_server_config_pb2

    config: Any = model_server_config_pb2.ModelServerConfig()
    return list(text_format.Parse(text, config).model_config_list.config)


# The checks


def labels_are_complete(manifests: list[Manifest]) -> list[str]:
    wanted = {f"app.kubernetes.io/{label}" for label in ("name", "component", "part-of")}
    labelled = {f"{m['kind']} {m['metadata']['name']}": m for m in manifests}
    labelled |= {f"the pods of {owner}": pod for owner, pod in pods(manifests).items()}
    return [
        f"{name} lacks {sorted(missing)}"
        for name, m in labelled.items()
        if (missing := wanted - m["metadata"].get("labels", {}).keys())
    ]


def selectors_match(manifests: list[Manifest]) -> list[str]:
    """Each selector picks exactly the pods of the Deployment that its resource belongs to."""
    labels = {owner: pod["metadata"]["labels"] for owner, pod in pods(manifests).items()}
    selectors = {
        f"Service {m['metadata']['name']}": m["spec"]["selector"] for m in of_kind(manifests, "Service")
    }
    for m in of_kind(manifests, "Deployment", "PodDisruptionBudget"):
        selectors[f"{m['kind']} {m['metadata']['name']}"] = m["spec"]["selector"]["matchLabels"]
    for owner, pod in pods(manifests).items():
        for constraint in pod["spec"].get("topologySpreadConstraints", []):
            selectors[f"the spread of {owner}"] = constraint["labelSelector"]["matchLabels"]
    picked = {
        name: [owner for owner in labels if selector.items() <= labels[owner].items()]
        for name, selector in selectors.items()
    }
    return [f"{name} selects {owners}" for name, owners in picked.items() if owners != ["hubhead-serving"]]


def ports_exist(manifests: list[Manifest]) -> list[str]:
    """Services, probes and the server's own flags mean ports that the containers name."""
    _, serving = server(manifests)
    declared = {port["name"]: str(port["containerPort"]) for port in serving["ports"]}
    listening = {"grpc": flags(serving).get("port"), "rest": flags(serving).get("rest_api_port")}
    findings = [] if listening == declared else [f"listens at {listening}, declares {declared}"]
    for service in of_kind(manifests, "Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in declared:
                findings.append(f"{service['metadata']['name']}: no port is named {port['targetPort']}")
    for owner, _, container in containers(manifests):
        known = {n for port in container.get("ports", []) for n in (port["name"], port["containerPort"])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for action in ("grpc", "httpGet", "tcpSocket"):
                target = container.get(probe, {}).get(action)
                if target and target["port"] not in known:
                    findings.append(f"{owner}: {probe} asks port {target['port']}")
    return findings


def server_is_probed(manifests: list[Manifest]) -> list[str]:
    _, container = server(manifests)
    findings = [
        f"no gRPC {probe}"
        for probe in ("startupProbe", "livenessProbe")
        if "grpc" not in container.get(probe, {})
    ]
    if container["readinessProbe"]["httpGet"]["path"] != "/v1/models/food/labels/stable/metadata":
        findings.append("is ready without a version that is stable")
    if "enable_grpc_healthcheck_service" not in flags(container):
        findings.append("the probes ask a health service that is not switched on")
    return findings


def server_flags_are_known(manifests: list[Manifest]) -> list[str]:
    _, container = server(manifests)
    findings = []
    for arg in container["args"]:
        name, equals, _ = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in (SERVER_SETTINGS if equals else SERVER_SWITCHES):
            findings.append(f"{arg} is no flag of the server, or lacks its value")
    given = flags(container)
    if "batching_parameters_file" in given and "enable_batching" not in given:
        findings.append("the server refuses to start: a batching file without batching")
    return findings


def volumes_are_there(manifests: list[Manifest]) -> list[str]:
    """Mounts have volumes and volumes have mounts, claims and configuration; paths lie on them."""
    claims = {m["metadata"]["name"] for m in of_kind(manifests, "PersistentVolumeClaim")}
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(manifests, "ConfigMap")}
    findings = []
    for owner, pod in pods(manifests).items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        every = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
        mounted = {mount["name"] for c in every for mount in c.get("volumeMounts", [])}
        if volumes.keys() != mounted:
            findings.append(f"{owner}: volumes {sorted(volumes)}, mounts {sorted(mounted)}")
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                findings.append(f"{owner}: no claim {claim}")
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                findings.append(f"{owner}: no ConfigMap {volume['configMap']['name']}")
    for owner, pod, container in containers(manifests):
        for name, value in flags(container).items():
            if not value.startswith("/"):
                continue
            try:
                volume, below, _ = location(pod, container, value)
            except LookupError:
                findings.append(f"{owner}: --{name}={value} lies on no volume")
                continue
            files = maps.get(volume["configMap"]["name"], {}) if "configMap" in volume else None
            if files is not None and below.removeprefix("/") not in files:
                findings.append(f"{owner}: --{name}={value} is not in the ConfigMap")
    return findings


def servers_drain(manifests: list[Manifest]) -> list[str]:
    """Clients leave a server before it is killed.

    A client's connection ends at its age, which gRPC varies by a tenth; only then does it look for
    other servers.
    """
    pod, container = server(manifests)
    age = re.search(r"grpc\.max_connection_age_ms=(\d+)", flags(container).get("grpc_channel_arguments", ""))
    leaving = int(age[1]) / 1000 * 1.1 if age else float("inf")
    waiting = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    if leaving < waiting < grace:
        return []
    return [f"clients leave within {leaving} s, preStop waits {waiting} s, the kill comes after {grace} s"]


def resources_are_requested(manifests: list[Manifest]) -> list[str]:
    """Memory and GPUs are requested as limited (GPUs cannot be overcommitted), the CPU requested."""
    findings = []
    for owner, _, container in containers(manifests):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        for resource in ("nvidia.com/gpu", "memory"):
            if requests.get(resource) != limits.get(resource):
                findings.append(f"{owner}: {resource} requested and limited differ")
        if "cpu" not in requests:
            findings.append(f"{owner}: no CPU requested")
    return findings


def pods_are_restricted(manifests: list[Manifest]) -> list[str]:
    """The Pod Security Standard "restricted", a read-only root and no token for Kubernetes' API."""
    findings = []
    for owner, pod, container in containers(manifests):
        spec = pod["spec"]
        context = spec.get("securityContext", {}) | container.get("securityContext", {})
        secure = {
            "not as root": context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0,
            "seccomp": context.get("seccompProfile") == {"type": "RuntimeDefault"},
            "no escalation": context.get("allowPrivilegeEscalation") is False,
            "no capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "read-only root": context.get("readOnlyRootFilesystem") is True,
            "no token": spec.get("automountServiceAccountToken") is False,
            "nothing of the host": not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
            and not any("hostPath" in volume for volume in spec.get("volumes", [])),
        }
        findings += [f"{owner}: {rule} does not hold" for rule, holds in secure.items() if not holds]
    return findings


def images_are_pinned(manifests: list[Manifest]) -> list[str]:
    """Every image has a version, and ours the version of the package."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    findings = []
    for owner, _, container in containers(manifests):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        if tag in ("", "latest"):
            findings.append(f"{owner}: {container['image']} has no version")
        if container["command"][0] == "hubhead" and tag != version:
            findings.append(f"{owner}: {container['image']} is not {version}")
    return findings


def jobs_end(manifests: list[Manifest]) -> list[str]:
    """Jobs have an end, are cleaned up, and are not tried again where that cannot help."""
    hopeless = {
        "hubhead-train": [2, 4],
        "hubhead-promote": [2, 4],
        "hubhead-canary": [2, 4],
        "hubhead-rollback": [2],
        "hubhead-score": [2, 3],
    }
    findings = []
    for name, spec in job_specs(manifests).items():
        pod = spec["template"]["spec"]
        if pod["restartPolicy"] != "Never":
            findings.append(f"{name}: podFailurePolicy demands restartPolicy Never")
        for setting in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            if setting not in spec:
                findings.append(f"{name}: no {setting}")
        rules = {rule["action"]: rule for rule in spec["podFailurePolicy"]["rules"]}
        if rules["FailJob"]["onExitCodes"]["values"] != hopeless[name]:
            findings.append(f"{name}: exit codes {hopeless[name]} must fail the job at once")
        every = pod.get("initContainers", []) + pod["containers"]
        if rules["FailJob"]["onExitCodes"]["containerName"] not in [c["name"] for c in every]:
            findings.append(f"{name}: the failure policy names no container of it")
        if rules["Ignore"]["onPodConditions"] != [{"type": "DisruptionTarget", "status": "True"}]:
            findings.append(f"{name}: a drained node counts as a failure")
    return findings


def schedules_are_sound(manifests: list[Manifest]) -> list[str]:
    bounds = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    findings = []
    for cron in of_kind(manifests, "CronJob"):
        name, spec = cron["metadata"]["name"], cron["spec"]
        fields = spec["schedule"].split()
        if len(fields) != len(bounds) or not all(map(_is_cron_field, fields, bounds)):
            findings.append(f"{name}: {spec['schedule']!r} is no schedule")
        if "timeZone" not in spec or spec["concurrencyPolicy"] != "Forbid":
            findings.append(f"{name}: needs a time zone, and one run at a time")
        if spec.get("startingDeadlineSeconds", 0) < 10:  # the controller looks every ten seconds
            findings.append(f"{name}: would miss its start")
    return findings


def _is_cron_field(field: str, bounds: tuple[int, int]) -> bool:
    """Whether a field is *, n, n-m, each also with /step, or a list of them, within its bounds."""
    low, high = bounds
    for part in field.split(","):
        match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
        if not match:
            return False
        first = low if match[1] is None else int(match[1])
        last = first if match[2] is None else int(match[2])
        if not low <= first <= last <= high:
            return False
    return True


def batching_fits_the_bundle(manifests: list[Manifest]) -> list[str]:
    """Batches have the sizes that bundles are warmed for, and the server threads enough to fill them.

    A thread of the server waits with each request, so it needs one for each that a batch may hold.
    """
    batching = batching_parameters(configuration(manifests, "batching_parameters_file"))
    findings = []
    if tuple(batching.allowed_batch_sizes) != contract.WARMUP_BATCH_SIZES:
        findings.append(f"allows {batching.allowed_batch_sizes}, warmed for {contract.WARMUP_BATCH_SIZES}")
    if batching.max_batch_size.value != batching.allowed_batch_sizes[-1]:
        findings.append("the server refuses to start: the last allowed size must be max_batch_size")
    batches = batching.num_batch_threads.value + batching.max_enqueued_batches.value
    _, container = server(manifests)
    if int(flags(container)["grpc_max_threads"]) < batches * batching.max_batch_size.value:
        findings.append(f"too few threads for {batches} batches of {batching.max_batch_size.value}")
    if str(batching.num_batch_threads.value) != container["resources"]["requests"]["cpu"]:
        findings.append("a batch thread for each requested CPU")
    return findings


def paths_agree(manifests: list[Manifest]) -> list[str]:
    """What training publishes is what scoring reads and the server serves; outputs are writable."""
    (config,) = of_kind(manifests, "ConfigMap")
    (model,) = model_configs(config["data"]["model.config"])
    pod, container = server(manifests)
    models = {"server": location(pod, container, model.base_path)}
    stores = {}
    findings = []
    for owner, pod, container in containers(manifests):
        given = flags(container)
        for flag in {"model_base_path", "model"} & given.keys():
            models[owner + flag] = location(pod, container, given[flag])
        if "embedding_store" in given:
            stores[owner] = location(pod, container, given["embedding_store"])
        for flag in {"model_base_path", "saved_model_dir", "output", "embedding_store"} & given.keys():
            if not location(pod, container, given[flag])[2]:
                findings.append(f"{owner}: --{flag}={given[flag]} is mounted read-only")
    for what, places in (("model", models), ("embedding store", stores)):
        claims = {(v["persistentVolumeClaim"]["claimName"], below) for v, below, _ in places.values()}
        if len(claims) != 1:
            findings.append(f"not one {what}: {places}")
    return findings


CHECKS: list[Check] = [
    labels_are_complete,
    selectors_match,
    ports_exist,
    server_is_probed,
    server_flags_are_known,
    volumes_are_there,
    servers_drain,
    resources_are_requested,
    pods_are_restricted,
    images_are_pinned,
    jobs_end,
    schedules_are_sound,
    batching_fits_the_bundle,
    paths_agree,
]


def marks(check: Check) -> list[pytest.MarkDecorator]:
    return [pytest.mark.tf] if check is paths_agree else []


# The tests


@pytest.fixture(scope="module")
def build() -> subprocess.CompletedProcess[str]:
    builder = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    return subprocess.run([*builder, str(BASE)], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def base(build: subprocess.CompletedProcess[str]) -> list[Manifest]:
    """What the base builds to."""
    assert build.returncode == 0, build.stderr
    return list(yaml.safe_load_all(build.stdout))


@pytest.fixture(scope="module")
def manifests(base: list[Manifest]) -> list[Manifest]:
    """The base and the loader beside it."""
    return [*base, *yaml.safe_load_all((K8S / "loader.yaml").read_text())]


@needs_builder
def test_the_base_builds_without_a_word(build: subprocess.CompletedProcess[str]) -> None:
    assert (build.returncode, build.stderr) == (0, "")


@needs_builder
def test_the_base_holds_all_that_serving_scoring_and_training_need(base: list[Manifest]) -> None:
    assert {(m["kind"], m["metadata"]["name"]) for m in base if m["kind"] != "ConfigMap"} == {
        ("Namespace", "hubhead"),
        ("Deployment", "hubhead-serving"),
        ("PodDisruptionBudget", "hubhead-serving"),
        ("Service", "hubhead-serving-grpc"),
        ("Service", "hubhead-serving-rest"),
        ("CronJob", "hubhead-score"),
        ("Service", "hubhead-serving-control"),
        ("CronJob", "hubhead-train"),
        ("CronJob", "hubhead-promote"),
        ("CronJob", "hubhead-canary"),
        ("CronJob", "hubhead-rollback"),
        ("PersistentVolumeClaim", "hubhead-models"),
        ("PersistentVolumeClaim", "hubhead-photos"),
        ("PersistentVolumeClaim", "hubhead-embeddings"),
        ("PersistentVolumeClaim", "hubhead-scores"),
    }
    assert {m["metadata"].get("namespace") for m in base if m["kind"] != "Namespace"} == {"hubhead"}


@needs_builder
def test_grpc_clients_see_every_server_and_rest_clients_one_address(base: list[Manifest]) -> None:
    assert find(base, "Service", "hubhead-serving-grpc")["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in find(base, "Service", "hubhead-serving-rest")["spec"]


@needs_builder
def test_applying_the_base_starts_no_training(base: list[Manifest]) -> None:
    running = [m["metadata"]["name"] for m in of_kind(base, "CronJob") if not m["spec"].get("suspend")]
    assert running == ["hubhead-score"]
    assert of_kind(base, "Job") == []


@needs_builder
def test_the_nightly_scoring_goes_on_after_a_retraining(base: list[Manifest]) -> None:
    given = flags(_container(base, "hubhead-score"))
    assert {"overwrite", "max_rejected"} <= given.keys()  # without the latter there is no exit code 3


@needs_builder
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_manifest_is_valid_by_the_strict_schemas(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


@needs_builder
def test_the_schemas_refuse_a_mistyped_field(manifests: list[Manifest]) -> None:
    deployment = copy.deepcopy(find(manifests, "Deployment", "hubhead-serving"))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[-1], strict=True)


@needs_builder
@pytest.mark.parametrize("check", [pytest.param(c, id=c.__name__, marks=marks(c)) for c in CHECKS])
def test_the_manifests_pass(check: Check, manifests: list[Manifest]) -> None:
    assert check(manifests) == []


def _container(manifests: list[Manifest], owner: str = "hubhead-serving") -> Manifest:
    return next(c for name, _, c in containers(manifests) if name == owner and c["name"] != "seed")


def _spec(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    spec: Manifest = find(manifests, kind, name)["spec"]
    return spec


def _replace_flag(manifests: list[Manifest], owner: str, old: str, new: str) -> None:
    args = _container(manifests, owner)["args"]
    args[args.index(old)] = new


def _edit_config(manifests: list[Manifest], key: str, old: str, new: str) -> None:
    data = of_kind(manifests, "ConfigMap")[0]["data"]
    assert old in data[key]
    data[key] = data[key].replace(old, new)


MISTAKES: list[tuple[str, Check, Callable[[list[Manifest]], object]]] = [
    (
        "a resource without labels",
        labels_are_complete,
        lambda m: find(m, "PersistentVolumeClaim", "hubhead-models")["metadata"].pop("labels"),
    ),
    (
        "a service that selects no pod",
        selectors_match,
        lambda m: _spec(m, "Service", "hubhead-serving-grpc")["selector"].update(
            {"app.kubernetes.io/component": "server"}
        ),
    ),
    (
        "a disruption budget that also selects the jobs",
        selectors_match,
        lambda m: _spec(m, "PodDisruptionBudget", "hubhead-serving").update(
            selector={"matchLabels": {"app.kubernetes.io/part-of": "hubhead"}}
        ),
    ),
    (
        "a service that targets an unknown port",
        ports_exist,
        lambda m: _spec(m, "Service", "hubhead-serving-rest")["ports"][0].update(targetPort="http"),
    ),
    (
        "a probe that asks a port where nobody listens",
        ports_exist,
        lambda m: _container(m)["livenessProbe"]["grpc"].update(port=8502),
    ),
    (
        "a server that listens elsewhere",
        ports_exist,
        lambda m: _replace_flag(m, "hubhead-serving", "--port=8500", "--port=9000"),
    ),
    (
        "a server that does not answer its probes",
        server_is_probed,
        lambda m: _container(m)["args"].remove("--enable_grpc_healthcheck_service"),
    ),
    (
        "a mistyped flag",
        server_flags_are_known,
        lambda m: _replace_flag(m, "hubhead-serving", "--enable_batching", "--enable_batch"),
    ),
    (
        "a batching file without batching",
        server_flags_are_known,
        lambda m: _container(m)["args"].remove("--enable_batching"),
    ),
    (
        "a claim that nobody made",
        volumes_are_there,
        lambda m: m.remove(find(m, "PersistentVolumeClaim", "hubhead-scores")),
    ),
    (
        "a mount without its volume",
        volumes_are_there,
        lambda m: _container(m)["volumeMounts"][0].update(name="model"),
    ),
    (
        "a file that the ConfigMap lacks",
        volumes_are_there,
        lambda m: of_kind(m, "ConfigMap")[0]["data"].pop("batching_parameters.txt"),
    ),
    (
        "an output outside of every volume",
        volumes_are_there,
        lambda m: _replace_flag(m, "hubhead-score", "--output=/scores/food", "--output=/results"),
    ),
    (
        "a kill before preStop is over",
        servers_drain,
        lambda m: server(m)[0]["spec"].update(terminationGracePeriodSeconds=30),
    ),
    (
        "connections that never end",
        servers_drain,
        lambda m: _container(m)["args"].remove("--grpc_channel_arguments=grpc.max_connection_age_ms=30000"),
    ),
    (
        "a GPU limited but not requested",
        resources_are_requested,
        lambda m: _container(m)["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
    ),
    (
        "a root file system that can be written",
        pods_are_restricted,
        lambda m: _container(m, "hubhead-train")["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    (
        "an image that was not built yet",
        images_are_pinned,
        lambda m: _container(m, "hubhead-score").update(image="hubhead:99"),
    ),
    (
        "an image without a version",
        images_are_pinned,
        lambda m: _container(m).update(image="tensorflow/serving"),
    ),
    (
        "a job that is tried again after a usage error",
        jobs_end,
        lambda m: job_specs(m)["hubhead-score"]["podFailurePolicy"]["rules"][1]["onExitCodes"].update(
            values=[3]
        ),
    ),
    (
        "a job restarted in its pod",
        jobs_end,
        lambda m: job_specs(m)["hubhead-score"]["template"]["spec"].update(restartPolicy="OnFailure"),
    ),
    (
        "a schedule at the 25th hour",
        schedules_are_sound,
        lambda m: _spec(m, "CronJob", "hubhead-score").update(schedule="15 25 * * *"),
    ),
    (
        "two runs at once",
        schedules_are_sound,
        lambda m: _spec(m, "CronJob", "hubhead-score").update(concurrencyPolicy="Allow"),
    ),
    (
        "a batch size that no bundle is warmed for",
        batching_fits_the_bundle,
        lambda m: _edit_config(m, "batching_parameters.txt", "allowed_batch_sizes: 16\n", ""),
    ),
    (
        "batches larger than the allowed sizes",
        batching_fits_the_bundle,
        lambda m: _edit_config(m, "batching_parameters.txt", "{ value: 32 }", "{ value: 64 }"),
    ),
    (
        "too few threads to fill a batch",
        batching_fits_the_bundle,
        lambda m: _replace_flag(m, "hubhead-serving", "--grpc_max_threads=384", "--grpc_max_threads=16"),
    ),
    (
        "a server that serves another model than training publishes",
        paths_agree,
        lambda m: _edit_config(m, "model.config", "/models/food", "/models/birds"),
    ),
    (
        "scores onto a read-only mount",
        paths_agree,
        lambda m: next(
            mount for mount in _container(m, "hubhead-score")["volumeMounts"] if mount["name"] == "scores"
        ).update(readOnly=True),
    ),
]


@needs_builder
@pytest.mark.parametrize(
    ("check", "mistake"),
    [pytest.param(check, mistake, id=name, marks=marks(check)) for name, check, mistake in MISTAKES],
)
def test_a_check_finds(
    check: Check, mistake: Callable[[list[Manifest]], object], manifests: list[Manifest]
) -> None:
    broken = copy.deepcopy(manifests)
    mistake(broken)
    assert check(broken) != []


def test_every_check_is_seen_to_fail() -> None:
    assert {check for _, check, _ in MISTAKES} == set(CHECKS)


def refused(command: click.Command, args: Sequence[str]) -> str:
    """Why the command's own parser refuses the arguments, or "".

    Only the names are parsed, since the paths exist in the cluster alone.
    """
    context = click.Context(command)
    try:
        given, surplus, _ = command.make_parser(context).parse_args(list(args))
    except click.UsageError as error:
        return error.format_message()
    missing = [p.opts[0] for p in command.params if p.required and p.name not in given]
    return f"surplus {surplus}, missing {missing}" if surplus or missing else ""


@needs_builder
def test_every_command_of_ours_takes_its_arguments(base: list[Manifest]) -> None:
    ours = [container for _, _, container in containers(base) if container["command"][0] == "hubhead"]
    assert {container["command"][1] for container in ours} == COMMANDS.keys()
    for container in ours:
        name = container["command"][1]
        command = getattr(importlib.import_module(COMMANDS[name]), name)
        assert refused(command, container["args"]) == ""
        assert "no_such_flag" in refused(command, [*container["args"], "--no_such_flag=1"])
        if name == "train":  # which wants one of two flags, and says so when it runs
            assert any(argument.startswith(("--image_dir", "--manifest")) for argument in container["args"])


README = (K8S / "README.md").read_text()
README_COMMANDS = [
    line.strip()
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]


@needs_builder
def test_the_readme_names_what_the_manifests_make(manifests: list[Manifest]) -> None:
    made = {f"{m['kind'].lower()}/{m['metadata']['name']}" for m in manifests}
    named = re.findall(r"\b(?:job|cronjob|deployment|pod)/[a-z-]+", "\n".join(README_COMMANDS))
    assert named
    assert {name for name in named if name != "job/hubhead-train-"} <= made
    hosts = re.findall(r"([a-z-]+)\.hubhead:(\d+)", README)
    assert len(hosts) == 2
    for name, port in hosts:
        assert find(manifests, "Service", name)["spec"]["ports"][0]["port"] == int(port)


def test_the_readme_names_files_that_exist() -> None:
    files = re.findall(r"`(base/[\w.]+)`", README) + re.findall(r"(?:-k|-f|--file) (k8s/\S+)", README)
    assert files
    for file in files:
        assert (K8S / file.removeprefix("k8s/")).exists(), file


def test_the_readmes_commands_of_ours_parse() -> None:
    ours = [shlex.split(line) for line in README_COMMANDS if line.startswith("hubhead ")]
    assert ours
    for _, name, *args in ours:
        assert refused(getattr(importlib.import_module(COMMANDS[name]), name), args) == ""


# The image


def instructions(dockerfile: str) -> list[list[str]]:
    """A Dockerfile's instructions, as words, with comments gone and continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [line.split() for line in joined if line.strip()]


def copied_from_the_repository(dockerfile: str) -> list[str]:
    return [
        source
        for words in instructions(dockerfile)
        if words[0] == "COPY" and not words[1].startswith("--from=")
        for source in words[1:-1]
    ]


def image_findings(dockerfile: str) -> list[str]:
    """What a build would stumble over, or should not do."""
    findings, stages = [], []
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for words in instructions(dockerfile):
        match words:
            case ["FROM", image, "AS", stage]:
                stages.append(stage)
                if image != "python:3.11-slim":
                    findings.append(f"FROM {image}")
            case ["FROM" | "ADD", *_]:
                findings.append(f"{' '.join(words)}: stages have names, and files are copied")
            case ["COPY", source, *_] if source.startswith("--from="):
                if source.removeprefix("--from=") not in stages[:-1]:
                    findings.append(f"no stage before {stages[-1]} is {source}")
            case ["RUN", *command] if "install" in command and "-r" in command:
                if not {"--require-hashes", "--no-deps"} <= set(command):
                    findings.append(f"not locked: {' '.join(command)}")
    for source in copied_from_the_repository(dockerfile):
        if not (ROOT / source).exists():
            findings.append(f"{source} is not in the repository")
        if f"!{source}" not in ignored:
            findings.append(f"{source} is kept out by .dockerignore")
    last = instructions(dockerfile[dockerfile.rindex("\nFROM ") :])
    if ["USER", "1000:1000"] not in last:
        findings.append("runs as root, or as another user than the manifests say")
    if not stages or stages[-1] != "trainer":
        findings.append("the last stage is not trainer")
    return findings


DOCKERFILE = (K8S / "Dockerfile").read_text()


def test_the_dockerfile_stands_to_reason() -> None:
    assert image_findings(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("USER 1000:1000\n", ""),
        ("--from=wheel", "--from=trainer"),
        ("COPY batch batch", "COPY batches batch"),
        ("COPY batch batch", "COPY tests tests"),
        ("COPY batch batch", "ADD batch batch"),
        ("--require-hashes ", ""),
        ("slim AS trainer", "slim"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(right: str, wrong: str) -> None:
    assert right in DOCKERFILE
    assert set(image_findings(DOCKERFILE.replace(right, wrong))) > set(image_findings(DOCKERFILE))


def test_what_the_dockerfile_copies_suffices_to_build_the_wheel(tmp_path: Path) -> None:
    for source in copied_from_the_repository(DOCKERFILE):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, tmp_path)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = [
        ROOT / "hubhead.py",
        *(p for name in ("serving", "batch", "trainer") for p in (ROOT / name).rglob("*")),
    ]
    assert packed == {
        path.relative_to(ROOT).as_posix()
        for path in packages
        if path.is_file() and "__pycache__" not in path.parts
    }
