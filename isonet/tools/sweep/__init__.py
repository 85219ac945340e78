"""A sweep: one training run for each combination of the values of some config keys, and a comparison of the runs."""
