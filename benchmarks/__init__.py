"""Side-by-side measurements: `python -m benchmarks` lists them. The test suite only sees that they work."""
