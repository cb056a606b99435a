"""Multiply-adds by closed formulas, as the official code counts them."""

from minifocal.models.config import BOX_MEAN, FOCAL, FocalNetConfig


def multiply_adds(config: FocalNetConfig, image_hw: tuple[int, int] | None = None) -> dict[str, int]:
    """Count the multiply-adds of one image by part, in the order of the forward pass.

    Parts are "patch_embed", "layers.s.blocks.b.modulation", "layers.s.blocks.b.mlp" (each with its norm),
    "layers.s.downsample", "norm" and "head". The published networks' sum is the official `flops()` to the last digit.
    Like it, this counts C*P² a token for overlapping patches too, and the final norm on a map that
    is floor(C * N_0 / 2^stages) large; and pixels that fill no patch are left out here, also where pad_mode is "pad".

    Args:
        config: of the network.
        image_hw: height and width in pixels; config.image_size where not given.
    """
    image_h, image_w = image_hw or config.image_hw
    H, W = image_h // config.patch_size, image_w // config.patch_size
    N, C, P = H * W, config.embed_dim, config.patch_size
    counts = {"patch_embed": N * C * config.in_chans * P * P + (N * C if config.patch_norm else 0)}
    stages = len(config.depths)
    for stage, depth in enumerate(config.depths):
        N, C = H * W, config.dims[stage]
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            counts[f"{name}.modulation"] = N * C + _modulation(config, stage, N)
            counts[f"{name}.mlp"] = N * C + 2 * N * C * int(C * config.mlp_ratio)
        if stage < stages - 1:
            H, W = H // 2, W // 2
            counts[f"layers.{stage}.downsample"] = H * W * 2 * C * C * 4 + H * W * 2 * C
    grid = (image_h // P) * (image_w // P)
    counts["norm"] = config.dims[-1] * grid // 2**stages
    counts["head"] = config.dims[-1] * config.num_classes
    return counts


def _modulation(config: FocalNetConfig, stage: int, N: int) -> int:
    C, L = config.dims[stage], config.focal_levels[stage]
    if config.modulation == BOX_MEAN:
        widths = [config.focal_windows[stage] * (level + 1) for level in range(1, L)]
        levels = L * N * C * C + sum(widths) * N * C
        return 3 * N * C * C + levels + 2 * N * C  # query, gate and proj; levels; two products
    levels = sum(N * (k * k + 1) * C for k in config.kernel_sizes(stage))
    if config.modulation == FOCAL:
        f, proj = N * C * (2 * C + L + 1), N * C * C
        h_and_product = N * C * (C + 1)
        return f + levels + N * C + h_and_product + proj
    return 4 * N * C * C + levels + 2 * N * C  # query, context, gate and proj; levels; two products
