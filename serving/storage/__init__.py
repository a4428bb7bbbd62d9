"""Files on local disks and object stores: read, list, create, publish, lock."""
