"""The engine runs wholly on the arrays it is given: here on a stand-in that refuses NumPy as CuPy does."""

import numpy as np
import pytest
from strict_array import FUNCTIONS, StrictArray, StrictLibrary

from minifocal import interop
from minifocal.arrays import as_numpy, check_images, device_of, get_array_module, like, random_generator
from minifocal.functional.activations import gelu_backward, gelu_forward
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.functional.depthwise_conv import depthwise_conv_forward
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.functional.precision import PRECISIONS
from minifocal.gradcheck import check_gradients
from minifocal.interop.export import write_pretrained
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet

B = 4
NETWORKS = {
    "focal": {},
    "focal with every option": {
        "use_layerscale": True, "use_postln": True, "use_postln_in_modulation": True, "normalize_modulator": True,
        "use_conv_embed": True, "mlp_act": "gelu_pytorch_tanh", "pad_mode": "pad",
    },
    "sigmoid_gate": {"modulation": "sigmoid_gate"},
    "box_mean": {"modulation": "box_mean"},
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name, library=None, precision="float32"):
    """A network of two stages and three blocks; on the library's device where one is given."""
    config = FocalNetConfig(
        image_size=16, patch_size=2, in_chans=2, num_classes=5, embed_dim=4, depths=(2, 1), mlp_ratio=2.0,
        focal_levels=(2, 1), focal_windows=(3, 3), drop_path_rate=0.6, **NETWORKS[name],
    )  # fmt: skip
    model = FocalNet(config, seed=1, init="lecun", dtype="float32", ops="reference", precision=precision)
    rng = np.random.default_rng(2)
    for parameter in model.parameters():
        parameter.data += rng.uniform(-0.3, 0.3, parameter.data.shape).astype("float32")
        if library is not None:
            parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    images = rng.standard_normal((B, 2, 16, 12)).astype("float32")
    return model, images, np.array([0, 4, 2, 4])


def training_pass(model, images, labels):
    logits, cache = model.forward(images, random_generator(3))
    loss, loss_cache = cross_entropy_forward(logits, labels, 0.1)
    dimages = model.backward(cross_entropy_backward(loss_cache), cache)
    return {"logits": logits, "loss": loss, "dimages": dimages, **{k: p.grad for k, p in model.named_parameters()}}


# The network


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in NETWORKS), *(("focal", name) for name in PRECISIONS[1:])]
)
def test_a_training_pass_gives_numpys_bits_without_leaving_the_device(name, precision):
    library = StrictLibrary()
    model, images, labels = build(name, library, precision)
    images, labels = library.asarray(images), library.asarray(labels)
    model.zero_grad()
    library.to_device.clear()
    results = training_pass(model, images, labels)
    assert library.to_host == []
    # Rates are 0, 0.3 and 0.6: two blocks draw for two branches each, on the host.
    assert library.to_device == [(B,)] * 4
    want = training_pass(*build(name, precision=precision))
    for key, array in results.items():
        assert isinstance(array, StrictArray), key
        np.testing.assert_array_equal(array.get(), want[key], err_msg=key)
        assert array.dtype == np.float32, key


@pytest.mark.parametrize("layout", ["official", "hf", "timm"])
def test_weights_reach_a_device_and_leave_it_one_by_one(layout, tmp_path):
    """Each parameter crosses once; the layouts only look at it from another side."""
    library = StrictLibrary()
    model, _, _ = build("focal with every option", library)
    host, _, _ = build("focal with every option")
    count = len(model.state_dict())
    library.to_device.clear()
    state = interop.state_dict(model, layout=layout)
    assert all(isinstance(array, StrictArray) for array in state.values())
    assert library.to_device == library.to_host == []
    for parameter in model.parameters():
        parameter.data[...] = library.zeros(parameter.data.shape, dtype="float32")
    interop.load_state_dict(model, interop.state_dict(host, layout=layout), layout=layout)
    assert (len(library.to_device), library.to_host) == (count, [])
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array.get(), host.state_dict()[name])
    library.to_host.clear()
    write_pretrained(model, tmp_path / "a.safetensors", "minifocal", None, None)
    assert len(library.to_host) == count


@every_network
def test_inference_moves_nothing(name):
    library = StrictLibrary()
    model, images, _ = build(name, library)
    images = library.asarray(images)
    library.to_device.clear()
    logits = model(images)
    assert library.to_host == library.to_device == []
    plain, images, _ = build(name)
    np.testing.assert_array_equal(logits.get(), plain(images))
    assert model.device == "strict:0"


def test_dropout_draws_on_the_host_and_moves_its_draws():
    library = StrictLibrary()
    model, images, _ = build("focal", library)
    images = library.asarray(images)
    model.dropout.rate = 0.5
    library.to_device.clear()
    model.forward(images, random_generator(3))
    assert library.to_device == [(B, 8, 6, 4)] + [(B,)] * 4


def test_weights_are_loaded_and_given_out_across_homes():
    library = StrictLibrary()
    model, images, _ = build("focal", library)
    state = {name: np.zeros(array.shape, dtype="float32") for name, array in model.state_dict().items()}
    library.to_device.clear()
    model.load_state_dict(state)
    assert sorted(library.to_device) == sorted(array.shape for array in state.values())
    assert not model(library.asarray(images)).get().any()
    model.to_device("cpu")
    assert device_of(model.head.weight.data) == "cpu"


