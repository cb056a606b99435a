"""Side by side with the real libraries: transformers and timm on PyTorch, run here on fresh random networks.

    pip install -e ".[test,peers]" && pytest -m peers

Logits, loss and every gradient, in float64; weights there and back through each library's own way of saving and
loading; and two published networks at their full size, in float32.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifocal import FocalNet, FocalNetConfig, create_model, cross_entropy_backward, cross_entropy_forward, interop
from minifocal.interop.descriptions import HF_FIELDS
from minifocal.models.zoo import model_config

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("default"),  # of the other libraries,
    pytest.mark.filterwarnings("error::UserWarning:test_peers"),  # but not of ours
]

# Both compute in float64; what differs is the order of sums.
VALUE, GRADIENT = 1e-11, 1e-10
EXAMPLES = 30  # of each library

# Networks at their full size in float32, relative to the largest element.
FULL_SIZE = 1e-4


class Peers:
    """The libraries, imported when the first test needs them."""

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.torch = pytest.importorskip("torch")
            self.transformers = pytest.importorskip("transformers")
            self.timm = pytest.importorskip("timm.models.focalnet")
        self.torch.set_num_threads(1)
        self.transformers.logging.set_verbosity_error()
        self.transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def peers():
    return Peers()


@st.composite
def hf_configs(draw):
    """All flags mixed, odd and square sizes, every number of levels: what Hugging Face can be."""
    stages = draw(st.integers(1, 3))
    flag = st.booleans()
    side = st.integers(4 * 2 ** (stages - 1), 45)
    return FocalNetConfig(
        image_size=(draw(side), draw(side)),
        patch_size=draw(st.sampled_from([2, 3, 4, 5])),
        in_chans=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(1, 6)),
        embed_dim=draw(st.integers(5, 9)),
        depths=tuple(draw(st.integers(1, 2)) for _ in range(stages)),
        mlp_ratio=draw(st.sampled_from([1.5, 2.0, 4.0])),
        mlp_act=draw(st.sampled_from(["gelu", "gelu_pytorch_tanh"])),
        focal_levels=tuple(draw(st.integers(0, 3)) for _ in range(stages)),
        focal_windows=tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(stages)),
        use_conv_embed=draw(flag),
        use_layerscale=draw(flag),
        use_postln=draw(flag),
        use_postln_in_modulation=draw(flag),
        normalize_modulator=draw(flag),
        ln_eps=draw(st.sampled_from([1e-5, 1e-3])),
        drop_path_rate=0.0,
        pad_mode="pad",
    )


@st.composite
def timm_configs(draw):
    """What timm can be: patches of 4, its own epsilon and activation, no padding."""
    values = draw(hf_configs()).to_dict()
    stages = len(values["depths"])
    sides = [max(side, 4 * 2 ** (stages - 1)) for side in values["image_size"]]
    fixed = {"patch_size": 4, "mlp_act": "gelu", "ln_eps": 1e-5, "pad_mode": "floor", "image_size": sides}
    return FocalNetConfig.from_dict({**values, **fixed})


def hf_model(peers, config):
    values = {theirs: getattr(config, ours) for theirs, ours in HF_FIELDS.items()}
    values |= {"num_labels": config.num_classes, "depths": list(config.depths), "image_size": list(config.image_hw)}
    values |= {name: list(values[name]) for name in ("focal_levels", "focal_windows")}
    model = peers.transformers.FocalNetForImageClassification(peers.transformers.FocalNetConfig(**values))
    return model.double().eval()


def timm_model(peers, config):
    model = peers.timm.FocalNet(
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depths=config.depths,
        mlp_ratio=config.mlp_ratio,
        focal_levels=config.focal_levels,
        focal_windows=config.focal_windows,
        use_overlap_down=config.use_conv_embed,
        use_post_norm=config.use_postln,
        use_post_norm_in_modulation=config.use_postln_in_modulation,
        normalize_modulator=config.normalize_modulator,
        layerscale_value=config.layerscale_value if config.use_layerscale else None,
        drop_path_rate=0.0,
    )
    return model.double().eval()


def randomize(peers, model, seed):
    """Draw every parameter wide, norms and layer scales included, so that no one and no zero hides a mistake."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        fan_in = max(1, int(np.prod(parameter.shape[1:])))
        deviation = 1.2 / np.sqrt(fan_in) if parameter.ndim > 1 else 0.4
        mean = float(parameter.ndim == 1 and rng.random() < 0.5)
        values = mean + deviation * rng.standard_normal(tuple(parameter.shape))
        parameter.data = peers.torch.from_numpy(values).to(parameter.dtype)


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


def close(actual, expected, tolerance, name):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=tolerance * max(1, np.abs(expected).max()), err_msg=name
    )


