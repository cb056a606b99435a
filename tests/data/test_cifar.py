import numpy as np
import pytest

from minifocal.data.cifar import cifar_splits
from minifocal.errors import InputError

TRAIN_COUNTS = {"cifar10": (2, 3, 1, 4, 2), "cifar100": (7,)}
TRAIN_FILES = {"cifar10": tuple(f"data_batch_{n}" for n in range(1, 6)), "cifar100": ("train",)}
TEST_FILES = {"cifar10": "test_batch", "cifar100": "test"}
CLASSES = {"cifar10": 10, "cifar100": 100}
NAMES = {name: tuple(f"class {i}" for i in range(count)) for name, count in CLASSES.items()}


def parts(name):
    """Random images (N, 3072) and labels for each file; the first label is the largest."""
    rng = np.random.default_rng(3)
    for file, count in zip((*TRAIN_FILES[name], TEST_FILES[name]), (*TRAIN_COUNTS[name], 5), strict=True):
        labels = rng.integers(0, CLASSES[name], count)
        labels[0] = CLASSES[name] - 1
        yield file, rng.integers(0, 256, (count, 3072)).astype(np.uint8), labels


def write_binary(folder, name):
    folder.mkdir(exist_ok=True)
    for file, images, labels in parts(name):
        columns = [labels[:, None], images] if name == "cifar10" else [labels[:, None] // 5, labels[:, None], images]
        (folder / f"{file}.bin").write_bytes(np.concatenate(columns, axis=1).astype(np.uint8).tobytes())
    names_file = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / names_file).write_text("\n".join(NAMES[name]) + "\n\n")


