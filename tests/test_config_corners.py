"""The configuration at its corners: its defaults, the last values that are taken, the first that are not."""

import numpy as np
import pytest

from minifocal import FocalNetConfig, InputError
from minifocal.models.config import BOX_MEAN, FOCAL, SIGMOID_GATE, check_divisible

LARGEST = 2**31
ONE = {"depths": (1,), "focal_levels": (2,), "focal_windows": (3,)}
TWO = {"depths": (1, 2), "focal_levels": (2, 1), "focal_windows": (3, 5)}
GATE = {**ONE, "modulation": "sigmoid_gate"}


def test_the_defaults_are_the_official_constructors():
    assert FocalNetConfig().to_dict() == {
        "image_size": 224, "patch_size": 4, "in_chans": 3, "num_classes": 1000, "embed_dim": 96,
        "depths": [2, 2, 6, 2], "mlp_ratio": 4.0, "mlp_act": "gelu", "drop_rate": 0.0, "drop_path_rate": 0.1,
        "patch_norm": True, "focal_levels": [2, 2, 2, 2], "focal_windows": [3, 3, 3, 3], "focal_factor": 2,
        "use_conv_embed": False, "use_layerscale": False, "layerscale_value": 1e-4, "use_postln": False,
        "use_postln_in_modulation": False, "normalize_modulator": False, "ln_eps": 1e-5, "pad_mode": "floor",
        "modulation": "focal",
    }  # fmt: skip
    assert (FOCAL, SIGMOID_GATE, BOX_MEAN) == ("focal", "sigmoid_gate", "box_mean")


def test_json_is_indented_by_two():
    assert FocalNetConfig().to_json().splitlines()[:3] == ["{", '  "image_size": 224,', '  "patch_size": 4,']


def test_numbers_become_plain_python_ones():
    """In NumPy's they would turn float32 arrays into float64, and JSON could not hold them."""
    config = FocalNetConfig(
        patch_size=np.int64(2), image_size=np.int32(8), mlp_ratio=np.float64(2.5), drop_rate=np.float32(0.25),
        ln_eps=1, depths=[np.int64(2)], focal_levels=(np.int8(1),), focal_windows=(np.uint8(3),),
    )  # fmt: skip
    numbers = (config.patch_size, config.image_size, *config.depths, *config.focal_levels, *config.focal_windows)
    assert numbers == (2, 8, 2, 1, 3)
    assert {type(number) for number in numbers} == {int}
    fractions = (config.mlp_ratio, config.drop_rate, config.ln_eps)
    assert fractions == (2.5, 0.25, 1.0)
    assert {type(number) for number in fractions} == {float}
    assert [type(side) for side in FocalNetConfig(image_size=(np.int64(8), np.int64(9))).image_size] == [int, int]


TAKEN = {
    "everything as small as it may be": {
        "image_size": 1, "patch_size": 1, "in_chans": 1, "num_classes": 0, "embed_dim": 1, "mlp_ratio": 1.0,
        "focal_factor": 0, "depths": (1,), "focal_levels": (0,), "focal_windows": (1,), "drop_rate": 0.0,
        "drop_path_rate": 0.0, "ln_eps": 1e-300,
    },
    "one hidden channel": {"embed_dim": 8, "mlp_ratio": 0.125},
    "nearly the most hidden channels": {**ONE, "embed_dim": 8, "mlp_ratio": 2.0**28 - 1},
    "nearly the most channels": {**TWO, "embed_dim": 2**30 - 1, "mlp_ratio": 1.0},
    "ln_eps of 1": {"ln_eps": 1.0},
    "the largest rate below 1 in float32": {"drop_rate": 1 - 2.0**-24, "drop_path_rate": 1 - 2.0**-24},
    "the largest image": {"image_size": LARGEST},
    "an image that is one patch": {"image_size": 7, "patch_size": 7},
    "a patch that overlapping ones do not use": {"image_size": 3, "patch_size": 4, "use_conv_embed": True},
    "the largest numbers": {
        "patch_size": LARGEST, "pad_mode": "pad", "in_chans": LARGEST, "num_classes": LARGEST, "focal_factor": LARGEST,
    },
    "20 stages": {"embed_dim": 1, "depths": (1,) * 20, "focal_levels": (0,) * 20, "focal_windows": (1,) * 20},
    "10,000 blocks": {**ONE, "depths": (10_000,)},
    "100 levels": {**ONE, "focal_levels": (100,)},
    "the largest window": {**ONE, "modulation": "box_mean", "focal_windows": (LARGEST,)},
    "a gate with one level": {**GATE, "focal_levels": (1,)},
    "a gate with a kernel of 1": {**GATE, "focal_levels": (1,), "focal_windows": (1,)},
}  # fmt: skip


@pytest.mark.parametrize("values", TAKEN.values(), ids=TAKEN)
def test_the_last_value_of_a_range_is_taken(values):
    config = FocalNetConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


