"""What stands beside weights about their network: config.json of Hugging Face or timm, the official configuration.

Each is read into fields of FocalNetConfig, class names and preprocessing; what a file does not say stays out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minifocal.errors import InputError, is_integer, is_real, one_line, shown
from minifocal.files import read_bytes
from minifocal.interop.preprocess import Preprocess
from minifocal.models.config import FocalNetConfig

MAX_JSON_BYTES = 2**22  # 21,842 class names take one megabyte; in memory JSON takes up to thirty times as much
CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
LARGE_FL4 = "focalnet_large_fl4"  # trained with normalize_modulator, which timm and Hugging Face's converter leave out

# Fields of FocalNetConfig by the names that others give them.
HF_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "mlp_ratio": "mlp_ratio",
    "hidden_act": "mlp_act",
    "hidden_dropout_prob": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    "focal_levels": "focal_levels",
    "focal_windows": "focal_windows",
    "use_conv_embed": "use_conv_embed",
    "use_layerscale": "use_layerscale",
    "layerscale_value": "layerscale_value",
    "use_post_layernorm": "use_postln",
    "use_post_layernorm_in_modulation": "use_postln_in_modulation",
    "normalize_modulator": "normalize_modulator",
    "layer_norm_eps": "ln_eps",
}
HF_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh"}
OFFICIAL_FIELDS = {
    "PATCH_SIZE": "patch_size",
    "IN_CHANS": "in_chans",
    "EMBED_DIM": "embed_dim",
    "DEPTHS": "depths",
    "MLP_RATIO": "mlp_ratio",
    "PATCH_NORM": "patch_norm",
    "FOCAL_LEVELS": "focal_levels",
    "FOCAL_WINDOWS": "focal_windows",
    "USE_CONV_EMBED": "use_conv_embed",
    "USE_LAYERSCALE": "use_layerscale",
    "USE_POSTLN": "use_postln",
    "USE_POSTLN_IN_MODULATION": "use_postln_in_modulation",
    "NORMALIZE_MODULATOR": "normalize_modulator",
}


@dataclass(frozen=True)
class Description:
    """What a source says about its weights.

    Attributes:
        source: how to call it in a message.
        fields: of FocalNetConfig.
        class_names: in the order of the outputs.
        preprocess: what was done to images.
        notes: what a user should know about how it was read.
    """

    source: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: it cannot be read, is larger than 4 MiB, or holds anything else.
    """
    try:
        values = json.loads(read_bytes(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON: {one_line(str(error))}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def read_folder(folder: Path) -> Description | None:
    """Read the configuration in a folder of Hugging Face or timm; None where there is none of theirs.

    Raises:
        InputError: it is of another model, or has a value that is not supported.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    if "architecture" in values:
        return _timm(values, path)
    if "model_type" not in values:
        return None
    if values["model_type"] != "focalnet":
        raise InputError(f"{path} is of a {shown(values['model_type'])}, expected a 'focalnet'")
    preprocessor = folder / PREPROCESSOR_FILE
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()
    if preprocessor.is_file():
        preprocess, notes = Preprocess.from_hf(read_json(preprocessor), str(preprocessor))
    return Description(str(path), _hf_fields(values, path), _hf_class_names(values, path), preprocess, notes)


def _hf_fields(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    defaults = {"use_postln": False, "normalize_modulator": False}  # Hugging Face's own
    fields = {**defaults, **{ours: values[theirs] for theirs, ours in HF_FIELDS.items() if theirs in values}}
    if "mlp_act" in fields:
        if not isinstance(fields["mlp_act"], str) or fields["mlp_act"] not in HF_ACTIVATIONS:
            raise InputError(
                f"{path}: hidden_act must be one of {', '.join(HF_ACTIVATIONS)}, got {shown(fields['mlp_act'])}"
            )
        fields["mlp_act"] = HF_ACTIVATIONS[fields["mlp_act"]]
    if isinstance(fields.get("patch_size"), list):
        sides = fields["patch_size"]
        if not all(map(is_integer, sides)) or len(set(sides)) != 1:
            raise InputError(f"{path}: patches must be square, got patch_size {shown(sides)}")
        fields["patch_size"] = sides[0]
    return fields


def _hf_class_names(values: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Read id2label. It is left out for two classes with their default names, and tells how many classes there are."""
    labels = values.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(labels, dict):
        raise InputError(f"{path}: id2label must be an object, got {shown(labels)}")
    return tuple(map(str, _by_number(labels, f"{path}: id2label")))


def _by_number(labels: dict[str, Any], source: str) -> list[Any]:
    """Give the values of "0", "1", ... in that order; no number may be missing, or be there twice."""
    numbers = [str(number) for number in range(len(labels))]
    if labels.keys() != set(numbers):
        raise InputError(f"{source} must name each class by its number, 0 to {len(labels) - 1} without a gap")
    return [labels[number] for number in numbers]


def read_class_names(path: Path, count: int) -> tuple[str, ...]:
    """Read the names of classes from a file: one a line, a JSON list, or a JSON object by class number.

    Of a list of names for a class, as in ImageNet's index of identifier and word, the last one counts.

    Raises:
        InputError: the file cannot be read, or holds another number of names than `count`.
    """
    text = read_bytes(path, MAX_JSON_BYTES).decode("utf-8-sig", errors="replace")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = text.splitlines()
    if isinstance(values, dict):
        values = _by_number(values, f"{path}")
    if not isinstance(values, list) or len(values) != count:
        found = len(values) if isinstance(values, list) else "none"
        raise InputError(f"{path}: expected a name for each of {count} classes, found {found}")
    return tuple(str(value[-1] if isinstance(value, list) and value else value).strip() for value in values)


def _timm(values: Mapping[str, Any], path: Path) -> Description:
    """Read the config.json of timm: the variant by name, changes to it, and how images are prepared."""
    variant = str(values["architecture"]).partition(".")[0]
    pretrained = values.get("pretrained_cfg", {})
    if not isinstance(pretrained, dict):
        raise InputError(f"{path}: pretrained_cfg must be an object, got {type(pretrained).__name__}")
    preprocess = Preprocess.from_timm(pretrained, str(path))
    names = values.get("label_names")
    class_names = tuple(map(str, names)) if isinstance(names, list) else None
    fields: dict[str, Any] = {"image_size": preprocess.crop}
    arguments = values.get("model_args")
    if isinstance(arguments, dict) and "normalize_modulator" in arguments:
        fields["normalize_modulator"] = arguments["normalize_modulator"]
    elif variant != LARGE_FL4:  # of which it has to be asked
        fields["normalize_modulator"] = False  # timm's variants never set it
    return Description(str(path), fields, class_names, preprocess)


def read_official(config: Any, path: Path) -> Description | None:
    """Read the configuration that the official code puts into a training checkpoint; None where it is another's.

    Before USE_POSTLN_IN_MODULATION existed (until November 2022), USE_POSTLN meant that.
    """
    source = f"the training configuration in {path.name}"
    model = config.get("MODEL") if isinstance(config, dict) else None
    focal = model.get("FOCAL") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(focal, dict):
        return None
    fields = {ours: focal[theirs] for theirs, ours in OFFICIAL_FIELDS.items() if _is_plain(focal.get(theirs))}
    rates = {name: model.get(name.upper()) for name in ("drop_rate", "drop_path_rate")}
    fields |= {name: rate for name, rate in rates.items() if is_real(rate)}
    data = config.get("DATA")
    if isinstance(data, dict) and is_integer(data.get("IMG_SIZE")):
        fields["image_size"] = data["IMG_SIZE"]
    notes: tuple[str, ...] = ()
    if "use_postln" in fields and "use_postln_in_modulation" not in fields:
        fields["use_postln_in_modulation"] = fields["use_postln"]
        fields["use_postln"] = False
        notes = (
            f"{source} is from before November 2022, when USE_POSTLN meant the LayerNorm inside the modulation; "
            "it is read so",
        )
    return Description(source, fields, notes=notes)


def _is_plain(value: Any) -> bool:
    """Whether a value is a truth value, a number or a flat list of integers: all that a configuration needs."""
    if isinstance(value, list | tuple):
        return all(map(is_integer, value))
    return isinstance(value, bool) or is_real(value)


def hf_config(config: FocalNetConfig, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """Give the config.json that transformers reads for a network."""
    ours = config.to_dict()
    values = {theirs: ours[name] for theirs, name in HF_FIELDS.items()}
    names = class_names or tuple(f"LABEL_{label}" for label in range(config.num_classes))
    architecture = "FocalNetForImageClassification" if config.num_classes else "FocalNetModel"
    return {
        "architectures": [architecture],
        "model_type": "focalnet",
        **values,
        "hidden_sizes": [*config.dims[1:], config.dims[-1]],
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }
