"""Image folders as tar shards, the format of the webdataset library: written, indexed, read in order."""
