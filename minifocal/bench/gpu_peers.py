"""The same networks in PyTorch on a GPU, in the same precision."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from minifocal.bench.measure import NotMeasuredError
from minifocal.bench.peers import COMPILED
from minifocal.bench.workloads import LEARNING_RATE, Mode, Workload
from minifocal.errors import one_line


def prepare(way: str, workload: Workload, mode: Mode, precision: str, index: int) -> Callable[[], float]:
    """Build a network in PyTorch; give the function that makes one training step or infers one batch, and times it.

    Args:
        way: "torch eager" or "torch compiled". precision: "bfloat16" and "float16" by autocast; TF32, a setting of the
            whole process, is on for "tf32" alone. index: of the GPU.
    Raises:
        NotMeasuredError: PyTorch sees no GPU, or cannot compile.
    """
    from minifocal.bench.torch_nets import build

    torch: Any = import_module("torch")
    if not torch.cuda.is_available():
        raise NotMeasuredError("PyTorch sees no GPU: it is installed without CUDA, or for another driver")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    model = build(workload.config).train(mode.training).to(device)
    images, labels = (torch.from_numpy(array).to(device) for array in workload.draw(mode))
    logits_of = torch.compile(model, dynamic=False) if way == COMPILED else model
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)

    def compute_in() -> Any:
        return nullcontext() if half is None else torch.autocast("cuda", dtype=half)

    if mode.training:
        scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
        run = _training(torch, model, logits_of, images, labels, compute_in, scaler)
    else:
        run = _inference(torch, logits_of, images, compute_in)
    if way == COMPILED:
        try:
            run()
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = one_line(str(error).strip().partition("\n")[0])
            raise NotMeasuredError(f"torch.compile does not work here: {reason}") from error
    return lambda: _elapsed(torch, run)


def reserved_bytes() -> int:
    """Count the bytes of the device's memory that PyTorch has taken at most."""
    return int(import_module("torch").cuda.max_memory_reserved())


def _training(
    torch: Any, model: Any, logits_of: Any, images: Any, labels: Any, compute_in: Callable[[], Any], scaler: Any
) -> Callable[[], object]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # what the optimizer here decays
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with compute_in():
            loss = torch.nn.functional.cross_entropy(logits_of(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _inference(torch: Any, logits_of: Any, images: Any, compute_in: Callable[[], Any]) -> Callable[[], object]:
    def infer() -> None:
        with torch.inference_mode(), compute_in():
            logits_of(images)

    return infer


def _elapsed(torch: Any, run: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000.0
