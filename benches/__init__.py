"""Benchmarks of pydist beside its peers and the bare floor: `python -m benches`, or pytest."""
