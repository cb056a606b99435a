"""A workload of a moment."""

from minifocal.bench.workloads import Workload
from minifocal.models.config import FocalNetConfig

MICRO = Workload(
    "micro",
    FocalNetConfig(
        image_size=8,
        patch_size=2,
        num_classes=3,
        embed_dim=6,
        depths=(1, 2),
        drop_path_rate=0.0,
        focal_levels=(2, 1),
        focal_windows=(3, 3),
    ),
    batch=4,
    init="lecun",
)
