"""Checks of the jobs (commands, termination, schedules, paths) and of custom resources."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import click
from croniter import croniter

from tests.k8s.flink import MAIN_CONTAINER, flink_pods
from tests.k8s.reading import (
    Check,
    Manifest,
    arguments,
    beam_arguments,
    containers,
    flags,
    get_job_specs,
    pods,
    resolve_mount,
    select_kind,
)

NOT_RETRIED = {
    ("hubhead-train", "train"): {2, 4},
    ("hubhead-train", "validate"): {2, 4},
    ("hubhead-promote", "promote"): {2, 4},
    ("hubhead-promote", "validate"): {2, 4},
    ("hubhead-canary", "promote"): {2, 4},
    ("hubhead-canary", "validate"): {2, 4},
    ("hubhead-rollback", "rollback"): {2},
    ("hubhead-score", "score"): {2, 3},
}
"""Exit codes after which a retry would give the same result."""


@functools.cache
def command_of(name: str) -> click.Command:
    """Return a sub-command of hubhead.

    Raises:
        KeyError: there is no such command.
    """
    from hubhead import hubhead

    command = hubhead.get_command(click.Context(hubhead), name)
    if command is None:
        raise KeyError(name)
    return command


def usage_error(name: str, args: Sequence[str]) -> str:
    """Return the error of a sub-command's parser for the arguments, or "".

    Values are converted too, except paths, which exist in the cluster only.
    """
    try:
        command = command_of(name)
    except KeyError:
        return f"hubhead has no command {name}"
    context = click.Context(command)
    try:
        given, surplus, _ = command.make_parser(context).parse_args(list(args))
        for parameter in command.params:
            value = given.get(parameter.name or "")
            paths = isinstance(parameter.type, click.Path | click.File)
            if isinstance(value, str | tuple | list) and not paths:
                parameter.process_value(context, value)
    except click.UsageError as error:
        return error.format_message()
    missing = [p.opts[0] for p in command.params if p.required and not given.get(p.name or "")]
    return f"surplus {surplus}, missing {missing}" if surplus or missing else ""


def check_commands_parse(manifests: list[Manifest]) -> list[str]:
    findings = []
    for owner, _, container in containers(manifests):
        if container.get("command", [""])[0] != "hubhead":
            continue
        name, *more = container["command"][1:]
        why = "arguments belong into args" if more else usage_error(name, arguments(container))
        if why:
            findings.append(f"{owner}: hubhead {name}: {why}")
    return findings


def check_jobs_terminate(manifests: list[Manifest]) -> list[str]:
    """Check that jobs have a deadline, are cleaned up, and are not retried when that is useless."""
    findings = []
    for name, spec in get_job_specs(manifests).items():
        pod = spec["template"]["spec"]
        if pod["restartPolicy"] != "Never":
            findings.append(f"{name}: podFailurePolicy requires restartPolicy Never")
        for setting in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            if spec.get(setting, 0) <= 0:
                findings.append(f"{name}: no {setting}")
        if not {"backoffLimit", "backoffLimitPerIndex"} & spec.keys():
            findings.append(f"{name}: retried without a limit")
        rules = spec["podFailurePolicy"]["rules"]
        if {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        } not in rules:
            findings.append(f"{name}: a drained node counts as a failure")
        failing = {
            (name, rule["onExitCodes"].get("containerName")): set(rule["onExitCodes"]["values"])
            for rule in rules
            if rule["action"] in ("FailJob", "FailIndex") and rule["onExitCodes"]["operator"] == "In"
        }
        if failing != {at: codes for at, codes in NOT_RETRIED.items() if at[0] == name}:
            findings.append(f"{name}: does not retry {failing}")
        every = [c["name"] for c in pod.get("initContainers", []) + pod["containers"]]
        findings += [f"{name}: has no container {at}" for _, at in failing if at not in every]
        if any(rule["action"] == "FailIndex" for rule in rules) and "backoffLimitPerIndex" not in spec:
            findings.append(f"{name}: FailIndex needs backoffLimitPerIndex")
    return findings


def check_schedules(manifests: list[Manifest]) -> list[str]:
    """Check that only scoring is scheduled, and that all jobs have a time zone and run one at a time."""
    findings = []
    for cron in select_kind(manifests, "CronJob"):
        name, spec = cron["metadata"]["name"], cron["spec"]
        if len(spec["schedule"].split()) != 5 or not croniter.is_valid(spec["schedule"]):
            findings.append(f"{name}: {spec['schedule']!r} is not a schedule")
        if "timeZone" not in spec or spec["concurrencyPolicy"] != "Forbid":
            findings.append(f"{name}: needs a time zone, and one run at a time")
        if spec.get("startingDeadlineSeconds", 0) < 10:  # the controller checks every ten seconds
            findings.append(f"{name}: would miss its start")
        if spec.get("suspend", False) is (name == "hubhead-score"):
            findings.append(f"{name}: is scheduled, or never runs")
    return findings


def check_paths_agree(manifests: list[Manifest]) -> list[str]:
    """Check that each command reads what the previous one writes, and that outputs are writable."""
    findings = []
    places: dict[str, set[tuple[str, str]]] = {"candidate": set(), "store": set()}
    roles = {"saved_model_dir": "candidate", "bundle": "candidate", "embedding_store": "store"}
    for owner, pod, container in containers(manifests):
        given = flags(arguments(container))
        named = dict(given)
        command = container.get("command", [""])[-1]
        on_server = command == "validate" and "server" in given  # embeds the photos itself
        if command in ("train", "validate", "score") and "embedding_store" not in given and not on_server:
            findings.append(f"{owner}: hubhead {command} uses an embedding store of its own")
        if command == "promote":
            named["bundle"] = next((arg for arg in arguments(container) if not arg.startswith("--")), "")
        for flag in roles.keys() & named.keys():
            if "://" in named[flag]:
                findings.append(f"{owner}: --{flag}={named[flag]} is not on the volume of the other jobs")
                continue
            try:
                volume, below, _ = resolve_mount(pod, container, named[flag])
            except LookupError:
                findings.append(f"{owner}: --{flag}={named[flag]} is on no volume")
                continue
            places[roles[flag]].add((str(volume.get("persistentVolumeClaim")), below))
        for flag in {
            "model_base_path",
            "saved_model_dir",
            "output",
            "embedding_store",
            "bundle",
        } & given.keys():
            if "://" not in given[flag] and not resolve_mount(pod, container, given[flag])[2]:
                findings.append(f"{owner}: --{flag}={given[flag]} is mounted read-only")
    return findings + [f"not a single {what}: {where}" for what, where in places.items() if len(where) != 1]


def check_operations_are_made_once(manifests: list[Manifest]) -> list[str]:
    """Check that the pods of one Job give its name and UID as the identifier of their change."""
    wanted = {"JOB_NAME": "batch.kubernetes.io/job-name", "JOB_UID": "batch.kubernetes.io/controller-uid"}
    findings = []
    for owner, _, container in containers(manifests):
        if container.get("command", [""])[-1] not in ("promote", "rollback"):
            continue
        if flags(container["args"]).get("operation_id") != "$(JOB_NAME)/$(JOB_UID)":
            findings.append(f"{owner}: a second pod makes the change again")
        found = {env["name"]: env.get("valueFrom", {}).get("fieldRef", {}) for env in container["env"]}
        for name, label in wanted.items():
            if found.get(name, {}).get("fieldPath") != f"metadata.labels['{label}']":
                findings.append(f"{owner}: {name} is not the label {label}")
    return findings


def check_order_of_steps(manifests: list[Manifest]) -> list[str]:
    """Check the order of the steps in the pod of a job: first the change, then its verification."""
    wanted = {
        "hubhead-train": ["train", "validate"],
        "hubhead-promote": ["promote", "validate", "predict"],
        "hubhead-canary": ["promote", "validate", "compare"],
        "hubhead-rollback": ["rollback"],
        "hubhead-score": ["score"],
    }
    found = {
        owner: [
            c["command"][1]
            for c in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
            if c.get("command", [""])[0] == "hubhead"
        ]
        for owner, pod in pods(manifests).items()
        if owner in wanted
    }
    findings = [] if found == wanted else [f"steps of the jobs: {found}"]
    labels = {
        owner: flags(arguments(c)).get("label")
        for owner, _, c in containers(manifests)
        if c["name"] == "promote"
    }
    if labels != {"hubhead-promote": "stable", "hubhead-canary": "canary"}:
        findings.append(f"promotions move {labels}")
    return findings


def check_indexed_shards(manifests: list[Manifest]) -> list[str]:
    """Check that an indexed job has one pod per shard, each with its own output."""
    findings = []
    for name, spec in get_job_specs(manifests).items():
        args = [arg for c in spec["template"]["spec"]["containers"] for arg in c.get("args", [])]
        share = flags(args).get("share", "")
        if spec.get("completionMode") != "Indexed":
            if "$(JOB_COMPLETION_INDEX)" in " ".join(args):
                findings.append(f"{name}: uses an index without being an indexed job")
            continue
        if share != f"$(JOB_COMPLETION_INDEX)/{spec.get('completions')}":
            findings.append(f"{name}: {spec.get('completions')} pods process the shards {share}")
        if "$(JOB_COMPLETION_INDEX)" not in flags(args).get("output", ""):
            findings.append(f"{name}: all shards write to one output")
    return findings


def check_flink(manifests: list[Manifest]) -> list[str]:
    """Check that cluster, job server and workers have one version and mount the same volumes."""
    findings = []
    for cluster in select_kind(manifests, "FlinkDeployment"):
        spec, name = cluster["spec"], cluster["metadata"]["name"]
        version = spec["flinkVersion"].removeprefix("v").replace("_", ".")
        score = get_job_specs(manifests)["hubhead-score"]["template"]
        job = score["spec"]["containers"][0]
        options = flags(beam_arguments(job))
        sidecar = next(c for c in score["spec"].get("initContainers", []) if c["name"] == "job-server")
        images = {
            spec["image"].rpartition(":")[2],
            sidecar["image"].partition("beam_flink")[2].partition("_")[0],
        }
        if images != {version}:
            findings.append(f"Flink {version}, but images of {images}")
        if sidecar.get("restartPolicy") != "Always":
            findings.append("the job never ends, since the job server is not a sidecar")
        task = spec["taskManager"]["podTemplate"]["spec"]
        pool = next(c for c in task["containers"] if c["name"] == "beam-worker-pool")
        if pool["image"] != job["image"]:
            findings.append(f"workers of {pool['image']}, a job of {job['image']}")
        if options.get("runner") != "FlinkRunner" or options.get("environment_type") != "EXTERNAL":
            findings.append(f"runs by {options}")
        if options.get("environment_config") != f"localhost:{flags(pool['args']).get('service_port')}":
            findings.append(f"looks for workers at {options.get('environment_config')}")
        masters = {options.get("flink_master"), flags(sidecar["args"]).get("flink-master")}
        if masters != {f"{name}-rest:8081"}:
            findings.append(f"submits to {masters}")
        settings = spec["flinkConfiguration"]
        if settings.get("restart-strategy.type", "none") in ("none", "disable", "off"):
            findings.append("a lost task manager ends the job")
        slots = int(settings["taskmanager.numberOfTaskSlots"])
        if slots != 1:
            findings.append(f"{slots} slots load {slots} models into one worker's memory")
        seen = [
            {m["mountPath"]: (volumes[m["name"]], m.get("readOnly", False)) for m in c["volumeMounts"]}
            for c, volumes in (
                (pool, {v["name"]: v for v in task["volumes"]}),
                (job, {v["name"]: v for v in score["spec"]["volumes"]}),
            )
        ]
        if seen[0] != seen[1]:
            findings.append("workers mount other volumes than the job")
    return findings


def check_flink_pods(manifests: list[Manifest]) -> list[str]:
    """Check the pods that the operator makes of the templates: Flink's container is first, and restricted.

    Whether it merges containers by name is a setting, and old releases do not know it.
    """
    findings = []
    for cluster in select_kind(manifests, "FlinkDeployment"):
        settings = cluster["spec"]["flinkConfiguration"]
        if settings.get("kubernetes.operator.pod-template.merge-arrays-by-name") != "true":
            findings.append("containers are merged by their position in the templates")
        for by_name in (True, False):
            for name, pod in flink_pods(cluster, by_name=by_name).items():
                every = [c["name"] for c in pod["spec"]["containers"]]
                wanted = [MAIN_CONTAINER, *(["beam-worker-pool"] if name == "taskmanager" else [])]
                if every != wanted:
                    findings.append(f"{name} has the containers {every}, merged by name: {by_name}")
                findings += [
                    f"{name}: {c['name']} is not restricted"
                    for c in pod["spec"]["containers"]
                    if c.get("securityContext", {}).get("allowPrivilegeEscalation") is not False
                    or c["securityContext"].get("capabilities") != {"drop": ["ALL"]}
                ]
    return findings


def check_service_monitors(manifests: list[Manifest]) -> list[str]:
    findings = []
    for monitor in select_kind(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [m for m in select_kind(manifests, "Service") if wanted <= m["metadata"]["labels"].items()]
        for endpoint in monitor["spec"]["endpoints"]:
            ports = [p for m in services for p in m["spec"]["ports"] if p["name"] == endpoint["port"]]
            if len(ports) != 1:
                findings.append(f"{len(ports)} services have a port {endpoint['port']}")
            config = next(m for m in select_kind(manifests, "ConfigMap") if "monitoring.config" in m["data"])
            if f'"{endpoint["path"]}"' not in config["data"]["monitoring.config"]:
                findings.append(f"no metrics are exported at {endpoint['path']}")
    return findings


CHECKS: list[Check] = [
    check_commands_parse,
    check_jobs_terminate,
    check_schedules,
    check_paths_agree,
    check_operations_are_made_once,
    check_order_of_steps,
    check_indexed_shards,
    check_flink,
    check_flink_pods,
    check_service_monitors,
]
