"""How fast: training and inference beside PyTorch and the bare matrix products. Every number is a ratio."""
