"""Corners of the layers that their table does not reach, each found by a mistake there that no test noticed."""

import numpy as np
import pytest
from strict_array import StrictLibrary

from minifocal.arrays import random_generator
from minifocal.errors import InputError
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.layers.base import Layer, Parameter
from minifocal.layers.focal_context import FocalContext, FocalContextCache, RecomputedContextCache
from minifocal.layers.initializers import INITIALIZERS, LeCun
from minifocal.layers.layer_norm import LayerNorm
from minifocal.layers.linear import Linear
from minifocal.layers.mlp import MLP
from minifocal.layers.patch_embed import PatchEmbed

B, H, W, C = 2, 5, 4, 3
MAP = (B, H, W, C)
HIDDEN = 8


def recipe():
    return LeCun(3, "float64")


def draw(shape, seed=4):
    return np.random.default_rng(seed).standard_normal(shape)


# Parameters and what holds them


def test_a_parameter_takes_the_gradient_that_it_is_given():
    data, grad = np.ones((2, 3)), np.zeros((2, 3))
    assert Parameter(data, grad).grad is grad
    assert Parameter(data).grad is not data


class Tied(Layer):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Linear(C, C, init=recipe()), Linear(C, C, init=recipe())
        self.second.weight = self.first.weight


def test_what_two_layers_share_their_replicas_share():
    twin = Tied().replica()
    assert twin.first.weight is twin.second.weight
    assert twin.first.bias is not twin.second.bias


def test_a_replica_counts_and_loads_before_it_has_gradients():
    layer = MLP(C, HIDDEN, init=recipe())
    twin = layer.replica()
    assert twin.count_parameters() == layer.count_parameters() == 2 * C * HIDDEN + HIDDEN + C
    state = {name: array + 1.0 for name, array in layer.state_dict().items()}
    twin.load_state_dict(state)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_a_gradient_moves_with_its_parameter():
    layer, library = Linear(C, 2, init=recipe()), StrictLibrary()
    for parameter in layer.parameters():
        parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    layer.to_device("cpu")
    assert {type(array) for p in layer.parameters() for array in (p.data, p.grad)} == {np.ndarray}


def test_six_misfits_are_told_and_the_others_counted():
    layer = Layer()
    layer.parts = [Parameter(np.zeros(1)) for _ in range(9)]
    state = layer.state_dict()
    for count, more in ((5, ""), (6, ""), (7, "; and 1 more"), (9, "; and 3 more")):
        kept = dict(list(state.items())[count:])
        missing = "; ".join(f"missing parts.{index}" for index in range(min(count, 6)))
        with pytest.raises(InputError) as failure:
            layer.check_state_dict(kept)
        assert str(failure.value) == f"these weights are of another network: {missing}{more}"


# Defaults


@pytest.mark.parametrize("kind", INITIALIZERS.values())
def test_a_recipe_has_seed_0_unless_told_otherwise(kind):
    drawn, expected = (init.weight("linear", (C, 7), C, 7).data for init in (kind(), kind(0)))
    np.testing.assert_array_equal(drawn, expected)


def test_a_norm_passes_its_eps_on_which_is_1e_5_unless_told_otherwise():
    x = 1e-2 * draw(MAP)
    for options, eps in (({}, 1e-5), ({"eps": 0.1}, 0.1)):
        layer = LayerNorm(C, init=recipe(), **options)
        expected, _ = layer_norm_forward(x, layer.weight.data, layer.bias.data, eps)
        np.testing.assert_array_equal(layer(x), expected)


def test_patches_are_not_padded_and_normalised_by_1e_5_unless_told_otherwise():
    x = 1e-2 * draw((B, 7, 5, C))
    options = {"size": 2, "stride": 2}
    plain = PatchEmbed(C, 6, init=recipe(), **options)
    told = PatchEmbed(C, 6, init=recipe(), padding=0, pad_to=1, norm=True, eps=1e-5, **options)
    assert plain(x).shape == (B, 3, 2, 6)
    np.testing.assert_array_equal(plain(x), told(x))


def test_patches_without_a_norm_are_their_projection():
    layer = PatchEmbed(C, 6, size=2, stride=2, init=recipe(), norm=False)
    assert [name for name, _ in layer.named_parameters()] == ["proj.weight", "proj.bias"]
    x = draw(MAP)
    y, cache = layer.forward(x)
    assert cache.norm is None
    corner = x[:, :2, :2].transpose(0, 3, 1, 2).reshape(B, -1)
    np.testing.assert_allclose(y[:, 0, 0], layer.proj(corner), rtol=0, atol=1e-13)


# MLP


def test_an_mlp_drops_after_the_gelu_and_after_the_second_map():
    layer, x = MLP(C, HIDDEN, init=recipe(), drop_rate=0.4), draw(MAP)
    y, _ = layer.forward(x, random_generator(5))
    same = random_generator(5)
    hidden_factor, factor = (np.where(same.random((B, H, W, n)) < 0.6, 1 / 0.6, 0.0) for n in (HIDDEN, C))
    hidden, _ = layer.activation.forward(layer.fc1(x))
    expected = factor * layer.fc2(hidden_factor * hidden)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14 * np.abs(expected).max())


def test_another_name_of_an_activation_is_refused():
    with pytest.raises(InputError, match=r"^act must be one of gelu, gelu_pytorch_tanh, got 'relu'$"):
        MLP(C, HIDDEN, init=recipe(), act="relu")


# Levels that are computed again


@pytest.mark.parametrize("gated", [True, False])
def test_levels_are_kept_unless_told_and_computed_again_to_the_same_bits(gated):
    context = FocalContext(C, (3, 5), init=recipe())
    assert context.recompute is False
    ctx, gates = draw(MAP), draw((B, H, W, 3), 5) if gated else None
    dy = draw(MAP, 6)
    results = []
    for again, kind in ((False, FocalContextCache), (True, RecomputedContextCache)):
        context.recompute = again
        context.zero_grad()
        y, cache = context.forward(ctx, gates)
        assert type(cache) is kind
        assert type(context.full_cache(cache)) is FocalContextCache
        dx = context.backward(dy, cache)
        kernels = [parameter.grad.copy() for parameter in context.parameters()]
        results.append([y, *(array for array in dx if array is not None), *kernels])
    assert cache.ctx is ctx
    assert cache.gates is gates
    for kept, computed in zip(*results, strict=True):
        np.testing.assert_array_equal(kept, computed)


def test_a_parameter_is_shown_by_its_shape_and_dtype():
    assert repr(Parameter(np.zeros((3, 2), "float32"))) == "Parameter(shape=(3, 2), dtype=float32)"
