"""Model registry: versions, labels, promotion and rollback. Imports no TensorFlow.

verdict       the gate's verdict, stored inside the bundle
audit         append-only log of all changes
model_config  TensorFlow Serving's model.config: version policy and labels of one model
stores        where versions are kept: a local directory or an object store
inventory     list the versions of a model and their state
labels        resolve a version label to a version directory
target        a deployment target: versions, configuration and server of one model, and its lock
rollout       move labels without losing requests: load, wait, move, unload
promote       publish a bundle, make it live, delete old versions
rollback      return to the previous version
agreement     compare the predictions of two served versions
"""
