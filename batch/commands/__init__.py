"""The commands of batch: score, rescore, embeddings and query."""
