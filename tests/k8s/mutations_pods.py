"""Mistakes in any pod, and in what pods name."""

from __future__ import annotations

from tests.k8s.mutations import Mutation, job, pod_of_server, serve
from tests.k8s.reading import container, find, of_kind

PODS = [
    Mutation(
        "a resource without labels",
        lambda m: find(m, "PersistentVolumeClaim", "hubhead-models")["metadata"].pop("labels"),
    ),
    Mutation(
        "a resource in another namespace",
        lambda m: find(m, "CronJob", "hubhead-score")["metadata"].update(namespace="default"),
    ),
    Mutation(
        "a claim that nobody made", lambda m: m.remove(find(m, "PersistentVolumeClaim", "hubhead-scores"))
    ),
    Mutation("a mount without its volume", lambda m: serve(m)["volumeMounts"][0].update(name="model")),
    Mutation(
        "a file that the ConfigMap lacks",
        lambda m: next(d["data"] for d in of_kind(m, "ConfigMap") if "monitoring.config" in d["data"]).pop(
            "monitoring.config"
        ),
    ),
    Mutation(
        "a ConfigMap of another name",
        lambda m: next(v for v in pod_of_server(m)["volumes"] if "configMap" in v)["configMap"].update(
            name="hubhead"
        ),
    ),
    Mutation(
        "a temporary volume without a bound",
        lambda m: next(v for v in pod_of_server(m)["volumes"] if v["name"] == "tmp").update(emptyDir={}),
    ),
    Mutation(
        "a priority class that nobody made", lambda m: pod_of_server(m).update(priorityClassName="high")
    ),
    Mutation(
        "jobs go before servers", lambda m: find(m, "PriorityClass", "hubhead-batch").update(value=1000000)
    ),
    Mutation("memory limited but not requested", lambda m: serve(m)["resources"]["requests"].pop("memory")),
    Mutation(
        "no CPU requested",
        lambda m: container(m, "hubhead-train", "train")["resources"]["requests"].pop("cpu"),
    ),
    Mutation(
        "a quantity that is none",
        lambda m: container(m, "hubhead-train", "train")["resources"]["requests"].update(cpu=True),
    ),
    Mutation("runs as root", lambda m: pod_of_server(m)["securityContext"].update(runAsUser=0)),
    Mutation(
        "a root file system that can be written",
        lambda m: container(m, "hubhead-train", "train")["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    Mutation(
        "a volume that its user cannot write",
        lambda m: job(m, "train")["template"]["spec"]["securityContext"].pop("fsGroup"),
    ),
    Mutation(
        "a token for Kubernetes' API",
        lambda m: job(m, "score")["template"]["spec"].pop("automountServiceAccountToken"),
    ),
    Mutation(
        "an image that was not built yet",
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
        "a registry that is not there",
        lambda m: job(m, "train")["template"]["spec"]["containers"][0].update(
            image="registry.invalid/hubhead:0.1.0"
        ),
        caught=False,
    ),
]
