"""What a user does besides training: one module for each command, ``python -m isonet.tools.NAME``."""
