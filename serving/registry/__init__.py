"""From a finished bundle to the version that answers, and back. No TensorFlow at import.

verdict       what the gate found, kept in the bundle
audit         who changed what, one line a change
model_config  TensorFlow Serving's model.config: policy and labels of one model, the rest as it was
storage       where versions are kept: a directory, or an object store
inventory     the versions of a model and which of them serve
place         where versions, configuration and server are; one change at a time
rollout       a label moves: load, wait, move, let go
promote       publish and move; keep so many versions
rollback      back to the version before
"""
