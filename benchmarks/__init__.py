"""Benchmarks: ratios inside one run, medians of several; see README.md."""
