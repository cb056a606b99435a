"""The fifteen published variants: their sizes and costs to the last digit, and how they are found by name.

`fixtures/param_counts.json` holds what the official classes, timm and Hugging Face count themselves.
"""

import json
from pathlib import Path

import pytest

from minifocal import FocalNet, InputError, create_model, list_models
from minifocal.models.complexity import multiply_adds
from minifocal.models.zoo import VARIANTS, model_config

PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "param_counts.json").read_text())
NAMES = list(PUBLISHED)
IMAGENET_22K = [name for name in NAMES if "official_21842" in PUBLISHED[name]]


def count(name, **overrides):
    return create_model(f"focalnet_{name}", init="zeros", **overrides).count_parameters()


def parameters_by_formula(config):
    """SPEC section 9: every term a tensor or a pair of them."""
    C, P = config.embed_dim, config.patch_size
    stem = 7 if config.use_conv_embed else P
    down = 3 if config.use_conv_embed else 2
    total = C * config.in_chans * stem**2 + 3 * C
    for stage, depth in enumerate(config.depths):
        if stage:
            total += 2 * C * C * down**2 + 3 * 2 * C
            C *= 2
        L, w, hidden = config.focal_levels[stage], config.focal_windows[stage], int(C * config.mlp_ratio)
        block = (2 * C + L + 1) * (C + 1) + 2 * (C * C + C) + C * sum((w + 2 * level) ** 2 for level in range(L))
        block += 4 * C + 2 * C * hidden + hidden + C
        block += 2 * C * config.use_layerscale + 2 * C * config.use_postln_in_modulation
        total += depth * block
    return total + 2 * C + C * config.num_classes + config.num_classes


def multiply_adds_by_formula(config, image_size):
    """SPEC section 9, as the official `flops()` counts, odd corners included."""
    C, P, S = config.embed_dim, config.patch_size, len(config.depths)
    side = image_size // P
    N = N_0 = side * side
    total = N * C * config.in_chans * P**2 + N * C
    for stage, depth in enumerate(config.depths):
        if stage:
            side //= 2
            N = side * side
            total += N * 2 * C * C * 2**2 + N * 2 * C
            C *= 2
        L, w, r = config.focal_levels[stage], config.focal_windows[stage], config.mlp_ratio
        levels = sum(N * ((w + 2 * level) ** 2 + 1) * C for level in range(L))
        block = 2 * N * C + N * C * (2 * C + L + 1) + levels + N * C + N * C * (C + 1) + N * C**2 + 2 * N * C**2 * r
        total += depth * block
    return total + C * N_0 // 2**S + C * config.num_classes


def test_every_published_variant_is_there_and_no_other():
    assert [f"focalnet_{name}" for name in NAMES] == list_models()


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name):
    assert count(name) == PUBLISHED[name]["official_1000"]
    assert count(name) == PUBLISHED[name]["hf_1000"]
    assert count(name) == PUBLISHED[name].get("timm_1000", PUBLISHED[name]["hf_1000"])


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_follows_the_formula(name):
    assert count(name) == parameters_by_formula(model_config(f"focalnet_{name}"))


@pytest.mark.parametrize("name", IMAGENET_22K)
def test_parameter_count_with_the_head_of_imagenet_22k(name):
    assert count(name, num_classes=21842) == PUBLISHED[name]["official_21842"]


def test_base_iso_by_its_yaml_and_as_released():
    """Its three published forms differ: the code's constructor, the YAML file, and the weights on the server."""
    published = PUBLISHED["base_iso"]
    assert count("base_iso", use_layerscale=False, use_postln=False) == published["yaml_flags_only_1000"]
    released = {"use_postln": False, "use_postln_in_modulation": True}
    assert count("base_iso", **released) == published["checkpoint_era_ln_in_mod_1000"]


@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_are_the_published_ones(name):
    config = model_config(f"focalnet_{name}")
    assert sum(multiply_adds(config).values()) == PUBLISHED[name]["flops224_1000"]


@pytest.mark.parametrize("name", IMAGENET_22K)
def test_multiply_adds_at_384_pixels_with_the_head_of_imagenet_22k(name):
    config = model_config(f"focalnet_{name}", num_classes=21842, image_size=384)
    assert sum(multiply_adds(config).values()) == PUBLISHED[name]["flops384_21842"]


@pytest.mark.parametrize("image_size", [224, 200, 97])
@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_follow_the_formula(name, image_size):
    config = model_config(f"focalnet_{name}")
    by_part = multiply_adds(config, (image_size, image_size))
    assert sum(by_part.values()) == multiply_adds_by_formula(config, image_size)
    assert all(isinstance(number, int) and number > 0 for number in by_part.values())


@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_the_one_of_the_official_files(name):
    config, published = model_config(f"focalnet_{name}"), PUBLISHED[name]
    assert list(config.depths) == published["depths"]
    assert config.embed_dim == published["embed_dim"]
    assert config.patch_size == published["patch"]
    kernels = [list(config.kernel_sizes(stage)) for stage in range(len(config.depths))]
    assert kernels == published["kernels_per_stage"]
    flags = dict(published["yaml"])
    del flags["num_classes"]
    flags["drop_path_rate"] = flags.pop("drop_path")
    if name == "base_iso":  # its YAML lacks both, its constructor has them
        flags.update(use_layerscale=True, use_postln=True)
    ours = config.to_dict()
    assert {flag: ours[flag] for flag in flags} == flags


def test_list_models_takes_a_pattern():
    assert list_models("*srf*") == ["focalnet_tiny_srf", "focalnet_small_srf", "focalnet_base_srf"]
    assert list_models("*_iso") == ["focalnet_tiny_iso", "focalnet_small_iso", "focalnet_base_iso"]
    assert list_models("focalnet_huge_fl4") == ["focalnet_huge_fl4"]
    assert list_models("huge") == []


def test_create_model_takes_fields_of_the_configuration():
    model = create_model("focalnet_tiny_srf", init="zeros", num_classes=7, embed_dim=24, depths=[1, 1, 2, 1])
    assert model.config.num_classes == 7
    assert model.config.dims == (24, 48, 96, 192)
    assert model.config.depths == (1, 1, 2, 1)
    assert model.config.drop_path_rate == 0.2
    assert model.head.weight.data.shape == (192, 7)


def test_create_model_leaves_the_variant_as_it_was():
    before = {name: dict(fields) for name, fields in VARIANTS.items()}
    create_model("focalnet_tiny_iso", init="zeros", num_classes=3, drop_path_rate=0.0)
    assert before == VARIANTS


def test_create_model_passes_on_seed_init_and_dtype():
    options = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_classes": 5}
    ours = create_model("focalnet_tiny_srf", seed=3, init="lecun", dtype="float64", **options).state_dict()
    same = FocalNet(model_config("focalnet_tiny_srf", **options), seed=3, init="lecun", dtype="float64").state_dict()
    assert ours.keys() == same.keys()
    assert all(ours[key].dtype == "float64" and (ours[key] == same[key]).all() for key in ours)


def test_unknown_model_lists_the_models():
    with pytest.raises(InputError) as error:
        create_model("focalnet_medium")
    assert "focalnet_medium" in str(error.value)
    assert all(name in str(error.value) for name in list_models())
    assert "\n" not in str(error.value)


def test_unknown_override_lists_the_fields():
    with pytest.raises(InputError, match=r"unknown option classes; .*num_classes") as error:
        create_model("focalnet_tiny_srf", classes=10)
    assert "\n" not in str(error.value)
