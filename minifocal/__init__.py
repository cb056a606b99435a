"""minifocal: FocalNet in NumPy and CuPy, every gradient written by hand.

    import minifocal as mf

    model = mf.FocalNet.build(image_size=32, patch_size=4, hidden_size=64, num_classes=10)
    logits, cache = model.forward(images)                        # (B, 3, 32, 32) -> (B, 10)
    loss, loss_cache = mf.cross_entropy_forward(logits, labels)
    dimages = model.backward(mf.cross_entropy_backward(loss_cache), cache)

Shape letters, the same in every file: B batch, H and W height and width of the token grid, C channels of a token,
L focal levels, k kernel size, P patch size, N classes, T = H*W tokens. Maps are channels-last, (B, H, W, C);
images enter channels-first, (B, Cin, H, W), in pixels.

`dx` is always the gradient of the loss with respect to `x`. The README says in which order to read.
"""

from minifocal import interop
from minifocal.arrays import as_numpy, get_array_module, to_device
from minifocal.errors import InputError
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.gradcheck import check_gradients, check_layer
from minifocal.layers.finite import NotFiniteError, check_finite
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.models.zoo import create_model, list_models
from minifocal.training.checkpoint import load_checkpoint, save_checkpoint
from minifocal.training.graphs import StepGraph
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import SGD, AdamW
from minifocal.training.step import train_step

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AdamW",
    "FocalNet",
    "FocalNetConfig",
    "InputError",
    "LossScaler",
    "NotFiniteError",
    "StepGraph",
    "as_numpy",
    "check_finite",
    "check_gradients",
    "check_layer",
    "create_model",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "get_array_module",
    "interop",
    "list_models",
    "load_checkpoint",
    "save_checkpoint",
    "to_device",
    "train_step",
]
