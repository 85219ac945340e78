"""The commands besides training: each module is a command, ``python -m isonet.tools.NAME``."""
