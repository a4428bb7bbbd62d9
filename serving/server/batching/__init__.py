"""Batching of requests: the queue, admission control and the threads that run the model."""
