# %% [markdown]
# # 12. The same code on a GPU; reading a kernel beside its reference
#
# *Before this:* tutorials 0, 2, 4 and 8. *Time:* 45 minutes.
#
# *Afterwards you can* read a CUDA kernel line by line beside the function that it stands for, say why it sums in the
# order it does, and count the bytes that decide how fast it is.
#
# *Explains* [`minifocal/arrays.py`](../minifocal/arrays.py), [`minifocal/ops.py`](../minifocal/ops.py),
# [`minifocal/fused/gpu.py`](../minifocal/fused/gpu.py), [`minifocal/fused/gpu_ops.py`](../minifocal/fused/gpu_ops.py)
# and [`minifocal/fused/kernels.cu`](../minifocal/fused/kernels.cu).
#
# No GPU is needed; where there is one, the first part runs on it too. A GPU has a memory of its own, and runs
# *kernels*: functions of which many copies run at once, each in a *thread*. (So a kernel here is a program, not the
# weight of a convolution.) 32 threads are a *warp*; they go through the kernel in step. A few warps are a *block* (of
# threads, not of the network); they can share a small fast memory. Blocks run in any order.

# %%
import math
from functools import partial
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np

import minifocal as mf
from minifocal.arrays import as_numpy, check_device, device_of, to_device
from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.gradcheck import check_gradients
from minifocal.ops import get_ops

rng = np.random.default_rng(12)
LANES, u = 32, 2.0**-24  # threads of a warp; what float32 rounds by

# %% [markdown]
# ## One code, two homes
#
# Nothing in `functional/` and `layers/` names NumPy. `get_array_module(x)` asks an array which library made it: NumPy's
# arrays live on the CPU, CuPy's on a GPU; a mixture is refused. A layer carries a table of operations: `"reference"`
# has the functions of `functional/`, for every device; `"numpy"` and `"numba"` have faster ones for the CPU, `"cuda"`
# has kernels. `check_on` sends numbers through a block of a network (tutorial 8) and back on a device, and holds all
# results against those of the reference on the CPU. Sums are made in other orders there, so results are equal up to
# rounding.

# %%
config = mf.FocalNetConfig(image_size=8, in_chans=1, embed_dim=6, depths=(1,), focal_levels=(2,), focal_windows=(3,))
x, dy = rng.standard_normal((2, 2, 5, 4, 6))  # B, H, W, C = 2, 5, 4, 6


def through_a_block(table, device):
    block = mf.FocalNet(config, seed=1, dtype="float64", ops="reference").layers[0].blocks[0]
    block.use_ops(get_ops(table, device))
    block.to_device(device)
    y, cache = block.forward(to_device(x, device))
    dx = block.backward(to_device(dy, device), cache)
    return {"y": y, "dx": dx} | {name: parameter.grad for name, parameter in block.named_parameters()}


def check_on(device):
    expected = through_a_block("reference", "cpu")
    tables = ("numpy",) if device == "cpu" else ("reference", "cuda")
    for table in tables:
        for name, array in through_a_block(table, device).items():
            assert device_of(array) == device_of(to_device(x, device))  # nothing came home on its own
            np.testing.assert_allclose(as_numpy(array), expected[name], rtol=1e-10, atol=1e-12)
        print(f"{device}, table {table!r}: {len(expected)} arrays equal those of the reference on the CPU")


check_on("cpu")
try:
    check_device("cuda")
except mf.InputError as reason:
    print(reason)
else:
    check_on("cuda")

# %% [markdown]
# ## A launch, and what looking at a number costs
#
# The host (the CPU's side) does not run a kernel but *launches* it: puts its name and arguments into a queue, and goes
# on at once. `float(a[0])` needs a number, so the host waits until all that it launched is done and the number has
# come over. It *synchronises*: meanwhile it launches nothing, and afterwards the device has nothing to do. Here is a
# model with eight kernels, one letter for each unit of time: `L` where the host launches, `w` where it waits, `#` where
# the device works.

# %%
for title, launch, work, look_every, end in (
    ("the host looks once, at the end", 1, 3, 8, 1 + 8 * 3 + 1),
    ("the host looks after each kernel", 1, 3, 1, 8 * (1 + 3 + 1)),
    ("a launch takes longer than the work, one look", 3, 1, 8, 8 * 3 + 1 + 1),
):
    host = device = ""
    for number in range(1, 9):
        host += "L" * launch
        device = device.ljust(len(host)) + "#" * work  # begins when it is launched and the one before it is done
        if number % look_every == 0:
            host = host.ljust(len(device) + 1, "w")  # the number takes one unit to come over
    print(f"{title}: works {device.count('#') / end:.0%} of the time\n  host   {host}\n  device {device}")
    assert len(host) == end

# %% [markdown]
# So `train_step` leaves losses on the device until somebody looks at them. Where launches take longer than the work,
# `Recorder` (in `gpu.py`) records all launches of a step, and replays them in one.
#
# ## The kernel
#
# The backward pass of LayerNorm, from the package's own files: first `warp_sum`, then the kernel that makes `dx`.

