"""The game between G and D: losses, regularizers and augmentation. They are pure functions of tensors."""
