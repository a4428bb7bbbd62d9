"""The batch jobs: score and rescore, the planner of their shards, and the artifacts that a run publishes."""
