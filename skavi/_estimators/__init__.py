"""The estimators' side that scikit-learn sees."""
