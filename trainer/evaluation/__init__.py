"""Evaluation: metrics with intervals, paired comparison, cross-validation, abstention, novelty."""
