"""The layer that made infinity or NaN is named: on the way forward and back, in threads too."""

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from strict_array import StrictLibrary
from whole_networks import DROPPING, KINDS, batch, build, gradients

import minifocal as mf
from minifocal import threads
from minifocal.arrays import beside, random_generator
from minifocal.cli import main
from minifocal.data import Dataset, Standardize
from minifocal.errors import InputError
from minifocal.layers.base import Layer, Parameter
from minifocal.layers.focal_context import FocalContext
from minifocal.layers.initializers import LeCun
from minifocal.layers.linear import Linear
from minifocal.models.focalnet import FocalNet
from minifocal.ops import Op, list_ops
from minifocal.training.optim import SGD
from minifocal.training.step import train_step
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer, TrainingError

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # what is looked for here

every_kind = pytest.mark.parametrize("kind", KINDS)
every_table = pytest.mark.parametrize("table", list_ops())


@pytest.fixture
def two_threads(monkeypatch):
    """Let two threads share each batch, whatever the machine has."""
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(threads, "thread_count", lambda: 2)
        monkeypatch.setattr(threads, "_pool", lambda: pool)
        monkeypatch.setattr("minifocal.models.focalnet.thread_count", lambda: 2)
        monkeypatch.setattr("minifocal.training.shards.thread_count", lambda: 2)
        yield


def step(model, rng=None):
    images, labels = batch(model.dtype)
    weight = next(model.parameters()).data
    return train_step(model, SGD(model, 0.05), beside(images, weight), beside(labels, weight), rng)


def fault_of(model):
    """What is said of a step."""
    with pytest.raises(mf.NotFiniteError) as caught, mf.check_finite(model):
        step(model)
    return str(caught.value)


def holders(layer, path=""):
    """Every parameter with the path of the layer that has to be named for it."""
    for name, value in vars(layer).items():
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, item in items:
            where = ".".join(part for part in (path, name, "" if index is None else str(index)) if part)
            if isinstance(item, Parameter):
                yield item, path
            elif isinstance(item, tuple) and isinstance(layer, FocalContext):  # its kernels, which it uses by itself
                yield item[0].weight, path
            elif isinstance(item, Layer):
                yield from holders(item, where)


# On the way forward


def forward_fault(model):
    """What is said of some images, which go through a replica, as in a thread."""
    with pytest.raises(mf.NotFiniteError) as caught, mf.check_finite(model):
        model.replica().forward(batch(count=2)[0])
    return str(caught.value)


@every_kind
def test_the_layer_with_a_nan_among_its_parameters_is_named(kind):
    model = build(kind)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = list(holders(model))
    assert {id(parameter) for parameter, _ in expected} == names.keys()
    for parameter, path in expected:
        if path.startswith("layers.1.blocks.0."):  # as the block after it
            continue
        place = (-1,) * parameter.data.ndim
        kept, parameter.data[place] = parameter.data[place], np.nan
        fault, own = forward_fault(model), names[id(parameter)].rpartition(".")[2]
        if own.startswith("gamma"):  # the block multiplies by it, between its layers
            assert re.match(rf"{path}\.drop_path: input not finite .* made by the operations of {path} between", fault)
        else:
            assert re.match(rf"{path}: output not finite \(nan at \[.*; its input was finite, at most \d", fault), fault
            assert re.search(rf", but its (focal_layers\.\d\.0\.)?{own} was not \(nan at ", fault), fault
        parameter.data[place] = kept


def test_replicas_that_are_not_watched_would_be_seen(two_threads, monkeypatch):
    """The test itself: a check that is bound to the layers of the model alone hears nothing of a step in threads."""
    model, right = build("focal", ops=list_ops()[1]), Layer.replica

    def forgetful(layer, *args, **options):
        twin = right(layer, *args, **options)
        twin.__class__ = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("minifocal.")
                              and kind.__name__ == type(layer).__name__ and "forward" in vars(kind))  # fmt: skip
        return twin

    model.head.bias.data[0] = np.nan
    assert fault_of(model).startswith("head: output")
    monkeypatch.setattr(Layer, "replica", forgetful)
    with pytest.raises(pytest.fail.Exception):
        fault_of(model)