@pytest.fixture
def write_python(python2_pickle):
    def write(folder, name):
        folder.mkdir(exist_ok=True)
        key = "labels" if name == "cifar10" else "fine_labels"
        for file, images, labels in parts(name):
            values = {"data": images, key: labels.tolist(), "batch_label": file}
            (folder / file).write_bytes(python2_pickle(values))
        meta, names = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
        (folder / meta).write_bytes(python2_pickle({names: list(NAMES[name])}))

    return write


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("form", ["binary", "python"])
def test_both_forms_are_read(name, form, write_python, tmp_path):
    (write_python if form == "python" else write_binary)(tmp_path, name)
    splits = cifar_splits(tmp_path, name)
    *train, (_, test_images, test_labels) = parts(name)
    train_images = np.concatenate([images for _, images, _ in train]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(splits.train.images, train_images)
    np.testing.assert_array_equal(splits.train.labels, np.concatenate([labels for *_, labels in train]))
    np.testing.assert_array_equal(splits.test.images, test_images.reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(splits.test.labels, test_labels)
    assert splits.train.class_names == NAMES[name]
    assert (splits.train.labels.dtype, splits.train.images.dtype) == (np.int64, np.uint8)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")],
)
def test_files_are_found_where_the_archive_unpacks_them(name, folder, write_python, tmp_path):
    write_python(tmp_path / folder, name)
    assert len(cifar_splits(tmp_path, name).test) == 5


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin"])
def test_binary_files_are_found_there_too(folder, tmp_path):
    write_binary(tmp_path / folder, "cifar10")
    assert len(cifar_splits(tmp_path, "cifar10").test) == 5


def test_planes_are_red_green_blue(tmp_path):
    write_binary(tmp_path, "cifar10")
    record = bytes([3]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024
    (tmp_path / "test_batch.bin").write_bytes(record)
    images = cifar_splits(tmp_path, "cifar10").test.images
    assert images[0, :, 5, 9].tolist() == [10, 20, 30]
    assert [np.ptp(plane) for plane in images[0]] == [0, 0, 0]


@pytest.mark.parametrize("name", CLASSES)
def test_missing_files_say_how_to_fetch_them(name, tmp_path):
    with pytest.raises(InputError, match=f"has neither .* of {name}; run: minifocal data fetch {name}"):
        cifar_splits(tmp_path, name)


def test_a_missing_part_is_named(tmp_path):
    write_binary(tmp_path, "cifar10")
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"cannot read .*data_batch_4.bin"):
        cifar_splits(tmp_path, "cifar10")


@pytest.mark.parametrize("data", [b"", b"GIF89a", bytes(3073 * 2 - 1), bytes(3074)])
def test_a_truncated_or_foreign_binary_file_is_refused(data, tmp_path):
    write_binary(tmp_path, "cifar10")
    (tmp_path / "data_batch_2.bin").write_bytes(data)
    with pytest.raises(InputError, match=f"data_batch_2.bin: expected whole records of 3073 bytes, got {len(data)}"):
        cifar_splits(tmp_path, "cifar10")


def test_a_binary_label_out_of_range_is_named(tmp_path):
    write_binary(tmp_path, "cifar100")
    (tmp_path / "test.bin").write_bytes(bytes(3074) + bytes([0, 100]) + bytes(3072))
    with pytest.raises(InputError, match=r"test.bin: labels must be 0 to 99, got 100 for image 1"):
        cifar_splits(tmp_path, "cifar100")


@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_wrong_number_of_class_names_is_refused(form, write_python, python2_pickle, tmp_path):
    (write_python if form == "python" else write_binary)(tmp_path, "cifar10")
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    if form == "python":
        (tmp_path / "batches.meta").write_bytes(python2_pickle({"label_names": ["cat", "dog"]}))
    with pytest.raises(InputError, match="expected 10 class names for cifar10, got 2"):
        cifar_splits(tmp_path, "cifar10")


@pytest.mark.parametrize("names", ["cat", [1, 2], None])
def test_class_names_must_be_names(names, write_python, python2_pickle, tmp_path):
    write_python(tmp_path, "cifar10")
    (tmp_path / "batches.meta").write_bytes(python2_pickle({"label_names": names}))
    with pytest.raises(InputError, match=r'batches.meta: expected "label_names" as a list of names'):
        cifar_splits(tmp_path, "cifar10")


IMAGES = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": [1, 2]}, """expected a pickled dict with "data", got .'labels'."""),
        ({"data": IMAGES}, """expected a pickled dict with "labels", got .'data'."""),
        ({"data": [1, 2], "labels": [1, 2]}, 'expected "data" as a table of bytes'),
        ({"data": IMAGES.astype("i4"), "labels": [1, 2]}, 'expected "data" as a table of bytes'),
        ({"data": IMAGES[0], "labels": [1, 2]}, 'expected "data" as a table of bytes'),
        ({"data": IMAGES[:, 1:], "labels": [1, 2]}, r'expected "data" of shape \(N, 3072\), got \(2, 3071\)'),
        ({"data": IMAGES, "labels": [1]}, 'expected 2 "labels" in a list, one each'),
        ({"data": IMAGES, "labels": "ab"}, 'expected 2 "labels" in a list, one each'),
        ({"data": IMAGES, "labels": [1, 2.0]}, 'expected small whole numbers in "labels"'),
        ({"data": IMAGES, "labels": [1, 10]}, "labels must be 0 to 9, got 10 for image 1"),
        ({"data": IMAGES, "labels": [-1, 1]}, "labels must be 0 to 9, got -1 for image 0"),
        ({"data": IMAGES, "labels": [1, 2**99999]}, 'expected small whole numbers in "labels"'),
    ],
)
def test_a_python_file_that_does_not_fit_is_refused(values, message, write_python, python2_pickle, tmp_path):
    write_python(tmp_path, "cifar10")
    (tmp_path / "test_batch").write_bytes(python2_pickle(values))
    with pytest.raises(InputError, match=message):
        cifar_splits(tmp_path, "cifar10")


def test_a_truncated_python_file_is_refused(write_python, tmp_path):
    write_python(tmp_path, "cifar10")
    data = (tmp_path / "test_batch").read_bytes()
    (tmp_path / "test_batch").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="test_batch: expected a pickle, but it is damaged, cut short"):
        cifar_splits(tmp_path, "cifar10")


def test_a_hostile_python_file_is_refused(write_python, tmp_path):
    write_python(tmp_path, "cifar10")
    marker = tmp_path / "executed"
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'mkdir " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(InputError, match=r"data_batch_1: refused a pickle that names .os.system."):
        cifar_splits(tmp_path, "cifar10")
    assert not marker.exists()


def test_another_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected one of cifar10, cifar100, got 'cifar20'"):
        cifar_splits(tmp_path, "cifar20")
