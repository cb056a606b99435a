"""Corners that the tables of operations do not reach, each found by a mistake there that no test noticed."""

import numpy as np
import pytest
from strict_array import StrictLibrary

from minifocal.arrays import as_numpy
from minifocal.functional.cross_entropy import cross_entropy_forward
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.functional.patches import patches_backward, patches_forward
from minifocal.functional.precision import MANTISSA_BITS, round_to
from minifocal.functional.updates import UpdateRow, clip, sgd_update
from minifocal.gradcheck import check_gradients

B, H, W, C = 2, 5, 4, 3
MAP = (B, H, W, C)


@pytest.mark.parametrize("shape", [(B, H, W, C), (B, W, H, C)])
@pytest.mark.parametrize("padding", [((2, 0), (3, 1)), ((0, 2), (1, 3)), ((3, 1), (0, 2))])
def test_the_way_back_of_patches_reaches_every_side_that_was_padded(shape, padding):
    """One step at a time, so that a patch ends at the very last row and column, whichever side is wider."""
    x = np.random.default_rng(11).standard_normal(shape)
    report = check_gradients(
        lambda x: patches_forward(x, 3, 1, padding),
        patches_backward,
        {"x": x},
        method="complex",
        elementwise=True,
        tolerance=1e-12,
    )
    assert report.passed, str(report)


def test_a_numpy_number_for_eps_leaves_float32_alone():
    x, one = np.ones(MAP, "float32"), np.ones(C, "float32")
    y, cache = layer_norm_forward(x, one, one, np.float64(1e-5))
    assert {y.dtype, cache.x_hat.dtype, cache.rstd.dtype} == {np.dtype("float32")}


def test_a_batch_of_nothing_has_a_loss_of_no_labels_to_look_at():
    """Labels are looked at only where there are some: least and largest of none do not exist."""
    with pytest.warns(RuntimeWarning) as warned:
        loss, cache = cross_entropy_forward(np.ones((0, C)), np.zeros(0, int))
    assert "Mean of empty slice" in {str(warning.message) for warning in warned}
    assert np.isnan(loss)
    assert cache.probabilities.shape == (0, C)


def test_only_arrays_are_rounded():
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        round_to([1.0], "tf32")


def test_the_norm_of_gradients_is_float64_whatever_they_are():
    gradient = np.array([3.0, 4.0], "float32")
    norm = clip([gradient], 10.0)
    assert norm.dtype == "float64"
    assert float(norm) == 5.0
    assert gradient.dtype == "float32"


def test_without_a_skip_an_update_chooses_nothing():
    """CuPy's `where` takes no None for a condition, as NumPy's does."""
    library = StrictLibrary()
    library.where = None
    data, grad, velocity = (library.asarray(np.full(3, value)) for value in (1.0, 2.0, 0.0))
    sgd_update([UpdateRow(data, grad, (velocity,), 0.0)], lr=0.5, momentum=0.0, nesterov=False)
    np.testing.assert_array_equal(as_numpy(data), [0.0, 0.0, 0.0])


def test_gradients_are_scaled_in_their_own_precision():
    gradient = np.random.default_rng(12).standard_normal(999).astype("float32")
    given = gradient.copy()
    norm = float(clip([gradient], 1.0))
    np.testing.assert_array_equal(gradient, given * np.float32(1.0 / norm))


def test_the_variance_gets_an_eps_of_1e_5_unless_told_otherwise():
    x, one, zero = 1e-3 * np.random.default_rng(13).standard_normal(MAP), np.ones(C), np.zeros(C)
    np.testing.assert_array_equal(layer_norm_forward(x, one, zero)[0], layer_norm_forward(x, one, zero, 1e-5)[0])


def test_the_bits_of_each_format_are_those_that_numpy_knows():
    assert MANTISSA_BITS["float32"] == np.finfo(np.float32).nmant
    assert MANTISSA_BITS["float16"] == np.finfo(np.float16).nmant
    x = np.random.default_rng(14).uniform(1.0, 2.0, 999).astype("float32")
    for precision, bits in MANTISSA_BITS.items():
        assert np.abs(round_to(x, precision) - x).max() <= 2.0 ** -(bits + 1) * 2.0
