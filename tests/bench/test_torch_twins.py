"""What PyTorch is measured with computes what ours computes: the same weights give the same logits and gradients."""

from contextlib import nullcontext

import numpy as np
import pytest
from micro import MICRO

from minifocal import interop
from minifocal.bench import gpu_peers
from minifocal.bench.measure import NotMeasuredError
from minifocal.bench.peers import CHANNELS_LAST, EAGER, prepare
from minifocal.bench.workloads import FLAGS, MODES, Workload
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4  # float32, relative to the largest element


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


def sigmoid_gate_workload():
    model = FocalNet.build(
        image_size=16, patch_size=4, hidden_size=12, num_layers=2, focal_levels=3, num_classes=5, init="zeros"
    )
    return Workload("gate", model.config, batch=4, init="glorot")


def their_shape(array, shape):
    """Linear weights are transposed, patches are a convolution's weight, kernels (k, k, C) become (C, 1, k, k)."""
    turned = {1: array, 2: array.T, 3: array.transpose(2, 0, 1) if array.ndim == 3 else None}[array.ndim]
    return np.ascontiguousarray(turned).reshape(shape)


def assert_close(actual, expected, name):
    assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max(), name


def test_the_sigmoid_gate_network_of_torch_is_ours(torch):
    from minifocal.bench.torch_nets import build

    workload = sigmoid_gate_workload()
    ours, theirs = workload.model("reference"), build(workload.config)
    own, twins = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert own.keys() == twins.keys()
    rng = np.random.default_rng(1)
    for name, parameter in own.items():  # off the zeros and ones of the start
        parameter.data += 0.1 * rng.standard_normal(parameter.data.shape).astype(np.float32)
        twins[name].data = torch.from_numpy(their_shape(parameter.data, twins[name].shape))
    images, labels = workload.draw(MODES["train"])
    their_logits = theirs(torch.from_numpy(images))
    torch.nn.functional.cross_entropy(their_logits, torch.from_numpy(labels)).backward()
    logits, cache = ours.forward(images)
    ours.backward(cross_entropy_backward(cross_entropy_forward(logits, labels)[1]), cache)
    assert_close(logits, their_logits.detach().numpy(), "logits")
    for name, parameter in own.items():
        assert_close(their_shape(parameter.grad, twins[name].shape), twins[name].grad.numpy(), name)


@pytest.mark.parametrize("flags", [(), FLAGS], ids=["plain", "all flags"])
def test_the_focal_network_of_transformers_is_ours(torch, flags):
    from minifocal.bench.torch_nets import build

    config = FocalNetConfig.from_dict({**MICRO.config.to_dict(), "image_size": 32, **dict.fromkeys(flags, True)})
    workload = Workload("focal", config, batch=4, init="lecun")
    ours, theirs = workload.model("reference"), build(config)
    for parameter in ours.parameters():
        parameter.data += 0.1 * np.random.default_rng(1).standard_normal(parameter.data.shape).astype(np.float32)
    state = interop.state_dict(ours, layout="hf")
    theirs.model.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in state.items()})
    images, _ = workload.draw(MODES["train"])
    their_logits = theirs(torch.from_numpy(images))
    assert_close(ours(images), their_logits.detach().numpy(), "logits")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("way", [EAGER, CHANNELS_LAST])
@pytest.mark.parametrize("workload", [MICRO, sigmoid_gate_workload()], ids=["focal", "sigmoid gate"])
def test_both_networks_run_in_every_mode(torch, workload, way, mode):
    run = prepare(way, workload, mode)
    run()
    run()


def test_where_torch_cannot_compile_it_is_said_in_one_line(torch, monkeypatch):
    from minifocal.bench.measure import NotMeasuredError
    from minifocal.bench.peers import COMPILED

    def refuse(model, dynamic):
        def call(images):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nand a long story")

        return call

    import torch._dynamo  # as torch.compile itself does

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(NotMeasuredError, match=r"^torch\.compile does not work here: no compiler$"):
        prepare(COMPILED, MICRO, MODES["infer1"])


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_steps_for_a_gpu_are_steps(precision, micro, torch):
    """Here on the CPU: the loss of one batch falls, and inference gives logits."""
    from minifocal.bench.torch_nets import build

    torch.manual_seed(0)
    model = build(micro.config)
    images, labels = (torch.from_numpy(array) for array in micro.draw(MODES["train"]))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = gpu_peers._training(torch, model, model, images, labels, nullcontext, scaler)
    loss = lambda: float(torch.nn.functional.cross_entropy(model(images), labels).detach())  # noqa: E731
    before = loss()
    for _ in range(20):
        step()
    assert loss() < before
    gpu_peers._inference(torch, model, images, nullcontext)()
    if not torch.cuda.is_available():
        with pytest.raises(NotMeasuredError, match="PyTorch sees no GPU"):
            gpu_peers.prepare("torch eager", micro, MODES["train"], precision, 0)
