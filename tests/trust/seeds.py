"""Small valid files of every kind that is read, made in code, mostly by the package's own writers."""

import functools
import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minifocal.data.dataset import Dataset, Standardize
from minifocal.interop.descriptions import hf_config
from minifocal.interop.export import write_pretrained
from minifocal.interop.preprocess import Preprocess
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import SGD
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import LAST, Trainer

NAMES = ("ant", "bee", "cat")
PREPROCESS = Preprocess(9, 8, Standardize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
FOCAL = FocalNetConfig(
    image_size=8,
    patch_size=4,
    embed_dim=2,
    depths=(1,),
    mlp_ratio=2.0,
    focal_levels=(1,),
    focal_windows=(3,),
    num_classes=3,
)
BOX_MEAN = FocalNetConfig(
    **{**FOCAL.to_dict(), "modulation": "box_mean", "patch_norm": False, "mlp_ratio": 4.0, "focal_levels": (2,)}
)


def network(config: FocalNetConfig = FOCAL) -> FocalNet:
    """Make the network whose weights all seeds have."""
    return FocalNet(config, seed=3, init="lecun", ops="reference")


@functools.cache
def weights(layout: str, name: str, file: str = "") -> bytes:
    """Write weights in a layout, and give the bytes of the file."""
    config = BOX_MEAN if layout == "edifice" else FOCAL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write_pretrained(network(config), path, layout, NAMES, PREPROCESS)
        return (path / file if file else path).read_bytes()


def json_of(values: Any) -> bytes:
    return json.dumps(values).encode()


def hf_description() -> dict[str, Any]:
    return hf_config(FOCAL, NAMES)


def timm_description() -> dict[str, Any]:
    prepared = {
        "input_size": [3, 8, 8],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    return {
        "architecture": "focalnet_tiny_srf",
        "num_classes": 3,
        "pretrained_cfg": prepared,
        "label_names": list(NAMES),
        "model_args": {"normalize_modulator": False},
    }


def tiny_images(count: int = 6) -> Dataset:
    """Images of the size that the network takes."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return Dataset(pixels, np.arange(count) % 3, NAMES)


def tiny_trainer(folder: Path) -> Trainer:
    """A run in a folder, whose last checkpoint is there."""
    images = tiny_images()
    config = TrainConfig(epochs=2, batch_size=3, warmup_steps=1)
    trainer = Trainer(
        network(), images, images, Standardize.fit(images), config, folder=folder, meta={"data": data_of_run()}
    )
    trainer._save()
    return trainer


def data_of_run() -> dict[str, Any]:
    return {"data": "images", "root": None, "image_size": 8}


@functools.cache
def run_checkpoint() -> bytes:
    """The checkpoint of a run, with optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_trainer(Path(folder))
        return Path(folder, LAST).read_bytes()


@functools.cache
def scaled_checkpoint() -> bytes:
    """A checkpoint with the state of a loss scaler too."""
    from minifocal.training.checkpoint import save_checkpoint

    model = network()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        save_checkpoint(path, model, SGD(model, lr=0.1), LossScaler(model), note="x")
        return path.read_bytes()


def torch_pickles() -> list[bytes]:
    """Programs that PyTorch's pickler would write, beside the archives of the package's own writer."""
    config = {
        "MODEL": {
            "DROP_RATE": 0.0,
            "DROP_PATH_RATE": 0.1,
            "FOCAL": {"DEPTHS": [1], "EMBED_DIM": 2, "USE_POSTLN": True},
        },
        "DATA": {"IMG_SIZE": 8},
    }
    values = {"model": {"a": [1, 2.5, (3, None), "b", b"c"]}, "epoch": 3, "config": config}
    old = {**values, "model": {"a": [1, 2.5, (3, None), "b"]}}
    return [pickle.dumps(old, 0), pickle.dumps(old, 2), pickle.dumps(values, 3), pickle.dumps(values, 4)]


def with_config(archive: bytes) -> bytes:
    """The archive of official weights with a training configuration beside them, as the official code saves it."""
    import zipfile

    flags = {"USE_POSTLN": False, "USE_POSTLN_IN_MODULATION": False, "NORMALIZE_MODULATOR": False}
    config = pickle.dumps({"MODEL": {"FOCAL": {"DEPTHS": [1], "FOCAL_LEVELS": [1], **flags}}}, 2)
    entry = b"X\x06\x00\x00\x00config" + config[2:-1]
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(".pkl"):
                content = content[:-2] + entry + content[-2:]
            new.writestr(info.filename, content)
    return stream.getvalue()


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def idx_files() -> list[bytes]:
    images, labels = np.arange(24, dtype=np.uint8).reshape(4, 2, 3), np.array([1, 0, 2, 1], dtype=np.uint8)
    plain = [idx(images), idx(labels)]
    return [*plain, *(gzip.compress(data, 1, mtime=0) for data in plain)]


def cifar_binary(images: int = 2) -> bytes:
    return b"".join(bytes([label]) + bytes(range(256)) * 12 for label in range(images))


def cifar_pickles() -> list[bytes]:
    images = np.zeros((2, 3072), dtype=np.uint8)
    values = {
        "data": images,
        "labels": [1, 0],
        "label_names": ["a", "b"],
        "batch_label": "training",
        "filenames": ["c", "d"],
    }
    return [pickle.dumps(values, protocol) for protocol in (3, 4)]


def archive_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


MEMBERS = ("cifar/one", "cifar/two")


def archives() -> list[bytes]:
    return [archive_of({"cifar/one": b"1" * 600, "cifar/other": b"3", "cifar/two": b"2"})]


def images() -> list[bytes]:
    """One image in every format that is read, and in every kind of pixel that is common."""
    pixels = np.random.default_rng(7).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    colours, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    clear, palette = Image.fromarray(pixels), Image.fromarray(pixels[..., :3]).quantize(8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    found = []

    def add(image: Image.Image, kind: str, **options: Any) -> None:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found.append(stream.getvalue())

    for kind in ("PNG", "BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP"):
        add(colours, kind)
    add(colours, "JPEG", exif=exif, progressive=True)
    add(colours, "PNG", exif=exif)
    add(colours.convert("CMYK"), "JPEG")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        add(colours, "TIFF", compression=compression, exif=exif)
    for kind in ("PNG", "JPEG", "TIFF", "PPM"):
        add(grey, kind)
    for kind in ("PNG", "TIFF", "WEBP"):
        add(clear, kind)
    add(palette, "PNG", transparency=2)
    add(palette, "GIF", transparency=2)
    add(palette, "BMP")
    add(grey.convert("1"), "PNG")
    add(colours, "GIF", save_all=True, append_images=[clear.convert("RGB")], duration=10)
    return found


def records() -> list[bytes]:
    """What the pictures are drawn from, as small as their readers take it."""
    curve = [1.0, 0.5]
    run = {"modulation": "focal", "seed": 0, "accuracy": 0.9}
    run |= dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), curve)
    share = [[0.25, 0.25], [0.25, 0.25]]
    maps = [[[[0.5, 0.1]], [[0.2, 0.3]]]]
    watched = {
        "size": 16,
        "images": [0],
        "block": "b",
        "epochs": [0, 1],
        "maps": {"gate 3 × 3": maps, "modulator": maps},
        "kernels": [3],
        "token": [1, 0],
        "fields": {"before": [share] * 3, "after": [share] * 3},
        "accuracy": 0.9,
    }
    tried = {"dataset": "digits", "modulation": "focal", "lr": 0.1, "accuracy": 0.9}
    ablation = [{**tried, "measured_on": "validation"}, {**tried, "measured_on": "test"}]
    cost = {"samples": {"torch eager": [1.0]}, "medians": {"torch eager": 1.0, "numpy": 0.5}}
    steps = {"operation": "linear", "steps": [0.05, 1e-3, 1e-5], "extrapolated": 1e-12, "complex": 1e-15}
    errors = [1e-2, 1e-6, 1e-4]
    return [
        json_of({"operations": [{**steps, "float64": errors, "float32": errors}]}),
        json_of(watched),
        json_of({"runs": [run, {**run, "seed": 1}]}),
        json_of({"nearest_neighbour": {"digits": 0.9}, "runs": ablation}),
        json_of({"rows": [{"workload": "small", "mode": "train", "relative_to": "torch eager", **cost}]}),
        json_of({"series": [{"axis": "images", "mode": "training step", "sizes": [1, 2], "cost": [1.0, 2.0]}]}),
    ]