@every_table
def test_float32_that_overflows_is_told_with_the_size_of_what_went_in(table):
    model = build("sigmoid_gate", ops=table)
    model.layers[1].blocks[0].mlp.fc1.weight.data[...] = 1e38
    model.layers[1].blocks[0].norm2.weight.data[...] = 100.0
    fault = fault_of(model)
    assert re.match(
        r"layers\.1\.blocks\.0\.mlp\.fc1: output not finite \((-?inf|nan) at \[0, 0, 0, 0\] of shape \(\d, 3, 2, 30\), "
        r"first of \d+\); its input was finite, at most \d{2,3}(\.\d)? in size$",
        fault,
    ), fault


def test_images_that_are_not_finite_are_refused_as_always():
    model = build("focal")
    images, _ = batch()
    images[3, 1, 2, 4] = np.inf
    with pytest.raises(InputError, match="image 3 holds NaN or infinity"), mf.check_finite(model):
        model.forward(images)


# On the way back


@every_table
def test_a_gradient_that_overflows_names_its_layer(table):
    model = build("focal", ops=table)
    block = model.layers[1].blocks[1]
    block.norm2.weight.data[...], block.norm2.bias.data[...] = 1e-38, 0.0  # so that all is finite on the way forward
    block.mlp.fc1.weight.data *= np.float32(1e38)
    model.head.weight.data *= np.float32(1e6)
    fault = fault_of(model)
    assert re.match(
        r"layers\.1\.blocks\.1\.mlp\.fc1: gradient with respect to its input not finite \((-?inf|nan) at .*; what came "
        r"back to its output was finite, at most",
        fault,
    ), fault


@pytest.mark.parametrize("held", [False, True], ids=["layer", "replica"])
def test_a_parameters_gradient_that_overflows_names_it(held):
    model = Linear(3, 2, init=LeCun())
    model.weight.data[...] = 1e-30
    expected = r"^the model: gradient of its weight not finite \(inf at \[0, 0\] of "
    with mf.check_finite(model):
        layer = model.replica() if held else model
        _, cache = layer.forward(np.full((4, 3), 1e30, "float32"))
        with pytest.raises(mf.NotFiniteError, match=expected):
            layer.backward(np.full((4, 2), 1e10, "float32"), cache)


def with_op(model, **ops):
    model.use_ops(replace(model.ops, **ops))
    return model


def test_what_is_made_between_layers_is_put_down_to_the_layer_around():
    model = build("focal")
    modulate = model.ops.modulate
    with_op(model, modulate=Op(modulate.forward, lambda dy, cache: (np.inf * dy, dy)))
    assert re.match(
        r"layers\.1\.blocks\.1\.modulation\.f: gradient with respect to its output not finite .*; made by the way back "
        r"of layers\.1\.blocks\.1\.modulation between its layers$",
        fault_of(model),
    )


def test_a_fault_of_the_loss_is_told_apart_from_those_of_layers():
    model = build("focal")
    right = model.ops.cross_entropy
    with_op(model, cross_entropy=Op(right.forward, lambda cache, dloss: np.nan * right.backward(cache, dloss)))
    assert re.match(
        r"the model: gradient with respect to its output not finite \(nan at \[0, 0\] of shape \(7, 5\), first of "
        r"35\); made by the loss$",
        fault_of(model),
    )


def test_without_gradients_the_way_back_is_not_looked_at():
    model = build("focal")
    with_op(model, modulate=Op(model.ops.modulate.forward, lambda dy, cache: (np.inf * dy, dy)))
    with mf.check_finite(model, gradients=False):
        step(model)


