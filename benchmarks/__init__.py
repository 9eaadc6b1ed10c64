"""Benchmarks: each module prints a table and appends to results/; run it as `python -m benchmarks.NAME`."""
