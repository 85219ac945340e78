"""The CIFAR-10 study: its rows, their runs, and the tables of RESULTS.md, which are computed from the stored runs."""
