"""The reference implementations' own numbers in `fixtures/`, and networks of ours with their weights."""

import json
from pathlib import Path

import numpy as np

from minifocal import FocalNet, FocalNetConfig, interop

FIXTURES = Path(__file__).parent / "fixtures"
CKPT = FIXTURES / "ckpt"
CKPT_FILES = {
    "official": CKPT / "official.pth",
    "hf": CKPT / "hf",
    "timm": CKPT / "timm.safetensors",
}
HIDDEN = {"use_postln": False, "normalize_modulator": False}  # what neither names nor shapes of those files show

EDIFICE = ["focalnet_a", "focalnet_c"]
TIMM_HEAD = "timm_mlp_head"  # the one with a part that FocalNet has not
FOCAL = sorted(path.stem for path in FIXTURES.glob("*.npz") if path.stem not in (*EDIFICE, TIMM_HEAD))
LAYOUTS = {"microsoft": "official", "hf": "hf", "timm": "timm"}

# The references differ among themselves by 5e-14; the tolerances leave room for another order of sums.
VALUE = {"rtol": 0, "atol": 1e-11}
GRADIENT = {"rtol": 1e-9, "atol": 1e-10}
# float32 against float64, relative to the largest element: some ten layers round on the way to an output. On the way
# back every LayerNorm also multiplies what was rounded by 1 / sigma, which is large where channels are nearly equal.
EPS = float(np.finfo(np.float32).eps)
VALUE32, GRADIENT32 = 32 * EPS, 512 * EPS


def load(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def tensors(fixture, kind):
    """The tensors of one kind, "param", "grad" or "axon_init", under the names and in the shapes of their own code."""
    return {key.removeprefix(f"{kind}/"): value for key, value in fixture.items() if key.startswith(f"{kind}/")}


def meta_of(fixture):
    return json.loads(str(fixture["config"]))


def layout_of(fixture):
    return LAYOUTS[meta_of(fixture)["impl"]] if "config" in fixture else "edifice"


def config_of(fixture):
    return FocalNetConfig.from_dict(meta_of(fixture)["canonical"])


def make_model(fixture, dtype="float64", ops="reference", kind="param"):
    """A network of ours with the weights of a fixture."""
    layout = layout_of(fixture)
    if layout == "edifice":
        names = ["image_size", "patch_size", "in_channels", "hidden_size", "num_layers", "focal_levels"]
        options = {name: int(fixture[f"config/{name}"]) for name in [*names, "focal_kernel", "num_classes"]}
        model = FocalNet.build(modulation="box_mean", init="zeros", dtype=dtype, ops=ops, **options)
    else:
        model = FocalNet(config_of(fixture), init="zeros", dtype=dtype, ops=ops)
    state = {name: value.astype(dtype) for name, value in tensors(fixture, kind).items()}
    interop.load_state_dict(model, state, layout=layout)
    return model


class Replay:
    """A generator that brings back recorded decisions of drop path, branch by branch, where the rate is not 0."""

    def __init__(self, fixture):
        pairs = zip(fixture["droppath_rates"], fixture["droppath_scale"], strict=True)
        self.draws = [np.where(scale > 0, 0.0, 1 - 1e-9) for rate, pair in pairs if rate > 0 for scale in pair]

    def random(self, size=None):
        draws = self.draws.pop(0)
        assert draws.shape == np.empty(size).shape
        return draws


def generator_of(fixture):
    """What `forward` takes for randomness: None but for the fixture of a training step."""
    return Replay(fixture) if "droppath_scale" in fixture else None


def relative_to_largest(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()
