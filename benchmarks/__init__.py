"""Measurements that compare contestants: `python -m benchmarks` lists them. The tests only check that they run."""
