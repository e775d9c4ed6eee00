"""Judging a generator: feature extractors, reference features, and FID, KID and Inception Score on them.

A metric's name says by what features it was measured: `fid_classifier` can't be mistaken for `fid_inception`.
"""
