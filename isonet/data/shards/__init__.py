"""Images in tar shards, in the format of the webdataset library: the index, reading by offset, writing and checking."""
