"""Operators that replace those of torch because they are faster, more exact or deterministic; and torch's switches.

Deterministic means that every repetition gives the same bits. The files in this folder know only tensors and modules.
Most networks need no change to use them: `convolution` replaces torch's convolutions inside a context, and `layout`
prepares a finished network for its device.
"""
