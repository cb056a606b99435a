"""The table of names and shapes, read both ways, and weights that do not fit."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifocal import FocalNet, FocalNetConfig, InputError, interop
from minifocal.interop.layouts import LAYOUTS, TABLE, find_place

TORCH_LAYOUTS = ("official", "hf", "timm")


@st.composite
def configs(draw):
    """Networks of every shape; all of the focal modulation, which has a name in every layout of PyTorch."""
    stages = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(0, 3)] * stages)
    flag = st.booleans()
    return FocalNetConfig(
        image_size=(draw(st.integers(24, 40)), draw(st.integers(24, 40))),
        patch_size=draw(st.integers(2, 4)),
        in_chans=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(0, 5)),
        embed_dim=draw(st.integers(3, 6)),
        depths=tuple(draw(st.integers(1, 2)) for _ in range(stages)),
        mlp_ratio=draw(st.sampled_from([1.0, 2.5, 4.0])),
        focal_levels=draw(each),
        focal_windows=tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(stages)),
        use_conv_embed=draw(flag),
        use_layerscale=draw(flag),
        use_postln=draw(flag),
        use_postln_in_modulation=draw(flag),
        normalize_modulator=draw(flag),
    )


def drawn(config, seed=1):
    """A network whose every parameter and gradient is random."""
    model, rng = FocalNet(config, init="zeros", dtype="float64"), np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.data.shape)
        parameter.grad[...] = rng.standard_normal(parameter.data.shape)
    return model


@given(config=configs(), layout=st.sampled_from(TORCH_LAYOUTS))
def test_weights_go_out_and_come_back_bit_by_bit(config, layout):
    model, other = drawn(config), FocalNet(config, init="zeros", dtype="float64")
    state = interop.state_dict(model, layout=layout)
    interop.load_state_dict(other, state, layout=layout)
    assert len(state) == len(model.state_dict())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)


@given(config=configs(), layout=st.sampled_from(TORCH_LAYOUTS))
def test_names_are_read_back_as_the_ones_they_came_from(config, layout):
    model = FocalNet(config, init="zeros")
    stored = list(interop.state_dict(model, layout=layout))
    own = [find_place(name, layout).own_name for name in stored]
    assert own == [name for name, _ in model.named_parameters()]


@given(config=configs(), layout=st.sampled_from(TORCH_LAYOUTS))
def test_gradients_have_the_names_and_shapes_of_the_values(config, layout):
    model = drawn(config)
    values, grads = (interop.state_dict(model, layout=layout, grads=grads) for grads in (False, True))
    assert {name: array.shape for name, array in values.items()} == {name: g.shape for name, g in grads.items()}
    swapped = FocalNet(config, init="zeros", dtype="float64")
    interop.load_state_dict(swapped, grads, layout=layout)
    for (name, parameter), other in zip(model.named_parameters(), swapped.parameters(), strict=True):
        np.testing.assert_array_equal(other.data, parameter.grad, err_msg=name)


def shapes(model, layout):
    return {name: array.shape for name, array in interop.state_dict(model, layout=layout).items()}


ALL_ON = FocalNetConfig(
    image_size=32,
    in_chans=2,
    num_classes=7,
    embed_dim=4,
    depths=(1, 2),
    mlp_ratio=3.0,
    focal_levels=(2, 1),
    focal_windows=(3, 5),
    use_layerscale=True,
    use_postln=True,
    use_postln_in_modulation=True,
)


def test_official_names_and_shapes():
    found = shapes(FocalNet(ALL_ON, init="zeros"), "official")
    block = "layers.0.blocks.0."
    assert found["patch_embed.proj.weight"] == (4, 2, 4, 4)
    assert found[f"{block}modulation.f.weight"] == (11, 4)
    assert found[f"{block}modulation.focal_layers.1.0.weight"] == (4, 1, 5, 5)
    assert found[f"{block}modulation.h.weight"] == (4, 4, 1, 1)
    assert found[f"{block}modulation.ln.weight"] == found[f"{block}gamma_1"] == (4,)
    assert found[f"{block}mlp.fc1.weight"] == (12, 4)
    assert found["layers.0.downsample.proj.weight"] == (8, 4, 2, 2)
    assert found["head.weight"] == (7, 8)


def test_hugging_face_names():
    found = shapes(FocalNet(ALL_ON, init="zeros"), "hf")
    block = "focalnet.encoder.stages.0.layers.0."
    assert found["focalnet.embeddings.patch_embeddings.projection.weight"] == (4, 2, 4, 4)
    assert found[f"{block}modulation.projection_in.weight"] == (11, 4)
    assert found[f"{block}modulation.projection_context.weight"] == (4, 4, 1, 1)
    assert found[f"{block}modulation.layernorm.bias"] == found[f"{block}gamma_2"] == (4,)
    assert found["focalnet.encoder.stages.0.downsample.projection.weight"] == (8, 4, 2, 2)
    assert found["focalnet.layernorm.weight"] == (8,)
    assert found["classifier.weight"] == (7, 8)


def test_timm_names_have_the_downsampling_with_the_next_stage_and_norms_after_their_place():
    found = shapes(FocalNet(ALL_ON, init="zeros"), "timm")
    block = "layers.0.blocks.0."
    assert found["stem.proj.weight"] == (4, 2, 4, 4)
    assert found[f"{block}modulation.f.weight"] == (11, 4, 1, 1)
    assert found[f"{block}modulation.norm.weight"] == found[f"{block}ls1.gamma"] == (4,)
    assert found[f"{block}norm1_post.weight"] == found[f"{block}norm2_post.bias"] == (4,)
    assert found[f"{block}mlp.fc2.weight"] == (4, 12, 1, 1)
    assert found["layers.1.downsample.proj.weight"] == (8, 4, 2, 2)
    assert "layers.0.downsample.proj.weight" not in found
    assert found["head.fc.weight"] == (7, 8)
    pre = FocalNet(FocalNetConfig.from_dict({**ALL_ON.to_dict(), "use_postln": False}), init="zeros")
    assert f"{block}norm1.weight" in shapes(pre, "timm")


def test_a_pre_ln_network_does_not_take_the_weights_of_a_post_ln_one():
    """In timm's layout: the names of the norms differ. In the others they do not, and the configuration has to say."""
    pre = FocalNetConfig.from_dict({**ALL_ON.to_dict(), "use_postln": False})
    state = interop.state_dict(drawn(ALL_ON), layout="timm")
    with pytest.raises(InputError, match="give use_postln= as the weights have it"):
        interop.load_state_dict(FocalNet(pre, dtype="float64"), state, layout="timm")
    state = interop.state_dict(drawn(ALL_ON), layout="hf")
    interop.load_state_dict(FocalNet(pre, dtype="float64"), state, layout="hf")


