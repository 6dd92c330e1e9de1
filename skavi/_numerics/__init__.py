"""Numerics: quadrature, reproducible sums, and aligned tensors."""