def compare(peers, theirs, logits_of, config, layout, seed):
    """Logits, loss and all gradients of one random network and batch, theirs against ours."""
    randomize(peers, theirs, seed)
    rng = np.random.default_rng(seed + 1)
    images = rng.standard_normal((2, config.in_chans, *config.image_hw))
    labels = rng.integers(0, config.num_classes, 2)

    batch = peers.torch.from_numpy(images).requires_grad_()
    their_logits = logits_of(theirs(batch))
    their_loss = peers.torch.nn.functional.cross_entropy(their_logits, peers.torch.from_numpy(labels))
    their_loss.backward()

    ours = FocalNet(config, init="zeros", dtype="float64", ops="reference")
    interop.load_state_dict(ours, arrays(theirs.state_dict()), layout=layout)
    logits, cache = ours.forward(images)
    loss, loss_cache = cross_entropy_forward(logits, labels)
    dimages = ours.backward(cross_entropy_backward(loss_cache), cache)

    close(logits, their_logits, VALUE, "logits")
    close(loss, their_loss, VALUE, "loss")
    close(dimages, batch.grad, GRADIENT, "images")
    gradients = interop.state_dict(ours, layout=layout, grads=True)
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        if their_gradients[name] is None:  # of the levels that a stage without levels has not
            assert not gradient.any(), name
        else:
            close(gradient, their_gradients[name], GRADIENT, name)
    return ours


def same_weights(one, two):
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, array in one.state_dict().items():
        np.testing.assert_array_equal(two.state_dict()[name], array, err_msg=name)


MANY = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@MANY
@given(config=hf_configs(), seed=st.integers(0, 2**16))
def test_hugging_face(peers, tmp_path_factory, config, seed):
    theirs = hf_model(peers, config)
    ours = compare(peers, theirs, lambda output: output.logits, config, "hf", seed)
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder / "theirs")
    loaded = interop.load_pretrained(folder / "theirs")
    assert loaded.config == ours.config
    same_weights(ours, loaded)
    interop.save_pretrained(loaded, folder / "ours")
    back = peers.transformers.FocalNetForImageClassification.from_pretrained(folder / "ours", dtype="float64").eval()
    assert all(peers.torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in back.state_dict().items())
    images = peers.torch.from_numpy(np.random.default_rng(seed).standard_normal((1, config.in_chans, *config.image_hw)))
    with peers.torch.no_grad():
        close(back(images).logits.numpy(), theirs(images).logits, VALUE, "logits after a round trip")


@MANY
@given(config=timm_configs(), seed=st.integers(0, 2**16))
def test_timm(peers, tmp_path_factory, config, seed):
    from safetensors.torch import load_file, save_file

    theirs = timm_model(peers, config)
    ours = compare(peers, theirs, lambda output: output, config, "timm", seed)
    folder = tmp_path_factory.mktemp("timm")
    save_file(theirs.state_dict(), folder / "theirs.safetensors")
    peers.torch.save({"state_dict": theirs.state_dict()}, folder / "theirs.pth")
    given = {"normalize_modulator": config.normalize_modulator, "image_size": config.image_hw}
    for name in ("theirs.safetensors", "theirs.pth"):
        loaded = interop.load_pretrained(folder / name, **given)
        same_weights(ours, loaded)
    interop.save_pretrained(ours, folder / "ours.safetensors", layout="timm")
    interop.save_pretrained(ours, folder / "ours.pth", layout="timm")
    for state in (
        load_file(folder / "ours.safetensors"),
        peers.torch.load(folder / "ours.pth", weights_only=True)["model"],
    ):
        assert state.keys() == theirs.state_dict().keys()
        theirs.load_state_dict(state)
        assert all(peers.torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in state.items())


@MANY
@given(config=timm_configs(), seed=st.integers(0, 2**16))
def test_the_official_layout_by_torch_save_and_torch_load(peers, tmp_path_factory, config, seed):
    """timm reads the official names itself, by a filter of its own: through it, it has to become the same network."""
    theirs = timm_model(peers, config)
    randomize(peers, theirs, seed)
    ours = FocalNet(config, init="zeros", dtype="float64")
    interop.load_state_dict(ours, arrays(theirs.state_dict()), layout="timm")
    folder = tmp_path_factory.mktemp("official")
    interop.save_pretrained(ours, folder / "ours.pth", layout="official")
    official = peers.torch.load(folder / "ours.pth", weights_only=True)
    filtered = peers.timm.checkpoint_filter_fn(official, theirs)
    assert filtered.keys() == theirs.state_dict().keys()
    assert all(peers.torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in filtered.items())
    state = {name: tensor.half() for name, tensor in official["model"].items()}
    peers.torch.save({"model": state, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}}, folder / "half.pth")
    given = {"normalize_modulator": config.normalize_modulator, "use_postln": config.use_postln}
    given |= {"image_size": config.image_hw, "use_conv_embed": config.use_conv_embed}
    halved = interop.load_pretrained(folder / "half.pth", **given)
    assert halved.dtype == "float32"
    for name, array in interop.state_dict(halved, layout="official").items():
        np.testing.assert_array_equal(array, state[name].float().numpy())