def test_edifice_names_a_single_stage_of_box_means():
    model = FocalNet.build(
        image_size=8, patch_size=4, hidden_size=6, num_classes=3, num_layers=2, modulation="box_mean"
    )
    found = shapes(model, "edifice")
    assert found["patch_embed_proj/kernel"] == (48, 6)
    assert found["focal_1_focal_level_2/bias"] == found["focal_0_mod_norm/gamma"] == found["final_norm/beta"] == (6,)
    assert found["focal_1_ffn_up/kernel"] == (6, 24)
    assert found["classifier/kernel"] == (6, 3)


def test_every_modulation_has_official_names_and_its_own():
    for modulation in ("focal", "sigmoid_gate", "box_mean"):
        model = FocalNet.build(image_size=8, patch_size=4, hidden_size=6, num_layers=2, modulation=modulation)
        assert list(interop.state_dict(model, layout="official")) == list(model.state_dict())
        own = interop.state_dict(model, layout="minifocal")
        assert {name: array.shape for name, array in own.items()} == {n: a.shape for n, a in model.state_dict().items()}


@pytest.mark.parametrize(
    ("layout", "options", "name"),
    [
        ("hf", {"modulation": "sigmoid_gate"}, "modulation.query.weight"),
        ("timm", {"modulation": "box_mean"}, "modulation.query.weight"),
        ("edifice", {"modulation": "sigmoid_gate"}, "modulation.context.weight"),
        ("edifice", {"modulation": "focal"}, "modulation.f.weight"),
    ],
)
def test_a_part_without_a_name_is_refused(layout, options, name):
    model = FocalNet.build(image_size=8, patch_size=4, hidden_size=6, num_layers=1, **options)
    with pytest.raises(InputError, match=rf"layout '{layout}' has no name for layers\.0\.blocks\.0\.{name} of a '"):
        interop.state_dict(model, layout=layout)


def test_edifice_has_no_second_stage():
    config = FocalNetConfig(
        image_size=8,
        patch_size=2,
        embed_dim=4,
        depths=(1, 1),
        focal_levels=(1, 1),
        focal_windows=(3, 3),
        modulation="box_mean",
        patch_norm=False,
    )
    with pytest.raises(InputError, match=r"has no name for layers\.0\.downsample"):
        interop.state_dict(FocalNet(config), layout="edifice")


