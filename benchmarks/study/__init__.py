"""The CIFAR-10 study: its rows, their runs, and the tables of RESULTS.md that are made of what the runs left."""
