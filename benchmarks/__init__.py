"""Benchmarks against the published formulation; each command prints a table and can write JSON."""
