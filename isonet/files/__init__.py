"""Files: checkpoints, run folders, the authors' weights."""
