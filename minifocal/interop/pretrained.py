"""Weights files of every kind, opened, understood, and built into a network.

    model = interop.load_pretrained("focalnet-tiny/")                    # a folder of Hugging Face or timm
    model = interop.load_pretrained("focalnet_tiny_lrf.pth")             # the official code's
    model = interop.load_pretrained("timm.safetensors", num_classes=10)  # with a new classifier

A file is opened first (`open_pretrained`), which says what was found out about it; its numbers are read by `build`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minifocal.arrays import get_array_module, overflow_is_looked_for
from minifocal.data.dataset import Standardize
from minifocal.errors import InputError, check_option_names
from minifocal.interop.descriptions import Description
from minifocal.interop.layouts import HEAD, find_place, load_state_dict, mismatch, state_dict, stored_ndim
from minifocal.interop.preprocess import Preprocess
from minifocal.interop.resolve import UnseenFieldsError, resolve
from minifocal.interop.source import STEMS, Source, open_source
from minifocal.interop.tensors import StoredTensor
from minifocal.layers.initializers import get_initializer
from minifocal.layers.linear import Linear
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet

PRETRAINING_PARTS = ("focalnet.embeddings.mask_token", "decoder.")  # of masked image modelling


@dataclass(frozen=True)
class Pretrained:
    """Weights that have been opened and understood, but not yet read.

    Attributes:
        path: of the file.
        layout: whose names and shapes its tensors have.
        config: of the network.
        tensors: by the names of the layout.
        dtype: "float32" or "float64", as the weights have it; halves count as float32.
        class_names: in the order of the outputs, where they are known.
        preprocess: what to do to images, where that is known.
        preprocess_is_assumed: nothing was said about images; what is usual was taken.
        meta: what `minifocal train` stored beside the weights.
        inferred: what was read off the weights or taken for granted, a line each.
        warnings: what a user should know before trusting the numbers, a line each.
        new_classifier: another number of classes was asked for than the weights have.
    """

    path: Path
    layout: str
    config: FocalNetConfig
    tensors: Mapping[str, StoredTensor]
    dtype: str
    class_names: tuple[str, ...] | None
    preprocess: Preprocess | None
    preprocess_is_assumed: bool
    meta: Mapping[str, Any]
    inferred: tuple[str, ...]
    warnings: tuple[str, ...]
    new_classifier: bool = False

    def adapted(self, classes: int, overrides: Mapping[str, Any]) -> "Pretrained":
        """Follow given fields: without the classifier of `classes` where another is wanted, images of another size."""
        changed = self
        if "image_size" in overrides and self.preprocess is not None:
            changed = replace(changed, preprocess=self.preprocess.at_size(self.config.image_hw[0]))
        blocks = zip(self.config.depths, self.config.focal_levels, strict=True)
        if sum(depth * (levels + 1) for depth, levels in blocks) > len(self.tensors):
            raise InputError(
                f"{len(self.tensors)} tensors are too few for depths {self.config.depths} and "
                f"focal_levels {self.config.focal_levels}"
            )
        wanted = self.config.num_classes
        if wanted == classes:
            return changed
        said = f"the classifier of {classes} classes is left out" + (f"; one of {wanted} is new" if wanted else "")
        return replace(
            changed,
            tensors={name: tensor for name, tensor in self.tensors.items() if not _is_head(name, self.layout)},
            class_names=None,
            inferred=(*self.inferred, said),
            new_classifier=wanted > 0,
        )

    def build(self, *, seed: int = 0, dtype: str | None = None, device: str = "cpu", ops: str = "auto") -> FocalNet:
        """Build the network and read its weights, tensor by tensor: memory for the weights is taken once.

        Args:
            seed: of a classifier that the weights do not have.
            dtype: of the network; that of the weights where not given.
            device, ops: as in FocalNet.
        Raises:
            InputError: a weight is missing, unexpected, misshapen or not finite.
        """
        dtype = dtype or self.dtype
        try:
            model = FocalNet(self.config, init="zeros", dtype=dtype, ops=ops)
        except (MemoryError, ValueError) as error:  # NumPy's ValueError for what no memory could hold
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path} claims a network that does not fit into memory") from error
        state: dict[str, Any] = {name: tensor.astype(dtype) for name, tensor in self.tensors.items()}
        if self.new_classifier:
            _draw_head(model, seed)
            head = state_dict(model, layout=self.layout)
            state |= {name: array for name, array in head.items() if _is_head(name, self.layout)}
        try:
            with overflow_is_looked_for():  # below
                load_state_dict(model, state, layout=self.layout)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        for name, parameter in model.named_parameters():
            if not get_array_module(parameter.data).isfinite(parameter.data).all():
                raise InputError(f"{self.path}: {name} holds NaN or infinity; these weights are of no use")
        model.to_device(device)
        return model


def load_pretrained(
    path: str | Path,
    *,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "cpu",
    ops: str = "auto",
    **overrides: Any,
) -> FocalNet:
    """Build a network from weights of any kind, without PyTorch.

    Args:
        path: a folder of Hugging Face or timm (config.json and model.safetensors or pytorch_model.bin); a .safetensors,
            .pth or .bin file with official, Hugging Face's, timm's or Edifice's names; a checkpoint of this package, or
            the folder of a run.
        seed: of a classifier that the weights do not have.
        dtype: of the network; that of the weights where not given. Halves are widened.
        device, ops: as in FocalNet.
        overrides: fields of FocalNetConfig that the weights do not show, or that are to differ: with another
            num_classes the classifier is new, with 0 there is none.
    Raises:
        InputError: the file cannot be read, or is not a FocalNet's; or fields have to be given, which are named.
    Warns:
        UserWarning: where implementations disagree about these weights.
    """
    pretrained = open_pretrained(path, **overrides)
    for warning in pretrained.warnings:
        warnings.warn(warning, stacklevel=2)
    return pretrained.build(seed=seed, dtype=dtype, device=device, ops=ops)


def open_pretrained(path: str | Path, **overrides: Any) -> Pretrained:
    """Open weights of any kind and find out what network they are of; their numbers are not read yet.

    Arguments and errors are those of `load_pretrained`.
    """
    check_option_names(overrides, FocalNetConfig.__dataclass_fields__)
    source = open_source(Path(path))
    understand = _foreign_weights if source.header is None else _own_checkpoint
    try:
        return understand(source, overrides)
    except UnseenFieldsError as error:
        raise UnseenFieldsError(f"{source.path}: {error}", list(error.fields)) from error
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error


def _foreign_weights(source: Source, overrides: Mapping[str, Any]) -> Pretrained:
    """Understand weights of another implementation."""
    layout, tensors, description = source.layout, source.tensors, source.description
    inferred = [f"layout {layout}: it has {STEMS[layout]}"]
    if left_out := [name for name in tensors if layout == "hf" and name.startswith(PRETRAINING_PARTS)]:
        inferred.append(f"left out, of masked image modelling: {', '.join(left_out)}")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    shapes = _own_shapes(tensors, layout)
    use_postln = any("_post." in name for name in tensors) if layout == "timm" else None
    found = resolve(layout, shapes, description, overrides, use_postln)
    classes = shapes["head.bias"][0] if "head.bias" in shapes else 0
    names, notes = _class_names(description, classes)
    preprocess, assumed = _preprocess(description, layout, found.config)
    if assumed:
        inferred.append(f"images are prepared as usual: {preprocess.describe()}")
    return Pretrained(
        path=source.path,
        layout=layout,
        config=found.config,
        tensors=tensors,
        dtype=_dtype(tensors),
        class_names=names,
        preprocess=preprocess,
        preprocess_is_assumed=assumed,
        meta={},
        inferred=(*inferred, *found.inferred),
        warnings=(*found.warnings, *notes),
    ).adapted(classes, overrides)


def _own_shapes(tensors: Mapping[str, StoredTensor], layout: str) -> dict[str, tuple[int, ...]]:
    """Give the stored shapes by our names."""
    places = {name: find_place(name, layout) for name in tensors}
    problems = [f"unexpected {name}" for name, place in places.items() if place is None]
    known = {name: place for name, place in places.items() if place is not None}
    for name, place in known.items():
        axes = stored_ndim(place, layout)
        if len(tensors[name].shape) != axes:
            problems.append(f"{name} is {tensors[name].shape}, not of {axes} axes")
    if problems:
        raise InputError(mismatch(sorted(problems), layout))
    return {place.own_name: tensors[name].shape for name, place in known.items()}


def _class_names(description: Description, classes: int) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Give the class names where there is one for each class; else none, and a warning if that is a surprise."""
    names = description.class_names
    if names is None or len(names) == classes:
        return names, ()
    if not classes:
        return None, ()
    stands_for = f"{description.source} names {len(names)} classes (transformers takes a missing id2label for 2)"
    return None, (f"{stands_for}, but the weights have {classes}; the names are left out",)