# What it leaves alone


@every_table
@every_kind
def test_the_bits_are_those_without_it(kind, table, two_threads):
    """With levels that are kept, and in every other kind with those that are computed again."""
    results, again = [], list(KINDS).index(kind) % 2 == 0
    for looked_into in (False, True):
        model = build(kind, ops=table, recompute_levels=again, **DROPPING)
        images, _ = batch()
        if looked_into:
            with mf.check_finite(model):
                records = [step(model, random_generator(3)) for _ in range(2)]
                logits = model(images)
        else:
            records = [step(model, random_generator(3)) for _ in range(2)]
            logits = model(images)
        arrays = {"logits": logits, **model.state_dict(), **{f"d{name}": g for name, g in gradients(model).items()}}
        results.append((records, {name: array.tobytes() for name, array in arrays.items()}))
    assert results[0] == results[1]


def test_it_is_taken_off_again_whatever_happened():
    model = build("focal")
    before = [(type(layer), vars(layer).keys() - {"grad"}) for layer in model.layers_inside()]
    with mf.check_finite(model):
        inside = [type(layer) for layer in model.layers_inside()]
        with mf.check_finite(model.layers[0]):  # twice does no harm
            step(model)
        assert [type(layer) for layer in model.layers_inside()] == inside
        assert all(kind.__name__ == old.__name__ and issubclass(kind, old) for kind, (old, _) in
                   zip(inside, before, strict=True))  # fmt: skip
    assert [(type(layer), vars(layer).keys()) for layer in model.layers_inside()] == before
    model.head.bias.data[0] = np.nan
    fault_of(model)
    assert [(type(layer), vars(layer).keys()) for layer in model.layers_inside()] == before
    assert not np.isfinite(step(model).loss)


class TwiceTheSame(Layer):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = Linear(3, 3, init=LeCun())

    def forward(self, x, rng=None):
        y, first = self.first.forward(x)
        y, second = self.second.forward(y)
        return y, (first, second)


def test_a_layer_under_two_names_goes_by_the_first():
    model = TwiceTheSame()
    model.first.weight.data[...] = 1e20
    with pytest.raises(mf.NotFiniteError, match=r"^first: output"), mf.check_finite(model):
        model.forward(np.ones((2, 3), "float32"))
    assert type(model.first) is Linear


def on_a_device(model):
    library = StrictLibrary()
    for parameter in model.parameters():
        parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    return model


def test_on_a_device_the_layer_is_named_as_on_the_host():
    faults = []
    for put in (lambda model: model, on_a_device):
        model = build("focal")
        model.layers[1].blocks[0].modulation.h.weight.data[3, 4] = np.nan
        faults.append(fault_of(put(model)))
    assert faults[0].partition(";")[0] == faults[1].partition(";")[0]
    assert faults[0].startswith("layers.1.blocks.0.modulation.h: output not finite (nan at [0, 0, 0, 4]")


def test_on_a_device_images_are_looked_at_too():
    """Otherwise they are not: it would wait."""
    model = on_a_device(build("focal"))
    images, _ = batch()
    images[3, 1, 2, 4] = -np.inf
    there = beside(images, model.head.weight.data)
    expected = r"^the model: input not finite \(-inf at \[3, 1, 2, 4\] of shape .*; made by the caller$"
    with pytest.raises(mf.NotFiniteError, match=expected), mf.check_finite(model):
        model.forward(there)


# In a run


def trainer(model, folder=None, **options):
    images, labels = batch("float64", count=13)
    data = Dataset(np.clip(128 + 50 * images, 0, 255).astype("uint8"), labels, tuple("abcde"))
    config = TrainConfig(epochs=2, batch_size=5, lr=0.01, warmup_steps=0)
    return Trainer(model, data, data.subset(np.arange(4)), Standardize.fit(data), config, folder=folder, **options)


