"""Configurations read off weights: every published variant, what cannot be seen, and the traps."""

import pytest
from hypothesis import given
from test_layouts import configs

from minifocal import FocalNet, FocalNetConfig, InputError, create_model, interop, list_models
from minifocal.interop.descriptions import Description
from minifocal.interop.infer import hidden_fields, visible_fields
from minifocal.interop.layouts import find_place
from minifocal.interop.resolve import UnseenFieldsError, matching_variants, resolve

PYRAMIDS = [name for name in list_models() if not name.endswith("iso")]
NOTHING = Description("nothing")
NOT_IN_WEIGHTS = {"image_size", "drop_rate", "drop_path_rate", "layerscale_value", "pad_mode"}


def shapes_of(model, layout="official"):
    """Shapes as a layout stores them, by our names."""
    return {
        find_place(name, layout).own_name: array.shape
        for name, array in interop.state_dict(model, layout=layout).items()
    }


def differences(one, two):
    one, two = one.to_dict(), two.to_dict()
    return {name for name in one if one[name] != two[name]}


@pytest.mark.parametrize("layout", ["official", "hf", "timm"])
@pytest.mark.parametrize("name", list_models())
def test_every_variant_is_recognised_by_its_shapes(name, layout):
    model = create_model(name, init="zeros", num_classes=5)
    use_postln = model.config.use_postln if layout == "timm" else None
    given = {"normalize_modulator": True} if layout == "timm" and name == "focalnet_large_fl4" else {}
    found = resolve(layout, shapes_of(model, layout), NOTHING, given, use_postln)
    assert differences(found.config, model.config) <= {"pad_mode"}
    assert found.config.drop_path_rate == model.config.drop_path_rate
    assert found.warnings == ()


@given(config=configs())
def test_all_but_what_is_hidden_is_seen(config):
    visible = visible_fields(shapes_of(FocalNet(config, init="zeros")), "official")
    hidden = {name: getattr(config, name) for name in hidden_fields(visible)}
    found = resolve("official", shapes_of(FocalNet(config, init="zeros")), NOTHING, hidden).config
    allowed = {"patch_size"} if config.use_conv_embed else set()
    allowed |= {"mlp_ratio"}  # many ratios give the same widths
    assert [int(dim * found.mlp_ratio) for dim in config.dims] == [int(dim * config.mlp_ratio) for dim in config.dims]
    if max(config.focal_levels) == 0 or 0 in config.focal_levels:
        allowed |= {"focal_windows"}  # of a stage without levels there is no window to see
    assert differences(found, config) - NOT_IN_WEIGHTS <= allowed
    assert hidden.keys() >= {"use_postln", "normalize_modulator"}


@pytest.mark.parametrize("mlp_ratio", [0.4, 1.1, 2.3, 3.7, 4.0, 8 / 3])
@pytest.mark.parametrize("embed_dim", [5, 7, 24, 96])
def test_a_ratio_of_the_mlp_is_found_that_gives_the_same_widths(embed_dim, mlp_ratio):
    config = FocalNetConfig(
        embed_dim=embed_dim, depths=(1, 1), mlp_ratio=mlp_ratio, focal_levels=(1, 1), focal_windows=(3, 3)
    )
    widths = [int(dim * mlp_ratio) for dim in config.dims]
    found = visible_fields(shapes_of(FocalNet(config, init="zeros")), "official")["mlp_ratio"]
    assert [int(dim * found) for dim in config.dims] == widths


def small(**changes):
    options = {"image_size": 32, "embed_dim": 4, "depths": (1, 1), "focal_levels": (2, 2), "focal_windows": (3, 3)}
    return FocalNet(FocalNetConfig(**{**options, **changes}), init="zeros")


def test_what_cannot_be_seen_is_asked_for_by_name():
    with pytest.raises(
        InputError, match=r"do not show use_postln and normalize_modulator.*give use_postln=False \("
    ) as e:
        resolve("official", shapes_of(small()), NOTHING, {})
    assert "normalize_modulator=False" in str(e.value)
    with pytest.raises(InputError, match=r"do not show normalize_modulator, and"):
        resolve("timm", shapes_of(small(), "timm"), NOTHING, {}, use_postln=True)
    with pytest.raises(InputError, match=r"do not show use_postln, and"):
        resolve("official", shapes_of(small()), NOTHING, {"normalize_modulator": True})


