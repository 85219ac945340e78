"""Images in tar shards, in the format of the webdataset library: indexed, read by offset, written, checked."""
