"""Mutations of the jobs."""

from __future__ import annotations

from tests.k8s.mutations import Mutation, fail_rule, job, spec_of, swap
from tests.k8s.reading import container

JOBS = [
    Mutation(
        "an unknown command",
        lambda m: container(m, "hubhead-score", "score").update(command=["hubhead", "scores"]),
    ),
    Mutation(
        "a mistyped flag of hubhead",
        lambda m: swap(container(m, "hubhead-score", "score"), "--overwrite", "--overwite"),
    ),
    Mutation(
        "an invalid --max_rejected",
        lambda m: swap(container(m, "hubhead-score", "score"), "--max_rejected=5%", "--max_rejected=five"),
    ),
    Mutation(
        "a missing required flag",
        lambda m: swap(container(m, "hubhead-score", "score"), "--output=/scores/food", None),
    ),
    Mutation(
        "an output outside all volumes",
        lambda m: swap(container(m, "hubhead-score", "score"), "--output=/scores/food", "--output=/results"),
    ),
    Mutation(
        "scores on a read-only mount",
        lambda m: next(
            v for v in container(m, "hubhead-score", "score")["volumeMounts"] if v["name"] == "scores"
        ).update(readOnly=True),
    ),
    Mutation(
        "a verdict on another bundle",
        lambda m: swap(
            container(m, "hubhead-train", "validate"),
            "--bundle=/models/candidates/food",
            "--bundle=/models/candidates/birds",
        ),
    ),
    Mutation(
        "a validation without the embeddings",
        lambda m: container(m, "hubhead-train", "validate")["args"].remove("--embedding_store=/embeddings"),
    ),
    Mutation(
        "two embedding stores",
        lambda m: swap(
            container(m, "hubhead-score", "score"),
            "--embedding_store=/embeddings",
            "--embedding_store=/embeddings/scoring",
        ),
    ),
    Mutation(
        "a promotion that does not compare the servers with the bundle",
        lambda m: job(m, "promote")["template"]["spec"]["initContainers"].pop(1),
    ),
    Mutation(
        "a canary that is not compared with the bundle",
        lambda m: job(m, "canary")["template"]["spec"]["initContainers"].pop(1),
    ),
    Mutation(
        "a canary with other results than the bundle is tried again",
        lambda m: job(m, "canary")["podFailurePolicy"]["rules"].pop(2),
    ),
    Mutation(
        "the servers are compared with another bundle than the promoted one",
        lambda m: swap(
            container(m, "hubhead-promote", "validate"),
            "--bundle=/models/candidates/food",
            "--bundle=/models/food",
        ),
    ),
    Mutation(
        "a promotion without its promote step",
        lambda m: job(m, "promote")["template"]["spec"].update(initContainers=[]),
    ),
    Mutation(
        "the canary becomes stable",
        lambda m: swap(container(m, "hubhead-canary", "promote"), "--label=canary", "--label=stable"),
    ),
    Mutation(
        "a promotion with an unknown server",
        lambda m: swap(
            container(m, "hubhead-promote", "promote"),
            "--server=dns:///hubhead-serving-control:8500",
            "--server=dns:///hubhead-serving:8500",
        ),
    ),
    Mutation(
        "a promotion of another model",
        lambda m: swap(container(m, "hubhead-promote", "promote"), "--model_name=food", "--model_name=birds"),
    ),
    Mutation("retried after a usage error", lambda m: fail_rule(m, "score").update(values=[3])),
    Mutation(
        "a failure policy for another container",
        lambda m: fail_rule(m, "train").update(containerName="trainer"),
    ),
    Mutation(
        "a drained node counts as a failure", lambda m: job(m, "score")["podFailurePolicy"]["rules"].pop(0)
    ),
    Mutation(
        "restartPolicy OnFailure",
        lambda m: job(m, "score")["template"]["spec"].update(restartPolicy="OnFailure"),
    ),
    Mutation("a job without a deadline", lambda m: job(m, "score").pop("activeDeadlineSeconds")),
    Mutation("jobs that are never cleaned up", lambda m: job(m, "score").pop("ttlSecondsAfterFinished")),
    Mutation(
        "a schedule at the 25th hour",
        lambda m: spec_of(m, "CronJob", "hubhead-score").update(schedule="15 25 * * *"),
    ),
    Mutation(
        "concurrent runs", lambda m: spec_of(m, "CronJob", "hubhead-score").update(concurrencyPolicy="Allow")
    ),
    Mutation("no time zone", lambda m: spec_of(m, "CronJob", "hubhead-score").pop("timeZone")),
    Mutation(
        "a rollback every Sunday", lambda m: spec_of(m, "CronJob", "hubhead-rollback").update(suspend=False)
    ),
    Mutation("fewer pods than shards", lambda m: job(m, "score").update(completions=4), "score-indexed"),
    Mutation(
        "all shards into one output",
        lambda m: swap(
            container(m, "hubhead-score", "score"),
            "--output=/scores/food/$(JOB_COMPLETION_INDEX)",
            "--output=/scores/food",
        ),
        "score-indexed",
    ),
    Mutation(
        "an index without an indexed job", lambda m: job(m, "score").pop("completionMode"), "score-indexed"
    ),
    Mutation(
        "Flink of another version than its job server",
        lambda m: spec_of(m, "FlinkDeployment", "hubhead-flink").update(
            image="flink:1.19", flinkVersion="v1_19"
        ),
        "flink",
    ),
    Mutation(
        "a job server of another Beam",
        lambda m: container(m, "hubhead-score", "job-server").update(
            image="apache/beam_flink1.20_job_server:2.60.0"
        ),
        "flink",
    ),
    Mutation(
        "a job server that is not a sidecar",
        lambda m: container(m, "hubhead-score", "job-server").pop("restartPolicy"),
        "flink",
    ),
    Mutation(
        "containers merged by position",
        lambda m: spec_of(m, "FlinkDeployment", "hubhead-flink")["flinkConfiguration"].pop(
            "kubernetes.operator.pod-template.merge-arrays-by-name"
        ),
        "flink",
    ),
    Mutation(
        "workers in the place of Flink's container",
        lambda m: spec_of(m, "FlinkDeployment", "hubhead-flink")["taskManager"]["podTemplate"]["spec"][
            "containers"
        ].pop(0),
        "flink",
    ),
    Mutation(
        "Flink's container without its restrictions",
        lambda m: spec_of(m, "FlinkDeployment", "hubhead-flink")["podTemplate"]["spec"]["containers"][0].pop(
            "securityContext"
        ),
        "flink",
    ),
    Mutation(
        "a lost task manager ends the job",
        lambda m: spec_of(m, "FlinkDeployment", "hubhead-flink")["flinkConfiguration"].pop(
            "restart-strategy.type"
        ),
        "flink",
    ),
    Mutation(
        "a rollback that a second pod makes again",
        lambda m: swap(
            container(m, "hubhead-rollback", "rollback"), "--operation_id=$(JOB_NAME)/$(JOB_UID)", None
        ),
    ),
    Mutation(
        "an identifier that the next Job of this name has too",
        lambda m: swap(
            container(m, "hubhead-promote", "promote"),
            "--operation_id=$(JOB_NAME)/$(JOB_UID)",
            "--operation_id=$(JOB_NAME)",
        ),
    ),
    Mutation(
        "an identifier by a label that pods do not have",
        lambda m: container(m, "hubhead-canary", "promote")["env"][2]["valueFrom"]["fieldRef"].update(
            fieldPath="metadata.labels['controller-id']"
        ),
    ),
    Mutation(
        "workers at another port",
        lambda m: swap(
            container(m, "hubhead-score", "score"),
            "--environment_config=localhost:50000",
            "--environment_config=localhost:5000",
        ),
        "flink",
    ),
    Mutation(
        "workers without the photos volume",
        lambda m: spec_of(m, "FlinkDeployment", "hubhead-flink")["taskManager"]["podTemplate"]["spec"][
            "containers"
        ][1]["volumeMounts"].pop(0),
        "flink",
    ),
]
