"""A training run: configuration, steps, fine-tuning, summary and TensorBoard logs."""
