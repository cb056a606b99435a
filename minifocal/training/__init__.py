"""Training: optimizers, schedule, augmentation, checkpoints and the loop. Knows layers, not which network they make."""
