"""The jobs of `benchmarks/specialists.py`, one file a field; each states its data and contestants.

A specialist is imported when its job is asked for: one that is not installed leaves a line that
says so, and skavi runs alone.
"""
