"""Stores of model versions: a local directory, or an object store (s3://, gs://) by fsspec.

store         interface of a store
local         store on a file system; a rename publishes a version atomically
object_store  store on an object store; a record per version states whether it is complete
download      open the store of a base path; fetch a bundle to this machine
"""
