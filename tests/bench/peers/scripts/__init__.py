"""The peers: short programs as a good engineer would write them, each run as a command of its own.

Those of batch scoring take the arguments MODEL PHOTOS OUTPUT: the directory that `tests.bench.peers.model`
wrote, a directory of photos, and the Parquet file to write. They print their photos/s without start-up.
Servers take MODEL PORT.
"""