def test_a_stem_of_seven_pixels_is_asked_about_only_where_nothing_else_tells():
    one_stage = {"depths": (1,), "focal_levels": (2,), "focal_windows": (3,), "patch_size": 7}
    given = {"use_postln": False, "normalize_modulator": False}
    with pytest.raises(InputError, match=r"do not show use_conv_embed, and .*patches of 7 x 7 side by side"):
        resolve("official", shapes_of(small(**one_stage)), NOTHING, given)
    timm = resolve("timm", shapes_of(small(**one_stage), "timm"), NOTHING, given, use_postln=False).config
    assert timm.use_conv_embed is True  # its patches are of 4 pixels otherwise
    two_stages = resolve("official", shapes_of(small(patch_size=7)), NOTHING, given).config
    assert (two_stages.use_conv_embed, two_stages.patch_size) == (False, 7)
    overlapping = resolve("official", shapes_of(small(use_conv_embed=True)), NOTHING, given).config
    assert (overlapping.use_conv_embed, overlapping.patch_size) == (True, 4)


@pytest.mark.parametrize("modulation", ["sigmoid_gate", "box_mean"])
def test_the_other_modulations_are_seen_too(modulation):
    model = FocalNet.build(
        image_size=16, patch_size=4, hidden_size=6, num_layers=2, num_classes=3, modulation=modulation
    )
    given = {"use_postln": False, **({"focal_windows": (3,)} if modulation == "box_mean" else {}), "image_size": 16}
    assert differences(resolve("official", shapes_of(model), NOTHING, given).config, model.config) <= {"drop_path_rate"}
    with pytest.raises(InputError, match="use_postln"):
        resolve("official", shapes_of(model), NOTHING, {"image_size": 16})


def test_with_one_level_edifice_has_no_window_to_ask_for():
    model = FocalNet.build(
        image_size=16, patch_size=4, hidden_size=6, num_layers=1, modulation="box_mean", focal_levels=1
    )
    assert resolve("edifice", shapes_of(model, "edifice"), NOTHING, {"image_size": 16}).config.focal_levels == (1,)


def test_edifice_weights_do_not_show_the_window():
    model = FocalNet.build(
        image_size=16, patch_size=4, hidden_size=6, num_layers=2, modulation="box_mean", focal_kernel=5
    )
    shapes = shapes_of(model, "edifice")
    with pytest.raises(InputError, match=r"do not show focal_windows, and .*Edifice's default of focal_kernel"):
        resolve("edifice", shapes, NOTHING, {"image_size": 16})
    found = resolve("edifice", shapes, NOTHING, {"image_size": 16, "focal_windows": (5,)}).config
    assert differences(found, model.config) <= {"drop_path_rate"}
    with pytest.raises(InputError, match=r"48 numbers are no square patch of 5 channels; give in_chans="):
        resolve("edifice", shapes, NOTHING, {"in_chans": 5})
    for odd in (0, -1, 2.5, "x"):
        with pytest.raises(InputError, match="in_chans must be an integer of at least 1"):
            resolve("edifice", shapes, NOTHING, {"in_chans": odd})


# The traps


def test_base_iso_as_released_has_the_old_meaning_of_post_ln():
    old = {"use_postln": False, "use_postln_in_modulation": True}
    model = create_model("focalnet_base_iso", init="zeros", **old)
    found = resolve("official", shapes_of(model), NOTHING, {})
    assert differences(found.config, model.config) == set()
    (warning,) = found.warnings
    assert "released weights of focalnet_base_iso, older than November 2022" in warning


def test_timm_large_fl4_has_to_be_asked_which_of_two_functions():
    model = create_model("focalnet_large_fl4", init="zeros")
    shapes = shapes_of(model, "timm")
    with pytest.raises(InputError, match=r"give normalize_modulator=True for the network as it was trained, or False"):
        resolve("timm", shapes, NOTHING, {}, use_postln=True)
    for choice in (True, False):
        found = resolve("timm", shapes, NOTHING, {"normalize_modulator": choice}, use_postln=True)
        assert found.config.normalize_modulator is choice
        assert found.warnings == ()


def test_hugging_face_large_fl4_is_loaded_as_it_says_with_a_warning():
    model = create_model("focalnet_large_fl4", init="zeros")
    said = Description("config.json", {"use_postln": True, "normalize_modulator": False})
    found = resolve("hf", shapes_of(model, "hf"), said, {})
    assert found.config.normalize_modulator is False
    (warning,) = found.warnings
    assert "trained with True" in warning
    assert resolve("hf", shapes_of(model, "hf"), said, {"normalize_modulator": False}).warnings == ()
    assert resolve("hf", shapes_of(model, "hf"), said, {"normalize_modulator": True}).warnings == ()


def test_the_official_large_fl4_is_taken_as_it_was_trained():
    found = resolve("official", shapes_of(create_model("focalnet_large_fl4", init="zeros")), NOTHING, {})
    assert found.config.normalize_modulator is True
    assert found.config.use_postln is True


def test_widths_that_a_configuration_has_wrong_are_those_of_the_weights():
    """Hugging Face's converter takes xlarge for large: its configuration says 192 where the weights have 256."""
    model = create_model("focalnet_xlarge_fl3", init="zeros")
    said = Description("config.json", {"embed_dim": 192, "use_postln": True, "normalize_modulator": False})
    found = resolve("hf", shapes_of(model, "hf"), said, {})
    assert found.config.embed_dim == 256
    assert "from config.json: use_postln True, normalize_modulator False" in found.inferred
    assert found.warnings == ("config.json says embed_dim is 192; the weights have 256, which is used",)


