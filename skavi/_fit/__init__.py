"""The engine of a fit, which knows nothing of scikit-learn."""
