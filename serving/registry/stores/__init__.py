"""Where versions are kept: a directory of this machine, or an object store (s3://, gs://) by fsspec.

address   which of the two a text names
objects   the few calls on an object store that are needed, and their errors
store     what a model's versions are kept in, whatever it is
local     on a file system: a rename publishes
bucket    on an object store: a record of each version says whether it is whole
lease     one change at a time, on either
text      a small file, read and replaced as a whole
fetch     a bundle of either as a directory of this machine
"""
