"""Weights of other implementations: official, Hugging Face, timm and Edifice, brought in and taken out.

A file is opened (`source`, by `safetensors_file` or `torch_file` into `tensors`), understood (`descriptions`: what
stands beside it; `infer`: what its shapes show; `resolve`: the configuration from both) and built into a network
(`pretrained`) by the one table of names and shapes (`layouts`), which also serves to write it (`export`).
`preprocess` prepares images.
"""

from minifocal.interop.export import save_pretrained
from minifocal.interop.layouts import LAYOUTS, load_state_dict, state_dict
from minifocal.interop.preprocess import Preprocess
from minifocal.interop.pretrained import Pretrained, load_pretrained, open_pretrained

__all__ = [
    "LAYOUTS",
    "Preprocess",
    "Pretrained",
    "load_pretrained",
    "load_state_dict",
    "open_pretrained",
    "save_pretrained",
    "state_dict",
]
