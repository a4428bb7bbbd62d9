"""Mutations of pods and of the resources that they name."""

from __future__ import annotations

from tests.k8s.mutations import Mutation, job, pod_of_server, serve, spec_of
from tests.k8s.reading import container, find, select_kind

PODS = [
    Mutation(
        "a resource without labels",
        lambda m: find(m, "PersistentVolumeClaim", "hubhead-models")["metadata"].pop("labels"),
    ),
    Mutation(
        "a resource in another namespace",
        lambda m: find(m, "CronJob", "hubhead-score")["metadata"].update(namespace="default"),
    ),
    Mutation("a missing claim", lambda m: m.remove(find(m, "PersistentVolumeClaim", "hubhead-scores"))),
    Mutation("a mount without its volume", lambda m: serve(m)["volumeMounts"][0].update(name="model")),
    Mutation(
        "a file missing from the ConfigMap",
        lambda m: next(
            d["data"] for d in select_kind(m, "ConfigMap") if "monitoring.config" in d["data"]
        ).pop("monitoring.config"),
    ),
    Mutation(
        "a ConfigMap of another name",
        lambda m: next(v for v in pod_of_server(m)["volumes"] if "configMap" in v)["configMap"].update(
            name="hubhead"
        ),
    ),
    Mutation(
        "a temporary volume without a size limit",
        lambda m: next(v for v in pod_of_server(m)["volumes"] if v["name"] == "tmp").update(emptyDir={}),
    ),
    Mutation("an unknown priority class", lambda m: pod_of_server(m).update(priorityClassName="high")),
    Mutation(
        "jobs with priority over servers",
        lambda m: find(m, "PriorityClass", "hubhead-batch").update(value=1000000),
    ),
    Mutation("memory limited but not requested", lambda m: serve(m)["resources"]["requests"].pop("memory")),
    Mutation(
        "no CPU requested",
        lambda m: container(m, "hubhead-train", "train")["resources"]["requests"].pop("cpu"),
    ),
    Mutation(
        "an invalid quantity",
        lambda m: container(m, "hubhead-train", "train")["resources"]["requests"].update(cpu=True),
    ),
    Mutation("runs as root", lambda m: pod_of_server(m)["securityContext"].update(runAsUser=0)),
    Mutation(
        "a writable root file system",
        lambda m: container(m, "hubhead-train", "train")["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    Mutation(
        "a volume without fsGroup",
        lambda m: job(m, "train")["template"]["spec"]["securityContext"].pop("fsGroup"),
    ),
    Mutation(
        "a token for Kubernetes' API",
        lambda m: job(m, "score")["template"]["spec"].pop("automountServiceAccountToken"),
    ),
    Mutation(
        "an image of another version",
        lambda m: container(m, "hubhead-score", "score").update(image="hubhead:99"),
    ),
    Mutation("an image without a version", lambda m: serve(m).update(image="tensorflow/serving")),
    Mutation(
        "a server older than what it serves",
        lambda m: [
            container(m, "hubhead-serving", name).update(image="tensorflow/serving:2.8.0")
            for name in ("seed", "serve")
        ],
    ),
    Mutation(
        "a port without its protocol",
        lambda m: spec_of(m, "Service", "hubhead-serving-rest")["ports"][0].pop("protocol"),
    ),
    Mutation(
        "a container port without its protocol",
        lambda m: serve(m)["ports"][0].pop("protocol"),
    ),
    Mutation(
        "a reference without its API version",
        lambda m: container(m, "hubhead-rollback", "rollback")["env"][1]["valueFrom"]["fieldRef"].pop(
            "apiVersion"
        ),
    ),
    Mutation("a strategy without its type", lambda m: spec_of(m, "Deployment")["strategy"].pop("type")),
    Mutation("an empty list of rules", lambda m: spec_of(m, "NetworkPolicy").update(egress=[])),
    Mutation(
        "a loader that a promotion preempts",
        lambda m: find(m, "Pod", "hubhead-loader")["spec"].update(priorityClassName="hubhead-batch"),
    ),
    Mutation(
        "a toolbox that preempts a training",
        lambda m: find(m, "Pod", "hubhead-toolbox")["spec"].update(priorityClassName="hubhead-serving"),
    ),
    Mutation(
        "an unreachable registry",
        lambda m: job(m, "train")["template"]["spec"]["containers"][0].update(
            image="registry.invalid/hubhead:0.1.0"
        ),
        caught=False,
    ),
]
