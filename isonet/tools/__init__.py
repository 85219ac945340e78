"""What a user does besides training."""