# %%
for file, start in (("kernels.cuh", "__device__ inline T warp_sum"), ("kernels.cu", "__global__ void layer_norm_back")):
    text = resources.files("minifocal.fused").joinpath(file).read_text(encoding="utf-8")
    first = text.index(start)
    last = text.index("\n}\n", first)  # the brace that closes the function
    print(text[first : last + 2], "\n")

# %% [markdown]
# Lay it beside the reference of tutorial 4. `T` is the type, float or double. Each warp has one token, here called row
# `r`, which it finds from the number of its block (`blockIdx.x`), the number of warps in a block (`blockDim.y`) and its
# own number among them (`threadIdx.y`); warps past the last row return. `threadIdx.x` is the thread's number in its
# warp, its *lane*. Lane $l$ takes channels $l, l + 32, \dots$, so that the lanes read neighbours, one stretch of
# memory. (`V` is how many a lane takes at a time, 4 or 1. Read it with 1: then a `Vector` is one number, and the loops
# over `v` make one round. `__restrict__` and `#pragma unroll` only help the compiler.)
#
# `through_mean` is a *register*, a variable of which every lane has its own: first the sum over its channels.
# `warp_sum` adds up those of all lanes in five exchanges, at distances 16, 8, 4, 2 and 1. In an exchange
# (`__shfl_xor_sync`) each lane reads the register of a partner and adds it to its own. The partner is the lane whose
# number differs in one bit, the one that stands for the distance (in Python `lane ^ distance`). For 8 lanes that hold
# powers of two there are three exchanges:


# %%
def warp_sum(values, in_step=True, last=1):
    """values: a number for each lane. In step means that all lanes read before any of them writes."""
    values, distance = list(values), len(values) // 2
    while distance >= last:
        seen = list(values) if in_step else values
        for lane in range(len(values)):
            values[lane] = values[lane] + seen[lane ^ distance]
        distance //= 2
    return values


powers = [2**lane for lane in range(8)]
for last in (8, 4, 2, 1):  # 8 stops before the first exchange
    print(f"down to distance {last}:", *(f"{value:4}" for value in warp_sum(powers, last=last)))
print("a lane may read what another has changed:", warp_sum(powers, in_step=False), "(lane 0 notices nothing)")
assert warp_sum(powers) == [255] * 8

# %% [markdown]
# ## By hand
#
# The kernel as loops: over rows, in any order, and over lanes. `dy` and `x_hat` have shape $(R, C)$, $R$ rows of $C$
# channels. (Another kernel, `column_sums`, makes `dweight` and `dbias`. There the parts of a block's warps meet in
# shared memory, behind a barrier, `__syncthreads`, at which all wait for each other.)


# %%
def dx_by_warps(dy, cache, in_step=True):
    dx, (R, C) = np.zeros_like(dy), dy.shape
    for r in rng.permutation(R):
        through_mean, through_variance = np.zeros((2, LANES), dy.dtype)  # a register of each lane
        for lane in range(LANES):
            for c in range(lane, C, LANES):
                dx_hat = dy[r, c] * cache.weight[c]
                through_mean[lane] += dx_hat
                through_variance[lane] += dx_hat * cache.x_hat[r, c]
        through_mean, through_variance = warp_sum(through_mean, in_step), warp_sum(through_variance, in_step)
        for lane in range(LANES):
            for c in range(lane, C, LANES):
                hidden = through_mean[lane] / C + cache.x_hat[r, c] * (through_variance[lane] / C)
                dx[r, c] = (dy[r, c] * cache.weight[c] - hidden) * cache.rstd[r, 0]
    return dx


R, C = 11, 40  # lanes 0 to 7 have two channels, the others one
x, dy = rng.standard_normal((2, R, C))
weight, bias = rng.standard_normal((2, C))
_, cache = layer_norm_forward(x, weight, bias)
np.testing.assert_allclose(dx_by_warps(dy, cache), layer_norm_backward(dy, cache)[0], rtol=1e-12, atol=1e-13)
for in_step in (True, False):
    report = check_gradients(
        lambda x: layer_norm_forward(x, weight, bias), partial(dx_by_warps, in_step=in_step), {"x": x}, method="complex"
    )
    print(f"in step {in_step!s:<5} {'pass' if report.passed else 'FAIL'} relative error {report.relative_error:.0e}")
    assert report.passed == in_step

# %% [markdown]
# ## The order of a sum
#
# In floating point $(a + b) + c$ and $a + (b + c)$ differ in their last bits. An addition in float32 is off by at most
# a part $u = 2^{-24}$ of its result, half of NumPy's `eps`. A sum of $n$ numbers $x_i$, none of which goes through more
# than $d$ additions, is off by at most about $d\, u \sum_i |x_i|$: one by one, $d = n - 1$; by lanes and exchanges,
# $d = n / 32 - 1 + 5$. So a GPU's results are held against a CPU's with a tolerance. But one order gives the same bits
# every time, and the kernels never let it depend on which block comes first. (Below, all $x_i$ are positive.)

