"""The algorithms of a fit, independent of scikit-learn's estimators."""
