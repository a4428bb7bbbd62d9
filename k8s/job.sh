#!/usr/bin/env bash
# Runs a job of the namespace hubhead: creates it from its CronJob, prints the log of each container as it starts, and
# exits with the exit code of the container that failed, or 0.
# Usage: k8s/job.sh NAME [JOB]
#   NAME  train, canary, promote, rollback or score
#   JOB   name of the Job; by default hubhead-NAME and the time
# Ctrl-C ends only this script: the Job goes on.
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 || $1 == -* ]]; then
  sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
job=${2:-hubhead-$1-$(date -u +%Y%m%d-%H%M%S)}
kube() { kubectl --namespace hubhead "$@"; }

# One line per pod, the oldest first: POD|SIDECARS|CONTAINER:REASON:CODE ...|WHY. REASON is why a container waits, CODE
# is that of its end, and WHY says why no node takes the pod.
state='{range .items[*]}{.metadata.name}{"|"}'
state+='{range .spec.initContainers[?(@.restartPolicy=="Always")]}{.name}{" "}{end}{"|"}'
for kind in initContainerStatuses containerStatuses; do
  state+="{range .status.${kind}[*]}{.name}{\":\"}{.state.waiting.reason}{\":\"}{.state.terminated.exitCode}{\" \"}{end}"
done
state+='{"|"}{.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}{end}'

# Lists with a separator instead of arrays, since macOS has Bash 3.2.
followed='|' noted='|'
note() { # prints a line once
  [[ $noted == *"|$1|"* ]] || echo "$1" >&2
  noted+="$1|"
}

kube create job --from="cronjob/hubhead-$1" "$job" >&2
code=0
while :; do
  # Read before the pods, so that the containers of a finished Job are all followed.
  if ! finished=$(kube get job "$job" -o jsonpath='{.status.conditions[?(@.status=="True")].type}' 2>&1) ||
    ! pods=$(kube get pods --selector="batch.kubernetes.io/job-name=$job" --sort-by=.metadata.creationTimestamp \
      -o jsonpath="$state"); then
    note "$finished"
    [[ $finished == *NotFound* ]] && exit 1 # deleted meanwhile
    sleep 5 # the Job goes on while the API server does not answer
    continue
  fi
  code=0
  while IFS='|' read -r pod sidecars containers why; do
    [[ -z $why ]] || note "$pod waits: $why"
    for container in $containers; do
      IFS=: read -r name reason exit_code <<<"$container"
      if [[ -n $reason ]]; then
        [[ $reason =~ ^(PodInitializing|ContainerCreating)$ ]] || note "$pod, $name waits: $reason"
        continue
      fi
      if [[ $followed != *"|$pod/$name|"* ]]; then
        followed+="$pod/$name|"
        echo "--- $pod, $name" >&2
        if [[ -n $exit_code ]]; then # prints the log of a container that has ended before the next one's
          kube logs "$pod" --container="$name" || true
        else
          kube logs --follow "$pod" --container="$name" &
        fi
      fi
      [[ " $sidecars" == *" $name "* || ${exit_code:-0} == 0 ]] || code=$exit_code
    done
  done <<<"$pods"
  [[ $finished =~ Complete|Failed ]] && break
  sleep 1
done
wait
if [[ $finished =~ Failed ]]; then
  kube get job "$job" -o jsonpath='{.metadata.name} failed: {.status.conditions[?(@.type=="Failed")].message}{"\n"}' >&2
  exit $((code ? code : 1))
fi
