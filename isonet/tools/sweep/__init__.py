"""Runs over a grid of values of config keys: ``python -m isonet.tools.sweep``."""
