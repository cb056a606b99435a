"""Networks of this package, written as files that the other implementations read."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifocal.arrays import as_numpy
from minifocal.errors import InputError
from minifocal.files import write_bytes
from minifocal.interop.descriptions import CONFIG_FILE, PREPROCESSOR_FILE, hf_config
from minifocal.interop.layouts import LAYOUTS, state_dict
from minifocal.interop.preprocess import Preprocess
from minifocal.interop.pretrained import DESCRIPTION, WEIGHTS_FILES
from minifocal.interop.resolve import LAYOUT_FIELDS
from minifocal.interop.safetensors_file import write_safetensors
from minifocal.interop.torch_file import write_torch
from minifocal.models.config import BOX_MEAN, FOCAL, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.training.checkpoint import save_checkpoint

SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin")
SUFFIXES = {
    "minifocal": SAFETENSORS,
    "official": (*TORCH, *SAFETENSORS),
    "hf": (),
    "timm": (*SAFETENSORS, *TORCH),
    "edifice": SAFETENSORS,
}
"""Of the files that a layout is written to; Hugging Face's is a folder."""

LIMITS: dict[str, dict[str, Any]] = {
    "minifocal": {},
    "official": {"modulation": FOCAL},
    "hf": {"modulation": FOCAL, "patch_norm": True},
    "timm": {"modulation": FOCAL, "patch_norm": True, "patch_size": 4},
    "edifice": {
        "modulation": BOX_MEAN,
        "mlp_act": "gelu",
        "mlp_ratio": 4.0,
        "ln_eps": 1e-5,
        "patch_norm": False,
        "use_layerscale": False,
    },
}
"""What an implementation can only be, beyond what it always does (`LAYOUT_FIELDS`)."""


def save_pretrained(
    model: FocalNet,
    path: str | Path,
    *,
    layout: str = "hf",
    class_names: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
) -> None:
    """Write a network so that another implementation, or this one, can load it.

    Args:
        model: to write.
        path: for "hf" a folder, which `from_pretrained` of transformers reads; for "official" a .pth file, whose
            `torch.load(path)["model"]` the official code takes; for "timm" a .safetensors or .pth file, as its
            `checkpoint_path=`; for "edifice" and "minifocal" a .safetensors file.
        layout: "hf", "official", "timm", "edifice" or "minifocal" (a checkpoint of this package).
        class_names: one for each class; they go where the layout has room for them.
        preprocess: of images; likewise.
    Raises:
        InputError: the other implementation cannot be this network, the path has another kind of name, or it cannot
            be written; nothing is half-written.
    Warns:
        UserWarning: the other implementation treats images of this network's size differently.
    """
    step = _even_step(model.config)
    if any(pixels % step for pixels in model.config.image_hw):
        for change in changes_of_function(model.config, layout):
            warnings.warn(change, stacklevel=2)
    write_pretrained(model, Path(path), layout, class_names, preprocess)


def write_pretrained(
    model: FocalNet, path: Path, layout: str, class_names: Sequence[str] | None, preprocess: Preprocess | None
) -> None:
    """Write as `save_pretrained` does, without a warning."""
    config = model.config
    check_exportable(config, path, layout)
    if class_names is not None and len(class_names) != config.num_classes:
        raise InputError(f"class_names must be one for each of {config.num_classes} classes, got {len(class_names)}")
    names = None if class_names is None else tuple(map(str, class_names))
    if layout == "minifocal":
        meta: dict[str, Any] = {} if names is None else {"class_names": names}
        if preprocess is not None:
            meta |= {"standardize": preprocess.standardize.to_dict(), "preprocess": preprocess.to_dict()}
        save_checkpoint(path, model, **meta)
        return
    tensors = {name: as_numpy(array) for name, array in state_dict(model, layout=layout).items()}
    if layout == "hf":
        write_safetensors(path / WEIGHTS_FILES[0], tensors, {"format": "pt"})
        if preprocess is not None:
            _write_json(path / PREPROCESSOR_FILE, preprocess.to_hf())
        _write_json(path / CONFIG_FILE, {**hf_config(config, names), "dtype": model.dtype})
        return
    prepared = None if preprocess is None else preprocess.to_dict()
    description = json.dumps({"config": config.to_dict(), "class_names": names, "preprocess": prepared})
    if path.suffix in TORCH:
        write_torch(path, tensors, {DESCRIPTION: description})
    else:
        write_safetensors(path, tensors, {"format": "pt", DESCRIPTION: description})


def check_exportable(config: FocalNetConfig, path: Path, layout: str) -> None:
    """Refuse what `save_pretrained` could not write as a file that the other implementation understands.

    Raises:
        InputError: as there.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    suffixes = SUFFIXES[layout]
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"layout {layout!r} is written to a file of {' or '.join(suffixes)}, got {str(path)!r}")
    if not suffixes and path.suffix in (*SAFETENSORS, *TORCH):
        raise InputError(f"layout {layout!r} is written to a folder, got {str(path)!r}; leave {path.suffix} out")
    for name, value in {**LAYOUT_FIELDS[layout], **LIMITS[layout]}.items():
        here = getattr(config, name)
        unused = name == "patch_size" and config.use_conv_embed
        if here != value and name != "pad_mode" and not unused:
            others = [other for other in LAYOUTS if not _differs(config, other)]
            raise InputError(
                f"layout {layout!r} has {name} {value!r} only, this network has {here!r}; "
                f"store it as {' or '.join(map(repr, others))}"
            )


def _differs(config: FocalNetConfig, layout: str) -> bool:
    fixed = {**LAYOUT_FIELDS[layout], **LIMITS[layout]}
    return any(getattr(config, name) != value for name, value in fixed.items() if name != "pad_mode")


def changes_of_function(config: FocalNetConfig, layout: str) -> list[str]:
    """Say where an implementation computes something else with the same weights: images of certain sizes."""
    rule = LAYOUT_FIELDS[layout].get("pad_mode", config.pad_mode)
    if rule == config.pad_mode:
        return []
    words = {"pad": "pads images and maps that patches do not divide", "floor": "leaves out what fills no patch"}
    same = f"only images whose sides divide by {_even_step(config)} give the same"
    return [f"{layout} {words[rule]}, this network does not: {same}"]


def _even_step(config: FocalNetConfig) -> int:
    """Give the number that divides the sides of images of which no pixel is left over in any stage."""
    return config.patch_size * 2 ** (len(config.depths) - 1)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())