def test_bfloat16_by_torch_save(peers, tmp_path):
    config = model_config("focalnet_tiny_srf", embed_dim=6, depths=(1, 1, 1, 1), num_classes=3)
    ours = FocalNet(config, seed=3)
    state = {
        n: peers.torch.from_numpy(np.ascontiguousarray(a))
        for n, a in interop.state_dict(ours, layout="official").items()
    }
    halves = {name: tensor.bfloat16() for name, tensor in state.items()}
    peers.torch.save(halves, tmp_path / "a.pth")
    loaded = interop.load_pretrained(tmp_path / "a.pth", use_postln=False, normalize_modulator=False)
    for name, array in interop.state_dict(loaded, layout="official").items():
        np.testing.assert_array_equal(array, halves[name].float().numpy())


def test_parts_of_a_larger_storage_by_torch_save(peers, tmp_path):
    """Views keep their storage in PyTorch's files: offsets and strides have to be followed."""
    config = FocalNetConfig(
        image_size=32, embed_dim=4, depths=(1,), num_classes=3, focal_levels=(1,), focal_windows=(3,)
    )
    state = interop.state_dict(FocalNet(config, seed=3), layout="official")
    views = {}
    for name, array in state.items():
        if array.ndim == 2:  # the transpose of a part of something larger
            larger = peers.torch.zeros(array.shape[1] + 2, array.shape[0] + 3)
            larger[1:-1, 2:-1] = peers.torch.from_numpy(np.ascontiguousarray(array.T))
            views[name] = larger[1:-1, 2:-1].T
        else:
            views[name] = peers.torch.from_numpy(np.ascontiguousarray(array))
    peers.torch.save({"model": views}, tmp_path / "a.pth")
    loaded = interop.load_pretrained(tmp_path / "a.pth", use_postln=False, normalize_modulator=False)
    for name, array in interop.state_dict(loaded, layout="official").items():
        np.testing.assert_array_equal(array, state[name])


def test_weights_of_pytorch_are_taken_without_a_file(peers):
    config = model_config("focalnet_tiny_srf", embed_dim=6, depths=(1, 1, 1, 1), num_classes=3, pad_mode="pad")
    theirs = hf_model(peers, config).float()
    ours = FocalNet(config, init="zeros")
    interop.load_state_dict(ours, theirs.state_dict(), layout="hf")
    np.testing.assert_array_equal(ours.head.bias.data, theirs.classifier.bias.detach().numpy())


@pytest.mark.parametrize("name", ["focalnet_tiny_srf", "focalnet_base_lrf"])
def test_a_published_network_at_its_full_size_in_float32(peers, name):
    config = model_config(name, pad_mode="pad", drop_path_rate=0.0)
    theirs = hf_model(peers, config).float()
    ours = create_model(name, seed=1, pad_mode="pad", drop_path_rate=0.0)
    state = interop.state_dict(ours, layout="hf")
    theirs.load_state_dict({n: peers.torch.from_numpy(np.ascontiguousarray(array)) for n, array in state.items()})
    images = np.random.default_rng(2).standard_normal((1, 3, 224, 224), dtype=np.float32)
    labels = np.array([7])
    batch = peers.torch.from_numpy(images).requires_grad_()
    their_logits = theirs(batch).logits
    peers.torch.nn.functional.cross_entropy(their_logits, peers.torch.from_numpy(labels)).backward()
    logits, cache = ours.forward(images)
    dimages = ours.backward(cross_entropy_backward(cross_entropy_forward(logits, labels)[1]), cache)

    def relative(actual, expected):
        expected = expected.detach().numpy()
        return np.abs(actual - expected).max() / np.abs(expected).max()

    assert relative(logits, their_logits) < FULL_SIZE
    assert relative(dimages, batch.grad) < FULL_SIZE
    gradients = interop.state_dict(ours, layout="hf", grads=True)
    for parameter_name, parameter in theirs.named_parameters():
        assert relative(gradients[parameter_name], parameter.grad) < FULL_SIZE, parameter_name


@pytest.mark.parametrize("scale", [29, 31], ids=["odd margin", "even margin"])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_images_are_prepared_as_by_the_image_processor_of_transformers(peers, tmp_path, resample, scale):
    from PIL import Image

    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (6, 9, 3)), np.ones((30, scale, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    prepared = replace(interop.Preprocess.usual("hf", 128, 3), resample=resample)
    interop.save_pretrained(
        FocalNet(model_config("focalnet_tiny_srf", embed_dim=4, depths=(1, 1, 1, 1)), init="zeros"),
        tmp_path / "model",
        preprocess=prepared,
    )
    processor = peers.transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    with Image.open(tmp_path / "photo.png") as image:
        expected = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(prepared.read(tmp_path / "photo.png", "float32"), expected, rtol=0, atol=1e-5)