def test_a_bare_variant_function_of_the_official_code_is_seen_to_have_two_levels():
    """focalnet_tiny_lrf() builds two levels, since its three stand in a YAML file only."""
    bare = create_model("focalnet_tiny_lrf", init="zeros", focal_levels=(2, 2, 2, 2))
    found = resolve("official", shapes_of(bare), NOTHING, {})
    assert found.config.focal_levels == (2, 2, 2, 2)
    assert any("assumed, as in the published focalnet_tiny_srf: use_postln False" in line for line in found.inferred)
    with pytest.raises(InputError, match="give focal_levels= and focal_windows= as the weights have them"):
        interop.load_state_dict(
            create_model("focalnet_tiny_lrf", init="zeros"),
            interop.state_dict(bare, layout="official"),
            layout="official",
        )


def test_each_variant_fits_itself_alone():
    for name in list_models():
        visible = visible_fields(shapes_of(create_model(name, init="zeros")), "official")
        assert [variant.name for variant in matching_variants(visible)] == [name]


# Weights that are none of a FocalNet


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        ("patch_embed.proj.bias", "patch_embed.proj.bias is missing"),
        ("patch_embed.proj.weight", "patch_embed.proj.weight is missing"),
        ("layers.0.blocks.0.mlp.fc1.bias", "mlp.fc1.bias is missing"),
        ("layers.0.blocks.0.modulation.f.weight", "its first block has no modulation"),
        ("layers.1.blocks.0.modulation.focal_layers.0.0.weight", "focal_layers.0.0.weight is missing"),
        ("layers.0.downsample.proj.weight", "layers.0.downsample.proj.weight is missing"),
    ],
)
def test_a_missing_weight_is_named(lose, message):
    shapes = shapes_of(small())
    del shapes[lose]
    with pytest.raises(InputError, match=message):
        resolve("official", shapes, NOTHING, {})


def test_a_stem_alone_is_no_network():
    stem = {name: shape for name, shape in shapes_of(small()).items() if name.startswith("patch_embed")}
    with pytest.raises(InputError, match="its stages are not numbered from 0"):
        resolve("official", stem, NOTHING, {})


def test_stages_with_a_gap_are_refused():
    shapes = {name.replace("layers.1", "layers.3"): shape for name, shape in shapes_of(small()).items()}
    with pytest.raises(InputError, match="not numbered from 0 without a gap to at most 19"):
        resolve("official", shapes, NOTHING, {})


def test_mlps_of_no_common_ratio_are_refused():
    shapes = shapes_of(small())
    shapes["layers.1.blocks.0.mlp.fc1.bias"] = (5,)
    with pytest.raises(InputError, match=r"hidden channels \[16, 5\] of the MLPs"):
        resolve("official", shapes, NOTHING, {})


def test_kernels_that_grow_by_different_steps_are_refused():
    shapes = shapes_of(small())
    shapes["layers.1.blocks.0.modulation.focal_layers.1.0.weight"] = (8, 1, 7, 7)
    with pytest.raises(InputError, match=r"the kernels \[\[3, 5\], \[3, 7\]\] .* do not all grow by the same step"):
        resolve("official", shapes, NOTHING, {})


def test_the_fields_that_are_asked_for_come_with_their_usual_values():
    with pytest.raises(UnseenFieldsError) as error:
        resolve("official", shapes_of(small()), NOTHING, {})
    assert error.value.fields == {"use_postln": False, "normalize_modulator": False}


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="unknown option levels"):
        resolve(
            "official", shapes_of(small()), NOTHING, {"use_postln": False, "normalize_modulator": False, "levels": 3}
        )


def test_what_weights_show_in_part_agrees_with_what_is_said_of_the_rest():
    """Of a stage without levels no window is to be seen, and many ratios give the MLPs' widths."""
    model = small(focal_levels=(0, 1), focal_windows=(7, 5), mlp_ratio=1.3)
    assert model.config.dims == (4, 8)
    said = {"focal_windows": [7, 5], "mlp_ratio": 1.3, "use_postln": False, "normalize_modulator": False}
    found = resolve("hf", shapes_of(model, "hf"), Description("config.json", said), {})
    assert (found.config.focal_windows, found.config.mlp_ratio, found.warnings) == ((7, 5), 1.3, ())
    said |= {"focal_windows": [7, 3], "mlp_ratio": 1.6}
    found = resolve("hf", shapes_of(model, "hf"), Description("config.json", said), {})
    assert found.config.focal_windows == (3, 5)
    assert [warning.split()[2] for warning in found.warnings] == ["focal_windows", "mlp_ratio"]
