"""From an image file to the array that published weights expect: resize, centre crop, standardise."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.data.dataset import Standardize
from minifocal.data.folder import FILTERS, ROUNDINGS, read_image
from minifocal.errors import InputError, check_integer, is_integer, is_real, shown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_SIDE = 2**21  # pixels; Pillow's limit holds besides
MAX_VALUE = 1e6  # of a mean or deviation: what is standardised stays within float32


@dataclass(frozen=True)
class Preprocess:
    """What was done to images before a network saw them.

    The shorter side is resized to `resize` pixels, a square of `crop` pixels is cut from the centre, bytes are divided
    by 255, and each channel has its mean subtracted and is divided by its deviation.

    Attributes:
        resize, crop: in pixels.
        standardize: mean and standard deviation of each channel.
        resample: the filter of Pillow that resizes.
        rounding: of half a pixel where the centre is cut out: "even" (torchvision) or "down" (Hugging Face).
    Raises:
        InputError: sizes that are none, a crop larger than the image that it is cut from, a mean or deviation that no
            image has, or an unknown filter or rounding.
    """

    resize: int
    crop: int
    standardize: Standardize
    resample: str = "bicubic"
    rounding: str = "even"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            check_integer(name, getattr(self, name), at_least=1)
            object.__setattr__(self, name, int(getattr(self, name)))
        if not self.crop <= self.resize <= MAX_SIDE:
            raise InputError(
                f"resize must be at least crop and at most {MAX_SIDE} pixels, got {self.resize} and {self.crop}"
            )
        for name, known in (("resample", FILTERS), ("rounding", tuple(ROUNDINGS))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {shown(getattr(self, name))}")
        mean, std = self.standardize.mean, self.standardize.std
        if max(map(abs, mean)) > MAX_VALUE or not 1 / MAX_VALUE <= min(std) <= max(std) <= MAX_VALUE:
            raise InputError(f"mean and std must be those of images, got {shown(mean)} and {shown(std)}")

    @classmethod
    def usual(cls, layout: str, image_size: int, channels: int) -> "Preprocess":
        """Give what is done where nothing is said: by timm a crop of 0.9, by the others one of 224/256.

        Colours have ImageNet's mean and deviation; other images are brought to [-1, 1].
        """
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        resize = image_size / 0.9 if layout == "timm" else image_size * 256 / 224
        return cls(int(resize), image_size, Standardize(mean, std), rounding="down" if layout == "hf" else "even")

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], source: str) -> tuple["Preprocess", tuple[str, ...]]:
        """Read Hugging Face's preprocessor_config.json; the second value says what could not be taken over.

        Raises:
            InputError: a value that makes no preprocessing.
        """
        size = values.get("size", {"shortest_edge": 224})
        crop = _side(values.get("crop_size", size), source)
        resize = _side(size, source) if values.get("do_resize", True) else crop
        if not values.get("do_center_crop", True):
            crop = resize
        number = values.get("resample", FILTERS.index("bicubic"))
        if not is_integer(number) or not 0 <= number < len(FILTERS):
            raise InputError(
                f"{source}: resample must be the number of a filter, 0 to {len(FILTERS) - 1}, got {shown(number)}"
            )
        notes = []
        if isinstance(size, dict) and "shortest_edge" not in size:
            notes.append(
                f"{source} resizes to height and width; here the shorter side is resized and the centre cut out"
            )
        if values.get("do_normalize", True):
            mean, std = values.get("image_mean", IMAGENET_MEAN), values.get("image_std", IMAGENET_STD)
        else:
            mean, std = (0.0,) * 3, (1.0,) * 3
        factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
        if not is_real(factor) or factor <= 0:
            raise InputError(f"{source}: rescale_factor must be a positive number, got {shown(factor)}")
        factor = float(factor)  # 255 times a large integer may be beyond what Python makes a float of
        # factor * bytes = (bytes / 255) * (255 * factor), so mean and deviation take the quotient over.
        scale = 1.0 if np.isclose(factor, 1 / 255, rtol=1e-9) else 255 * factor
        try:
            standardize = Standardize.from_dict({"mean": _scaled(mean, scale), "std": _scaled(std, scale)})
            return cls(max(resize, crop), crop, standardize, FILTERS[number], "down"), tuple(notes)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    @classmethod
    def from_timm(cls, values: Mapping[str, Any], source: str) -> "Preprocess":
        """Read timm's pretrained_cfg: input_size, crop_pct, interpolation, mean, std.

        Raises:
            InputError: a value that makes no preprocessing.
        """
        input_size = values.get("input_size", (3, 224, 224))
        share = values.get("crop_pct", 0.9)
        if not (isinstance(input_size, list | tuple) and len(input_size) == 3 and all(map(is_integer, input_size))):
            raise InputError(f"{source}: input_size must be channels, height and width, got {shown(input_size)}")
        if not is_real(share) or not 0.01 <= share <= 1:
            raise InputError(f"{source}: crop_pct must be at least 0.01 and at most 1, got {shown(share)}")
        crop = input_size[1]
        check_integer(f"{source}: input_size", crop, at_least=1, at_most=MAX_SIDE)
        mean, std = values.get("mean", IMAGENET_MEAN), values.get("std", IMAGENET_STD)
        try:
            standardize = Standardize.from_dict({"mean": mean, "std": std})
            return cls(int(crop / share), crop, standardize, values.get("interpolation", "bicubic"))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Read what `to_dict` gave.

        Raises:
            InputError: a value is missing or makes no preprocessing.
        """
        if not isinstance(values, Mapping) or not {"resize", "crop"} <= values.keys():
            raise InputError(f'expected "resize", "crop", "mean" and "std", got {shown(values)}')
        standardize = Standardize.from_dict(dict(values))
        rules = {name: values[name] for name in ("resample", "rounding") if name in values}
        return cls(values["resize"], values["crop"], standardize, **rules)

    def at_size(self, crop: int) -> "Preprocess":
        """Give the same for another size of the crop; the image around it grows or shrinks with it."""
        return self if crop == self.crop else replace(self, crop=crop, resize=self.resize * crop // self.crop)

    def to_dict(self) -> dict[str, Any]:
        """Give all numbers, ready for JSON."""
        rules = {"resample": self.resample, "rounding": self.rounding}
        return {"resize": self.resize, "crop": self.crop, **rules, **self.standardize.to_dict()}

    def describe(self) -> str:
        """Give one line for a person."""
        resized = f"shorter side {self.resize} ({self.resample}), centre {self.crop}"
        return f"{resized}, mean {self.standardize.mean}, std {self.standardize.std}"

    def to_hf(self) -> dict[str, Any]:
        """Give the preprocessor_config.json that transformers reads."""
        return {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.resize},
            "resample": FILTERS.index(self.resample),
            "do_center_crop": True,
            "crop_size": {"height": self.crop, "width": self.crop},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.standardize.to_dict()["mean"],
            "image_std": self.standardize.to_dict()["std"],
            "do_convert_rgb": len(self.standardize.mean) == 3,
        }

    def read(self, path: Path | str, dtype: Any, invert: bool = False) -> np.ndarray:
        """Read an image file as a batch of one, (1, channels, crop, crop).

        Args:
            path: a file that Pillow reads.
            dtype: of the result.
            invert: take the negative first: dark ink on light paper for a network that saw light on dark.
        Raises:
            InputError: as `read_image`.
        """
        pixels = self.read_pixels(path)[None]
        return self.standardize(255 - pixels if invert else pixels, 255.0, dtype)

    def read_pixels(self, path: Path | str) -> np.ndarray:
        """Read an image file, resized and cut out but not yet standardised: (channels, crop, crop) uint8."""
        channels = len(self.standardize.mean)
        return read_image(path, self.crop, channels, self.resize, self.resample, self.rounding)


def _side(size: Any, source: str) -> int:
    """Read a size that is a number, the shorter edge, or a square's height and width."""
    if isinstance(size, dict):
        sides = [size[name] for name in ("shortest_edge", "height", "width") if size.get(name) is not None]
        size = sides[0] if sides and all(side == sides[0] for side in sides) else size
    if not is_integer(size) or size < 1:
        raise InputError(f"{source}: a size must be a number of pixels, or a square, got {shown(size)}")
    return int(size)


def _scaled(values: Any, scale: float) -> list[float]:
    if not isinstance(values, list | tuple) or not all(map(is_real, values)):
        raise InputError(f"mean and deviation must be lists of numbers, got {shown(values)}")
    return [value / scale for value in values]
