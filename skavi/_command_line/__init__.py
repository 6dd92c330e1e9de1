"""What `python -m skavi` is made of."""
