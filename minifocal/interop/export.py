"""Networks of this package, written as files that the other implementations read."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifocal.arrays import as_numpy
from minifocal.errors import InputError
from minifocal.files import atomic_folder, saving, write_bytes, write_safetensors
from minifocal.interop.descriptions import CONFIG_FILE, PREPROCESSOR_FILE, hf_config
from minifocal.interop.layouts import LAYOUTS, state_dict
from minifocal.interop.preprocess import Preprocess
from minifocal.interop.resolve import LAYOUT_FIELDS
from minifocal.interop.source import DESCRIPTION, HF_FILES
from minifocal.interop.torch_file import TORCH_SUFFIXES, write_torch
from minifocal.models.config import BOX_MEAN, FOCAL, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.training.checkpoint import save_checkpoint

SAFETENSORS = ".safetensors"
SUFFIXES = {
    "minifocal": (SAFETENSORS,),
    "official": (*TORCH_SUFFIXES, SAFETENSORS),
    "hf": (),
    "timm": (SAFETENSORS, *TORCH_SUFFIXES),
    "edifice": (SAFETENSORS,),
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
            be written; each file is written whole or not at all, and those of a folder together.
    Warns:
        UserWarning: the other implementation treats images of this network's size differently.
    """
    write_pretrained(model, Path(path), layout, class_names, preprocess)
    step = _even_step(model.config)
    if any(pixels % step for pixels in model.config.image_hw):
        for change in changes_of_function(model.config, layout):
            warnings.warn(change, stacklevel=2)


def write_pretrained(
    model: FocalNet, path: Path, layout: str, class_names: Sequence[str] | None, preprocess: Preprocess | None
) -> None:
    """Write as `save_pretrained` does, without a warning."""
    config = model.config
    check_exportable(config, path, layout)
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise InputError(f"preprocess must be a Preprocess, got {type(preprocess).__name__}")
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
        with saving(path):
            with atomic_folder(path) as folder:
                write_safetensors(folder / HF_FILES[0], tensors, {"format": "pt"})
                _write_json(folder / CONFIG_FILE, {**hf_config(config, names), "dtype": model.dtype})
                if preprocess is not None:
                    _write_json(folder / PREPROCESSOR_FILE, preprocess.to_hf())
            if preprocess is None:  # one that is left from other weights would be taken for these
                (path / PREPROCESSOR_FILE).unlink(missing_ok=True)
        return
    prepared = None if preprocess is None else preprocess.to_dict()
    description = json.dumps({"config": config.to_dict(), "class_names": names, "preprocess": prepared})
    if path.suffix in TORCH_SUFFIXES:
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
    if not suffixes and path.suffix in (SAFETENSORS, *TORCH_SUFFIXES):
        raise InputError(f"layout {layout!r} is written to a folder, got {str(path)!r}; leave {path.suffix} out")
    for name, value, here in _differences(config, layout):
        others = " or ".join(repr(other) for other in LAYOUTS if not _differences(config, other))
        raise InputError(
            f"layout {layout!r} has {name} {value!r} only, this network has {here!r}; store it as {others}"
        )


def _differences(config: FocalNetConfig, layout: str) -> list[tuple[str, Any, Any]]:
    """List what an implementation cannot be: the field, its value there and its value here; pad_mode apart."""
    fixed = {**LAYOUT_FIELDS[layout], **LIMITS[layout]}
    fixed.pop("pad_mode", None)
    if config.use_conv_embed:  # its patches are overlapping ones of 7 x 7, whatever patch_size says
        fixed.pop("patch_size", None)
    found = [(name, value, getattr(config, name)) for name, value in fixed.items()]
    if layout == "edifice":
        found.append(("number of stages", 1, len(config.depths)))
    return [(name, value, here) for name, value, here in found if here != value]


def changes_of_function(config: FocalNetConfig, layout: str) -> list[str]:
    """Say where an implementation computes something else with the same weights: images of certain sizes."""
    rule = LAYOUT_FIELDS[layout].get("pad_mode", config.pad_mode)
    if rule == config.pad_mode:
        return []
    words = {"pad": "adds zeros to fill the last patches", "floor": "leaves out pixels that fill no patch"}
    both = f"{layout} {words[rule]} (pad_mode {rule!r}), this network {words[config.pad_mode]} ({config.pad_mode!r})"
    return [f"{both}: results are equal only for images whose sides are multiples of {_even_step(config)} pixels"]


def _even_step(config: FocalNetConfig) -> int:
    """Give the number that divides the sides of images of which no pixel is left over in any stage."""
    return config.patch_size * 2 ** (len(config.depths) - 1)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())
