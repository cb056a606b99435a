"""The published variants at their corners: what a model is built with, said and unsaid."""

import pytest

from minifocal import FocalNetConfig, InputError
from minifocal.models import zoo
from minifocal.models.zoo import VARIANTS, create_model, model_config

# depths, embed_dim, focal_levels, focal_windows, drop_path_rate, and the flags that are set
PLAIN, LARGE = set(), {"use_conv_embed", "use_layerscale", "use_postln"}
PUBLISHED = {
    "tiny_srf": ((2, 2, 6, 2), 96, 2, 3, 0.2, PLAIN),
    "tiny_lrf": ((2, 2, 6, 2), 96, 3, 3, 0.2, PLAIN),
    "small_srf": ((2, 2, 18, 2), 96, 2, 3, 0.3, PLAIN),
    "small_lrf": ((2, 2, 18, 2), 96, 3, 3, 0.3, PLAIN),
    "base_srf": ((2, 2, 18, 2), 128, 2, 3, 0.5, PLAIN),
    "base_lrf": ((2, 2, 18, 2), 128, 3, 3, 0.5, PLAIN),
    "tiny_iso": ((12,), 192, 3, 3, 0.2, PLAIN),
    "small_iso": ((12,), 384, 3, 3, 0.2, PLAIN),
    "base_iso": ((12,), 768, 3, 3, 0.2, {"use_layerscale", "use_postln"}),
    "large_fl3": ((2, 2, 18, 2), 192, 3, 5, 0.5, LARGE),
    "large_fl4": ((2, 2, 18, 2), 192, 4, 3, 0.5, LARGE | {"normalize_modulator"}),
    "xlarge_fl3": ((2, 2, 18, 2), 256, 3, 5, 0.5, LARGE),
    "xlarge_fl4": ((2, 2, 18, 2), 256, 4, 3, 0.5, LARGE),
    "huge_fl3": ((2, 2, 18, 2), 352, 3, 3, 0.5, LARGE | {"use_postln_in_modulation"}),
    "huge_fl4": ((2, 2, 18, 2), 352, 4, 3, 0.5, LARGE | {"use_postln_in_modulation"}),
}


def test_the_variants_are_these():
    """Whatever is not in the table is as FocalNetConfig has it, but for the isotropic ones' patches of 16 pixels."""
    expected = {}
    for name, (depths, dim, levels, window, drop_path, flags) in PUBLISHED.items():
        stages = len(depths)
        expected[f"focalnet_{name}"] = FocalNetConfig(
            depths=depths, embed_dim=dim, focal_levels=(levels,) * stages, focal_windows=(window,) * stages,
            drop_path_rate=drop_path, patch_size=16 if stages == 1 else 4, **dict.fromkeys(flags, True),
        )  # fmt: skip
    assert {name: model_config(name) for name in VARIANTS} == expected


def test_everything_that_is_said_reaches_the_network_and_the_rest_has_its_default(monkeypatch):
    monkeypatch.setattr(zoo, "FocalNet", lambda config, **options: (config, options))
    said = {
        "seed": 3, "init": "lecun", "dtype": "float64", "device": "cuda:1", "ops": "numpy", "recompute_levels": True,
        "precision": "float16",
    }  # fmt: skip
    unsaid = {
        "seed": 0, "init": "official", "dtype": "float32", "device": "cpu", "ops": "auto", "recompute_levels": False,
        "precision": "float32",
    }  # fmt: skip
    config = model_config("focalnet_tiny_lrf", num_classes=7)
    assert create_model("focalnet_tiny_lrf", num_classes=7, **said) == (config, said)
    assert create_model("focalnet_tiny_lrf", num_classes=7) == (config, unsaid)


def test_a_name_that_is_no_variant_or_no_field_is_refused():
    with pytest.raises(InputError, match="there is no model 'tiny_lrf'; the models are focalnet_tiny_srf, "):
        model_config("tiny_lrf")
    with pytest.raises(InputError, match="unknown option seed; the options are image_size, "):
        model_config("focalnet_tiny_lrf", seed=3)