def break_at(monkeypatch, model, number):
    """Put a NaN into the head before the step with this number."""
    steps = []

    def breaking(*args, **options):
        steps.append(1)
        if len(steps) == number:
            model.head.bias.data[2] = np.nan
        return train_step(*args, **options)

    monkeypatch.setattr("minifocal.training.trainer.train_step", breaking)


@every_table
def test_a_run_ends_with_the_layer_and_the_step(table, monkeypatch):
    model = build("focal", ops=table)
    break_at(monkeypatch, model, 5)  # of three in an epoch
    with pytest.raises(TrainingError, match=r"^after 4 steps, in epoch 2: head: output not finite \(nan at \[0, 2\]"):
        trainer(model, check_finite=True).fit()
    assert type(model) is FocalNet


def test_a_run_that_is_not_looked_into_says_how(monkeypatch):
    model = build("focal")
    break_at(monkeypatch, model, 2)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1; .*; check_finite names the layer$"):
        trainer(model).fit()


def test_a_loss_that_is_not_finite_by_itself_is_said_to_be():
    """Logits whose differences are beyond float32."""
    model = build("focal")
    model.head.weight.data[...] = 0.0
    model.head.bias.data[:2] = 3e38, -3e38
    with pytest.raises(TrainingError, match=r"the loss is inf in epoch 1; .*; every layer's output was finite$"):
        trainer(model, check_finite=True).fit()


def test_in_float16_gradients_may_overflow_and_outputs_may_not():
    """The loss scaler skips such steps and halves its scale: from 2^15 it does, as gradients are made large here."""
    model = build("focal", precision="float16")
    model.head.weight.data[...] *= 1000.0
    run = trainer(model, check_finite=True)
    run.fit()
    assert float(run.scaler.scale) < 2.0**15
    model.head.weight.data[...] = np.float32(65536.0)
    with pytest.raises(TrainingError, match=r"head: output not finite \((-?inf|nan) at "):
        trainer(model, check_finite=True).fit()


def test_a_graph_cannot_be_looked_into():
    with pytest.raises(InputError, match="a graph replays a whole step, and check_finite looks at each layer"):
        trainer(build("focal"), graph=True, check_finite=True)


def test_a_step_of_a_graph_is_refused_while_its_model_is_looked_into(cuda_on_host):
    model = FocalNet.build(image_size=4, patch_size=2, in_channels=1, hidden_size=6, num_layers=1, device="cuda",
                           num_classes=2)  # fmt: skip
    graph = mf.StepGraph(model, SGD(model, 0.1))
    data = (
        beside(np.zeros((3, 1, 4, 4), "float32"), model.head.weight.data),
        beside(np.arange(3) % 2, model.head.bias.data),
    )
    graph(*data, None)
    with mf.check_finite(model), pytest.raises(InputError, match="cannot look into a step that a graph replays"):
        graph(*data, None)
    graph(*data, None)


# On the command line


def test_a_run_that_ended_is_looked_into_by_the_command_that_it_prints(tmp_path, capsys):
    folder = tmp_path / "a run"
    options = ["--epochs", "1", "--hidden-size", "4", "--layers", "1", "--warmup-steps", "0", "--clip-norm", "0"]
    assert main(["train", "--out", str(folder), "--lr", "1e30", "--ops", "reference", *options]) == 1
    message = capsys.readouterr().err
    prefix, _, command = message.partition("; check_finite names the layer: minifocal ")
    assert re.match(r"minifocal train: the loss is nan in epoch 1; ", prefix)
    assert shlex.split(command) == [
        "train", "--resume", "--out", str(folder), "--ops", "reference", "--check-finite",
    ]  # fmt: skip
    assert main(shlex.split(command)) == 1
    assert re.match(
        r"minifocal train: after \d steps, in epoch 1: [a-z0-9_.]+: output not finite \(.*; its input was finite",
        capsys.readouterr().err,
    )