def _preprocess(description: Description, layout: str, config: FocalNetConfig) -> tuple[Preprocess, bool]:
    """Give what is said about images, or what is usual; and whether it is the latter."""
    said = description.preprocess
    if said is not None and len(said.standardize.mean) == config.in_chans:
        return said, False
    return Preprocess.usual(layout, config.image_hw[0], config.in_chans), True


def _own_checkpoint(source: Source, overrides: Mapping[str, Any]) -> Pretrained:
    """Understand a checkpoint of this package."""
    assert source.header is not None
    description, meta = source.header["description"], source.header["meta"]
    if description.get("architecture") != "FocalNet" or not isinstance(description.get("config"), dict):
        raise InputError("the checkpoint does not describe a FocalNet")
    config = FocalNetConfig.from_dict(description["config"])
    classes, names = config.num_classes, meta.get("class_names")
    if names is not None and not (isinstance(names, list) and len(names) == classes):
        raise InputError(f"expected a class name for each of {classes} classes in the checkpoint")
    preprocess = None
    if "preprocess" in meta:
        preprocess = Preprocess.from_dict(meta["preprocess"])
    elif "standardize" in meta:  # by minifocal train, which has images of the size that it trains on
        size = config.image_hw[0]
        preprocess = Preprocess(size, size, Standardize.from_dict(meta["standardize"]))
    return Pretrained(
        path=source.path,
        layout=source.layout,
        config=FocalNetConfig.from_dict({**config.to_dict(), **overrides}),
        tensors=source.tensors,
        dtype=_dtype(source.tensors),
        class_names=None if names is None else tuple(map(str, names)),
        preprocess=preprocess,
        preprocess_is_assumed=False,
        meta=meta,
        inferred=("layout minifocal: a checkpoint of this package, which describes itself",),
        warnings=(),
    ).adapted(classes, overrides)


def _is_head(name: str, layout: str) -> bool:
    place = find_place(name, layout)
    return place is not None and place.row.kind == HEAD


def _draw_head(model: FocalNet, seed: int) -> None:
    """Start a new classifier as the official code does."""
    assert model.head is not None
    init = get_initializer("official", seed, model.dtype)
    drawn = Linear(*model.head.weight.data.shape, init=init, ops=model.ops, kind="head")
    model.head.load_state_dict(drawn.state_dict())


def _dtype(tensors: Mapping[str, StoredTensor]) -> str:
    return "float64" if any(tensor.dtype == "float64" for tensor in tensors.values()) else "float32"
