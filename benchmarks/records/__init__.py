"""Benchmarks that were run once to answer a question; README.md has the answers."""
