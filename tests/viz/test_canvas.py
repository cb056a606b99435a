"""The file of a picture: same figure, same bytes; no other kind of file."""

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.viz.canvas import (
    POSITIVE,
    SIGNED,
    as_rgb,
    check_picture_path,
    colour_table,
    new_figure,
    save_figure,
)


def draw(path, title="a < b & <script>"):
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 0])
    axes.set_title(title)
    save_figure(figure, path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, kind):
    first = draw(tmp_path / f"a.{kind}")
    assert draw(tmp_path / f"b.{kind}") == first
    assert draw(tmp_path / f"c.{kind}", title="another") != first
    assert not any(word in first for word in (b"<dc:date>", b"<script>"))


def test_three_channels_are_colours_and_others_grey():
    image = np.arange(12).reshape(3, 2, 2) / 10  # up to 1.1
    np.testing.assert_array_equal(as_rgb(image)[1], [[0.2, 0.6, 1.0], [0.3, 0.7, 1.0]])
    np.testing.assert_allclose(as_rgb(image[:2])[0], [[0.2] * 3, [0.3] * 3], rtol=1e-12)
    np.testing.assert_array_equal(as_rgb(image[:1] - 0.1)[0, 0], [0, 0, 0])


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    for name in ("picture.pdf", "picture"):
        with pytest.raises(InputError, match=r"\.png or \.svg"):
            check_picture_path(tmp_path / name)
        with pytest.raises(InputError, match=name):
            draw(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [SIGNED, POSITIVE])
def test_colours_are_those_of_matplotlib(name):
    from matplotlib import colormaps

    table = colour_table(name, 256)
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    for value in (0.0, 0.3, 0.5, 1.0):
        assert table[min(255, int(256 * value))].tolist() == list(colormaps[name](value, bytes=True)[:3])
    assert colour_table(name, 3).tolist() == [list(colormaps[name](value, bytes=True)[:3]) for value in (0.0, 0.5, 1.0)]