def test_an_unknown_layout_lists_those_there_are():
    with pytest.raises(InputError, match=f"layout must be one of {', '.join(LAYOUTS)}, got 'keras'"):
        interop.state_dict(FocalNet(ALL_ON), layout="keras")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "head.weight.weight",
        "layers.00.blocks.0.norm1.weight",
        "layers.0.blocks.0.norm1.scale",
        "layers.0.blocks.0.norm3.weight",
        "layers.12345.blocks.0.norm1.weight",
        "layers." + "1" * 5000 + ".blocks.0.norm1.weight",
    ],
)
def test_names_that_are_none_are_not_found(name, layout):
    assert find_place(name, layout) is None


def test_no_two_lines_of_the_table_share_a_name():
    for layout in LAYOUTS:
        names = [row.name(layout) for row in TABLE if row.name(layout) is not None]
        assert len(names) == len(set(names))


# Weights that do not fit


def refused(state, config=ALL_ON, layout="official"):
    """The message with which a state is refused; the network keeps its weights."""
    model = drawn(config, seed=2)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        interop.load_state_dict(model, state, layout=layout)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert "\n" not in str(error.value)
    return str(error.value)


def official_state(**changes):
    config = FocalNetConfig.from_dict({**ALL_ON.to_dict(), **changes})
    return dict(interop.state_dict(drawn(config), layout="official"))


def test_missing_unexpected_and_misshapen_weights_are_listed():
    state = official_state()
    state["extra.weight"] = state.pop("norm.bias")
    state["norm.weight"] = state["norm.weight"][:-1]
    message = refused(state)
    assert "missing norm.bias" in message
    assert "unexpected extra.weight" in message
    assert "norm.weight is (7,) in the weights and (8,) in the network" in message


def test_the_transpose_of_a_square_matrix_cannot_be_told_but_that_of_another_is_refused():
    state = official_state()
    name = "layers.0.blocks.0.mlp.fc1.weight"
    assert f"{name} is (4, 12)" in refused({**state, name: state[name].T})


def test_another_dtype_is_refused():
    state = {name: array.astype("float32") for name, array in official_state().items()}
    message = refused(state)
    assert "is float32 in the weights and float64 in the network; build the network with that dtype" in message
    assert "another network" not in message


def test_many_problems_are_counted():
    assert re.search(r"; and \d+ more", refused({}))


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"focal_levels": (3, 1)}, "give focal_levels= and focal_windows= as the weights have them"),
        ({"focal_windows": (5, 5)}, "the official functions build two levels and windows of 3"),
        ({"use_layerscale": False}, "give use_layerscale="),
        ({"use_postln_in_modulation": False}, "give use_postln_in_modulation="),
        ({"num_classes": 5}, "give num_classes="),
    ],
)
def test_the_message_says_what_would_fit(changes, hint):
    assert hint in refused(official_state(**changes))


def test_what_looks_like_a_tensor_of_pytorch_is_taken():
    class Tensor:
        """Knows its shape, names its type as PyTorch does, and becomes an array when NumPy asks."""

        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, f"torch.{array.dtype}"

        def __array__(self, dtype=None, copy=None):
            return self.array

    model, other = drawn(ALL_ON), FocalNet(ALL_ON, init="zeros", dtype="float64")
    state = {name: Tensor(array) for name, array in interop.state_dict(model, layout="hf").items()}
    interop.load_state_dict(other, state, layout="hf")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)


def test_lists_are_taken_too_and_what_numpy_cannot_read_is_named():
    model, other = drawn(ALL_ON), FocalNet(ALL_ON, init="zeros", dtype="float64")
    state = interop.state_dict(model, layout="official")
    interop.load_state_dict(other, {name: array.tolist() for name, array in state.items()}, layout="official")
    np.testing.assert_array_equal(other.head.weight.data, model.head.weight.data)

    class Elsewhere:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("on a device\nof its own")

    assert "norm.bias cannot be read: on a device; give what state_dict() gives" in refused(
        {**state, "norm.bias": Elsewhere()}
    )


def test_a_missing_norm_is_not_taken_for_a_layer_scale():
    model = FocalNet.build(image_size=8, patch_size=4, hidden_size=6, num_layers=1, modulation="box_mean")
    state = interop.state_dict(model, layout="edifice")
    del state["final_norm/gamma"]
    with pytest.raises(InputError, match=r"missing final_norm/gamma$"):
        interop.load_state_dict(model, state, layout="edifice")


def test_loading_copies():
    state = official_state()
    model = FocalNet(ALL_ON, init="zeros", dtype="float64")
    interop.load_state_dict(model, state, layout="official")
    state["norm.bias"][...] = 99
    assert not (model.norm.bias.data == 99).any()