def test_gradients_are_checked_on_the_device():
    library = StrictLibrary()
    x = library.asarray(np.random.default_rng(4).standard_normal((2, 5)))
    for elementwise in (False, True):
        report = check_gradients(gelu_forward, gelu_backward, {"x": x}, elementwise=elementwise)
        assert report.passed, str(report)


# Mixing homes


def refuses_naming_both():
    return pytest.raises(
        TypeError, match=r"two homes: (numpy array .* on cpu and strict|strict array .* and numpy array)"
    )


def test_an_operation_refuses_arrays_of_two_homes_and_names_both():
    library = StrictLibrary()
    x, weight = np.ones((2, 5, 4, 3)), np.ones((3, 3, 3))
    with refuses_naming_both():
        depthwise_conv_forward(x, library.asarray(weight))
    with refuses_naming_both():
        depthwise_conv_forward(library.asarray(x), weight)
    with refuses_naming_both():
        layer_norm_forward(x, library.asarray(np.ones(3)), library.asarray(np.ones(3)))
    with refuses_naming_both():
        cross_entropy_forward(library.asarray(np.ones((2, 5))), np.array([0, 1]))


def test_a_network_refuses_images_of_another_home_and_names_both():
    library = StrictLibrary()
    model, images, _ = build("focal", library)
    with refuses_naming_both():
        model(images)
    model, images, _ = build("focal")
    with refuses_naming_both():
        model(library.asarray(images))


def test_two_devices_are_two_homes():
    one, other = StrictLibrary("one"), StrictLibrary("other")
    with pytest.raises(
        TypeError, match=r"one array of shape \(2,\) on one:0 and other array of shape \(3,\) on other:0"
    ):
        get_array_module(one.zeros(2), other.zeros(3))
    with pytest.raises(TypeError, match="another library than one"):
        one.zeros(2) + other.zeros(2)


def test_what_is_no_array_has_no_home():
    for thing in (1.0, [1.0], "array", None):
        with pytest.raises(TypeError, match=f"expected a NumPy or CuPy array, got {type(thing).__name__}"):
            get_array_module(thing)


def test_helpers_keep_an_array_at_home():
    library = StrictLibrary()
    array = library.asarray(np.ones((2, 2, 3, 3), dtype="float32"))
    moved = like(np.array([1.0, 2.0]), array)
    assert isinstance(moved, StrictArray)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(as_numpy(moved), [1.0, 2.0])
    library.to_host.clear()
    check_images(array, 2, beside=array)
    assert library.to_host == []


# The stand-in itself: it must be as strict as CuPy, or the tests above prove nothing


def test_the_stand_in_never_becomes_a_numpy_array_by_itself():
    array = StrictLibrary().ones((2, 3))
    for convert in (np.asarray, np.array, np.exp, float, int, bool):
        with pytest.raises(TypeError):
            convert(array)
    assert not hasattr(array, "__array_interface__")
    assert not hasattr(array, "__array_struct__")
    assert not isinstance(array, np.ndarray)


def test_the_stand_in_refuses_to_meet_a_numpy_array():
    library = StrictLibrary()
    array, plain = library.ones((2, 3)), np.ones((2, 3))

    def assign():
        array[...] = plain

    def assign_into_numpy():
        plain[...] = array

    def pick():
        return array[np.array([0, 1])]

    def add_in_place():
        nonlocal array
        array += plain

    for mix in (
        lambda: array + plain,
        lambda: plain + array,
        lambda: plain @ array,
        lambda: array * np.float64(2.0),
        lambda: array == plain,
        lambda: library.concatenate([array, plain]),
        lambda: library.pad(plain, 1),
        lambda: np.concatenate([array, plain]),
        assign,
        assign_into_numpy,
        add_in_place,
        pick,
    ):
        with pytest.raises(TypeError):
            mix()
    assert library.to_host == library.to_device == []


def test_the_stand_in_computes_as_numpy_does_and_writes_in_place():
    library = StrictLibrary()
    values = np.random.default_rng(5).standard_normal((2, 3))
    array = library.asarray(values)
    same = array
    array += 1.0
    array[:, 1] *= 2.0
    assert array is same
    values = values + 1.0
    values[:, 1] *= 2.0
    np.testing.assert_array_equal(array.get(), values)
    np.testing.assert_array_equal((2.0 - array.T).get(), 2.0 - values.T)
    assert library.to_device == [(2, 3)]
    assert library.to_host == [(2, 3), (3, 2)]


def test_the_stand_in_knows_no_function_that_cupy_lacks():
    library = StrictLibrary()
    for name in ("errstate", "block", "ndindex", "testing", "matrix", "frompyfunc"):
        assert not hasattr(library, name)
    cupy = pytest.importorskip("cupy", reason="the list can be compared where CuPy is installed")
    assert all(hasattr(cupy, name) for name in (*FUNCTIONS, "asarray", "unravel_index"))
