"""Files on local disks and in object stores: read, list, create, replace, retry, lock, sort."""