STAGES_21 = {"embed_dim": 1, "depths": (1,) * 21, "focal_levels": (0,) * 21, "focal_windows": (1,) * 21}
REFUSED = {
    "patch_size must be an integer of at least 1": {"patch_size": 0},
    "in_chans must be an integer of at least 1": {"in_chans": 0},
    "embed_dim must be an integer of at least 1": {"embed_dim": 0},
    "num_classes must be an integer of at least 0": {"num_classes": -1},
    "focal_factor must be an integer of at least 0": {"focal_factor": -1},
    "patch_size must be at most 2147483648": {"patch_size": LARGEST + 1, "pad_mode": "pad"},
    "num_classes must be at most 2147483648": {"num_classes": LARGEST + 1},
    "use_postln must be True or False": {"use_postln": 0},
    "drop_rate must be a finite number": {"drop_rate": "0"},
    "ln_eps must be above 0 and at most 1": {"ln_eps": 1.0000001},
    "drop_rate must be in [0, 1)": {"drop_rate": 1 - 1e-9},
    "drop_path_rate must be in [0, 1)": {"drop_path_rate": 1 - 2.0**-26},
    "mlp_ratio must be at least 1/embed_dim": {"embed_dim": 8, "mlp_ratio": 0.1249},
    "mlp_ratio must be at least 1/embed_dim, got 268435456.0": {**ONE, "embed_dim": 8, "mlp_ratio": 2.0**28},
    "mlp_act must be one of gelu, gelu_pytorch_tanh": {"mlp_act": ""},
    "pad_mode must be one of floor, pad": {"pad_mode": ""},
    "modulation must be one of focal, sigmoid_gate, box_mean": {"modulation": ""},
    "image_size must be one or two integers of at least 1": {"image_size": LARGEST + 1},
    "image_size must be one or two integers of at least 1, got (32, 0)": {"image_size": (32, 0)},
    "image_size must be one or two integers of at least 1, got (32,)": {"image_size": (32,)},
    "depths must be at least one stage and at most 20": STAGES_21,
    "depths must be at least one block in every stage": {**TWO, "depths": (0, 1)},
    "focal_levels must be one value for each of 2 stages": {**TWO, "focal_levels": (1, 1, 1)},
    "focal_levels must be at least 0 in every stage": {**TWO, "focal_levels": (-1, 1)},
    "focal_windows must be at least 1 in every stage": {**TWO, "focal_windows": (3, 0)},
    "depths must be at most 10000 in every stage": {**TWO, "depths": (1, 10_001)},
    "focal_levels must be at most 100 in every stage": {**TWO, "focal_levels": (101, 1)},
    "focal_windows must be at most 2147483648 in every stage": {**TWO, "focal_windows": (3, LARGEST + 1)},
    "embed_dim must be such that the last stage has less than 2147483648": {
        **TWO, "embed_dim": 2**30, "mlp_ratio": 1.0,
    },
    "focal_windows must be such that all kernels are odd (stage 1 has (4,)": {**TWO, "focal_windows": (3, 4)},
    "focal_windows must be such that all kernels are odd (stage 0 has (3, 4)": {**ONE, "focal_factor": 1},
    "use_postln_in_modulation must be False unless": {**GATE, "use_postln_in_modulation": True},
    "normalize_modulator must be False unless": {**GATE, "normalize_modulator": True},
    "focal_levels must be at least 1 for sigmoid_gate": {**TWO, "modulation": "sigmoid_gate", "focal_levels": (2, 0)},
    "images of 32 x 30 pixels do not divide into patches of 4": {**GATE, "image_size": (32, 30)},
    "images of 30 x 32 pixels do not divide into patches of 4": {**GATE, "image_size": (30, 32)},
    "image_size (2, 8) is smaller than one patch of 4 pixels": {"image_size": (2, 8)},
}  # fmt: skip


@pytest.mark.parametrize(("message", "values"), REFUSED.items())
def test_the_first_value_beyond_a_range_is_refused(message, values):
    with pytest.raises(InputError) as error:
        FocalNetConfig(**values)
    assert str(error.value).startswith(message)


# Each of a group is wrong in the same way; the message names the first of those that are.
IN_ORDER = [
    [("depths", 2), ("focal_levels", 2), ("focal_windows", 2)],
    [("patch_size", 0), ("in_chans", 0), ("embed_dim", 0), ("num_classes", -1), ("focal_factor", -1)],
    [("drop_rate", 1.5), ("drop_path_rate", 1.5)],
    [("mlp_act", ""), ("pad_mode", "")],
    [("focal_levels", (-1,)), ("focal_windows", (-1,))],
    [("depths", (10_001,)), ("focal_levels", (101,)), ("focal_windows", (LARGEST + 1,))],
]


@pytest.mark.parametrize("group", IN_ORDER, ids=lambda group: group[0][0])
def test_the_first_wrong_field_of_a_group_is_named(group):
    for start, (name, _) in enumerate(group):
        with pytest.raises(InputError, match=f"^{name} must be"):
            FocalNetConfig(**{**ONE, **dict(group[start:])})


def test_the_first_wrong_flag_is_named():
    with pytest.raises(InputError, match=r"^use_postln_in_modulation must be"):
        FocalNetConfig(**GATE, use_postln_in_modulation=True, normalize_modulator=True)


@pytest.mark.parametrize("values", [{"use_conv_embed": True}, {"pad_mode": "pad"}], ids=str)
def test_where_patches_overlap_or_are_filled_any_image_divides(values):
    config = FocalNetConfig(**GATE, **values, image_size=(30, 33))
    check_divisible(config, (31, 29))


def test_an_image_that_does_not_divide_is_refused_and_one_that_does_is_not():
    config = FocalNetConfig(**GATE, image_size=(32, 36), patch_size=4)
    check_divisible(config, (4, 8))
    check_divisible(FocalNetConfig(**ONE), (7, 9))  # the published network leaves the rest out
    for image_hw in ((32, 30), (30, 32), (2, 2)):
        with pytest.raises(InputError, match="do not divide into patches of 4; crop or resize them"):
            check_divisible(config, image_hw)
