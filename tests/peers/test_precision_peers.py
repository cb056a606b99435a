"""Rounding beside PyTorch's: bit by bit, over every exponent."""

import numpy as np
import pytest

from minifocal.functional.precision import round_to

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_numbers_are_rounded_as_torch_rounds_them(precision):
    torch = pytest.importorskip("torch")
    patterns = np.arange(0, 2**32, 251, dtype="uint64").astype("uint32")  # an odd step: all kinds of low bits
    patterns[np.isnan(patterns.view("float32"))] |= 1 << 22  # quiet, as NaNs that come of computing are
    x = patterns.view("float32")
    want = torch.from_numpy(x).to(getattr(torch, precision)).to(torch.float32).numpy()
    got = round_to(x, precision)
    np.testing.assert_array_equal(got, want)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(want)[number])
