"""The published FocalNets by name, with the flags of their official configuration files."""

import fnmatch
from typing import Any

from minifocal.errors import InputError
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet


def _pyramid(depth: int, dim: int, levels: int, window: int, drop_path: float, **flags: Any) -> dict[str, Any]:
    """Four stages, the third one the deep one."""
    shape = {"depths": (2, 2, depth, 2), "focal_levels": (levels,) * 4, "focal_windows": (window,) * 4}
    return {"embed_dim": dim, "drop_path_rate": drop_path, **shape, **flags}


def _isotropic(dim: int, **flags: Any) -> dict[str, Any]:
    """One stage of twelve blocks on patches of 16 pixels."""
    shape = {"patch_size": 16, "depths": (12,), "focal_levels": (3,), "focal_windows": (3,)}
    return {"embed_dim": dim, "drop_path_rate": 0.2, **shape, **flags}


_LARGE = {"use_conv_embed": True, "use_layerscale": True, "use_postln": True}

# base_iso follows the constructor of the official code (layer scale and post-LN); its YAML lacks both. Its released
# weights are older than today's meaning of use_postln: they want use_postln_in_modulation=True, use_postln=False.
VARIANTS: dict[str, dict[str, Any]] = {
    "focalnet_tiny_srf": _pyramid(6, 96, 2, 3, 0.2),
    "focalnet_tiny_lrf": _pyramid(6, 96, 3, 3, 0.2),
    "focalnet_small_srf": _pyramid(18, 96, 2, 3, 0.3),
    "focalnet_small_lrf": _pyramid(18, 96, 3, 3, 0.3),
    "focalnet_base_srf": _pyramid(18, 128, 2, 3, 0.5),
    "focalnet_base_lrf": _pyramid(18, 128, 3, 3, 0.5),
    "focalnet_tiny_iso": _isotropic(192),
    "focalnet_small_iso": _isotropic(384),
    "focalnet_base_iso": _isotropic(768, use_layerscale=True, use_postln=True),
    "focalnet_large_fl3": _pyramid(18, 192, 3, 5, 0.5, **_LARGE),
    "focalnet_large_fl4": _pyramid(18, 192, 4, 3, 0.5, **_LARGE, normalize_modulator=True),
    "focalnet_xlarge_fl3": _pyramid(18, 256, 3, 5, 0.5, **_LARGE),
    "focalnet_xlarge_fl4": _pyramid(18, 256, 4, 3, 0.5, **_LARGE),
    "focalnet_huge_fl3": _pyramid(18, 352, 3, 3, 0.5, **_LARGE, use_postln_in_modulation=True),
    "focalnet_huge_fl4": _pyramid(18, 352, 4, 3, 0.5, **_LARGE, use_postln_in_modulation=True),
}


def list_models(pattern: str = "*") -> list[str]:
    """Name the variants that match a shell pattern, such as "*srf*"."""
    return fnmatch.filter(VARIANTS, pattern)


def model_config(name: str, **overrides: Any) -> FocalNetConfig:
    """Give the configuration of a variant, with some fields replaced.

    Raises:
        InputError: no variant of that name, an unknown field, or a value that makes no network.
    """
    if name not in VARIANTS:
        raise InputError(f"there is no model {name!r}; the models are {', '.join(VARIANTS)}")
    return FocalNetConfig.from_dict({**VARIANTS[name], **overrides})


def create_model(
    name: str,
    *,
    seed: int = 0,
    init: str = "official",
    dtype: str = "float32",
    device: str = "cpu",
    ops: str = "auto",
    recompute_levels: bool = False,
    precision: str = "float32",
    **overrides: Any,
) -> FocalNet:
    """Build a published variant.

    Args:
        name: of list_models().
        seed, init, dtype, device, ops, recompute_levels, precision: as in FocalNet.
        overrides: fields of FocalNetConfig to replace, such as num_classes=10.
    Raises:
        InputError: as model_config and FocalNet.
    """
    config = model_config(name, **overrides)
    return FocalNet(
        config,
        seed=seed,
        init=init,
        dtype=dtype,
        device=device,
        ops=ops,
        recompute_levels=recompute_levels,
        precision=precision,
    )
