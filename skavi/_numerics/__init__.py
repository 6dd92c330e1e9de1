"""Numbers: quadrature, sums that repeat, tensors that are aligned."""