# %%
print("    n   worst error, in u: one by one (bound)   by lanes (bound)   sums that differ")
for n in (32, 256, 2048, 16384):
    numbers = rng.random((100, n), dtype=np.float32)
    exact = np.array([math.fsum(row) for row in numbers])
    by_lane = np.cumsum(numbers.reshape(100, n // LANES, LANES), axis=1)[:, -1]  # cumsum adds one by one
    sums = np.array([np.cumsum(numbers, axis=1)[:, -1], warp_sum(by_lane.T)[0]])
    errors, d = (abs(sums - exact) / exact).max(axis=1) / u, (n - 1, n // LANES + 4)
    print(f"{n:5} {errors[0]:29.1f} ({d[0]:5}) {errors[1]:10.1f} ({d[1]:5}) {(sums[0] != sums[1]).mean():18.0%}")
    assert (errors < d).all()
    assert (sums[0] != sums[1]).any()

# %% [markdown]
# ## Bytes
#
# On a GPU each array operation of the reference is a kernel, which reads its inputs from memory and writes its result.
# How many maps is that, if a map is all $R \cdot C$ numbers of `dy`? The library's function tells, given arrays of the
# type `Counted`: NumPy calls its `__array_ufunc__` in place of each operation, which counts and then computes as usual.
# Our kernel reads `dy` and `x_hat` and writes `dx` (when it reads a row for the second time, the row still lies in the
# fast memory of the chip); `column_sums` reads the same two.


# %%
class Counted(np.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        inputs = [np.asarray(array) for array in inputs]  # plain arrays, or this would call itself
        if "out" in options:
            options["out"] = np.asarray(options["out"][0])
        result = getattr(ufunc, method)(*inputs, **options)
        maps_read = sum(array.size == R * C for array in inputs)
        maps_written = int(result.size == R * C)
        steps.append(("sum" if method == "reduce" else ufunc.__name__, maps_read, maps_written))
        return result.view(Counted)


steps = []
layer_norm_backward(dy.view(Counted), type(cache)(*(array.view(Counted) for array in cache)))
steps = [step for step in steps if step[1]]  # without those that touch only a number for each row
maps = sum(read + written for _, read, written in steps)
assert (len(steps), maps) == (11, 21)

bars = [*steps, ("kernel layer_norm_backward", 2, 1), ("kernel column_sums", 2, 0)]
names = [name for name, _, _ in bars]
read = [maps_read for _, maps_read, _ in bars]
written = [maps_written for _, _, maps_written in bars]
_, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
axes.barh(range(len(names)), read, color="#0072B2", label="read")
axes.barh(range(len(names)), written, left=read, color="#D55E00", label="written")
axes.set(
    xlabel="maps that LayerNorm backward moves",
    title=f"{maps} maps by array operations, 5 by kernels",
    xlim=(0, 4),
    ylim=(12.6, -0.6),
)
axes.set(yticks=range(len(names)), yticklabels=names)
axes.legend()
plt.show()

# %% [markdown]
# What limits a kernel is told by how many operations it makes for each byte that it moves. NVIDIA's data sheet gives an
# H100 (SXM) $67 \cdot 10^{12}$ operations a second in float32, and $3.35 \cdot 10^{12}$ bytes a second from memory (the
# *bandwidth*): 20 operations in the time of a byte. With fewer, arithmetic waits for memory, and the time is the bytes
# divided by the bandwidth (the *roofline* argument).

# %%
for name, ratio in (  # a number has four bytes
    ("LayerNorm backward, 11 array operations", 11 / (4 * maps)),
    ("LayerNorm backward, two kernels", (4 + 5 + 3) / (4 * 5)),  # in the first pass, the second, and column_sums
    ("linear map, 96 to 384 channels, each token", 2 * 96 * 384 / (4 * (96 + 384))),
):
    print(f"{name:<42} {ratio:5.2f} operations a byte: at most {min(1, ratio / 20):4.0%} of the arithmetic")

# %% [markdown]
# LayerNorm can use 3 % of the arithmetic at best. The kernels calculate no less than the reference, but they move
# 21/5 = 4.2 times fewer bytes, in at most 3 launches instead of 11 (`column_sums` may need two). Matrix products are
# left to cuBLAS, NVIDIA's library for them. What is fast depends on the device. So with `ops="auto"` a model chooses
# its table by the device: `"cuda"` on a GPU, the fastest that is installed on a CPU.
#
# ## Questions
#
# 1. In `warp_sum` every lane adds in its own order. Why do all 32 get the same bits?
# 2. In `column_sums` a second launch sums over blocks. One would do if every block added its sums to `dbias` in memory
#    (*atomic* additions). What would be lost? Sum a float32 array of 1000 random numbers one by one, in 100 random
#    orders.
#
# ## Answers
#
# 1. In each exchange two lanes add the same two numbers, one as $a + b$ and the other as $b + a$. Floating-point
#    addition is commutative, though not associative; so after each exchange both hold the same bits.
# 2. Blocks finish in an order that changes from run to run, and with it the last bits: 100 orders typically give 20 to
#    40 different sums. Two runs of one program would drift apart, and a mistake could not be told from chance.
