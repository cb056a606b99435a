"""The reference implementations' own numbers again, by the kernels of a GPU: outputs, loss and every gradient."""

import numpy as np
import pytest
from published import EDIFICE, FOCAL, GRADIENT, VALUE, generator_of, layout_of, load, make_model, tensors

from minifocal import interop
from minifocal.ops import GPU_TABLE, get_ops


def build(fixture, home):
    model = make_model(fixture)
    for parameter in model.parameters():
        parameter.data, parameter.grad = home.put((parameter.data, parameter.grad))
    model.use_ops(get_ops(GPU_TABLE, "cuda"))
    return model


def assert_gradients(model, fixture, home):
    gradients = interop.state_dict(model, layout=layout_of(fixture), grads=True)
    expected = tensors(fixture, "grad")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(home.get(gradient), expected[name], **GRADIENT, err_msg=name)


@pytest.mark.parametrize("name", FOCAL)
def test_logits_loss_and_gradients(name, home):
    fixture = load(name)
    model = build(fixture, home)
    images, labels = home.put((fixture["input"], fixture["labels"]))
    logits, cache = model.forward(images, generator_of(fixture))
    loss, loss_cache = model.ops.cross_entropy.forward(logits, labels)
    dimages = model.backward(model.ops.cross_entropy.backward(loss_cache), cache)
    np.testing.assert_allclose(home.get(logits), fixture["logits"], **VALUE)
    np.testing.assert_allclose(home.get(loss), fixture["loss"], **VALUE)
    np.testing.assert_allclose(home.get(dimages), fixture["grad_input"], **GRADIENT)
    assert_gradients(model, fixture, home)


@pytest.mark.parametrize("name", EDIFICE)
def test_edifice_output_and_gradients(name, home):
    fixture = load(name)
    model = build(fixture, home)
    output, cache = model.forward(home.put(fixture["input"]))
    dimages = model.backward(home.put(fixture["cotangent"]), cache)
    np.testing.assert_allclose(home.get(output), fixture["output"], **VALUE)
    np.testing.assert_allclose(home.get(dimages), fixture["grad_input"], **GRADIENT)
    assert_gradients(model, fixture, home)
