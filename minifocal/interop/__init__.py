"""Weights of other implementations: official, Hugging Face, timm and Edifice, brought in and taken out."""

from minifocal.interop.layouts import LAYOUTS, load_state_dict, state_dict

__all__ = ["LAYOUTS", "load_state_dict", "state_dict"]
