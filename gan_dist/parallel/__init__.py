"""Processes and devices: the only files that know Accelerate and torch.distributed."""
