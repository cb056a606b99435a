"""The calls that operations are compared on: the shapes, kernels and channels that code may treat apart."""

from twins import Case, Normal, SameForAllTokens

B, H, W, C = 2, 5, 4, 3
KERNELS, CHANNELS, WIDTHS = (1, 3, 5, 7, 9), (1, 3, 16, 17, 40), (1, 2, 3, 4, 7)  # a vector holds 16 float32


def elementwise(*leading):
    """The operations that look at a position alone, on maps of any leading shape."""
    x = Normal((*leading, C))
    return [
        Case("linear", f"on {x}", (x, Normal((C, 7)), Normal((7,)))),
        Case("gelu", f"on {x}", (x,)),
        Case("gelu_tanh", f"on {x}", (x,)),
        Case("sigmoid", f"on {x}", (x,)),
        Case("layer_norm", f"on {x}", (x, Normal((C,)), Normal((C,)), 0.1)),
        Case("layer_scale", f"on {x}", (x, Normal((C,)))),
    ]


def levels(B, H, W, C, k):
    """Convolutions and focal levels, as the first, a middle and the last level call them."""
    x, gate, weight = Normal((B, H, W, C)), Normal((B, H, W, 1)), Normal((k, k, C))
    note = f"{k}x{k} on {x}"
    return [
        Case("depthwise_conv", note, (x, weight)),
        Case("focal_level", note, (x, weight, gate, x)),
        Case("focal_level", f"{note}, the only one, ungated", (x, weight, None, 0.0), (0.0, x)),
        Case("focal_level", f"{note}, under the global one", (x, weight, gate, x), (SameForAllTokens(x), x)),
    ]


def maps(B, H, W, C):
    """What takes maps only."""
    x, gate, weight = Normal((B, H, W, C)), Normal((B, H, W, 1)), Normal((3, 3, C))
    same = SameForAllTokens(x)
    return [
        Case("global_level", f"on {x}", (x, gate, x)),
        Case("global_level", f"on {x}, the only one", (x, gate, 0.0)),
        Case("focal_level", f"on {x}, first", (x, weight, gate, 0.0)),
        Case("focal_level", f"on {x}, ungated, from above the same", (x, weight, None, x), (same, x)),
        Case("modulate", f"on {x}", (x, x)),
        Case("add", f"on {x}", (x, x)),
        Case("split", f"on {x}", (x, (C - C // 2, C // 2))),
        Case("mean_pool", f"on {x}", (x,)),
        Case("box_mean", f"on {x}", (x, 6)),
        Case("patches", f"on {x}", (x, 2, 1)),
    ]


def rows_of(C):
    """What sums over channels, with as many as a vector holds, fewer and more."""
    x = Normal((B, H, W, C))
    return [
        Case("linear", f"to and from {C}", (x, Normal((C, C + 2)), Normal((C + 2,)))),
        Case("layer_norm", f"of {C}", (x, Normal((C,)), Normal((C,)))),
        Case("layer_scale", f"of {C}", (x, Normal((C,)))),
        *maps(B, H, W, C)[:5],
    ]


# Every kernel size with every channel count and every width: a Latin square. Large kernels are larger than the maps.
SQUARE = [(k, C, WIDTHS[(i + j) % 5]) for i, k in enumerate(KERNELS) for j, C in enumerate(CHANNELS)]
CASES = [
    *elementwise(B, H, W),
    *elementwise(1, 2, 7),
    *elementwise(7),
    *elementwise()[1:4],
    *maps(B, H, W, C),
    *maps(1, 3, 2, 5),
    *(case for C in CHANNELS for case in rows_of(C)),
    *(case for k, C, W in SQUARE for case in levels(B, H, W, C, k)),
    *levels(1, 6, 4, 17, 3),
    *levels(4, 1, 1, 3, 5),
]
ON_MAPS = [*elementwise(B, H, W), *maps(B, H, W, C), *levels(B, H, W, C, 3), *levels(3, 2, 7, 17, 5)]
