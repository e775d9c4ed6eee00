"""The game between G and D: losses, regularizers and augmentation.

Almost all are functions of tensors without side effects; two regularizers change D's weights or buffers in place.
"""
