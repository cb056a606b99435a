"""The same networks in PyTorch, in three ways. PyTorch and transformers are imported when one is asked for."""

import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import Any

from minifocal.bench.measure import NotMeasuredError
from minifocal.bench.workloads import LEARNING_RATE, Mode, Workload
from minifocal.errors import one_line
from minifocal.threads import thread_count

WAYS = EAGER, CHANNELS_LAST, COMPILED = "torch eager", "torch channels-last", "torch compiled"


def missing() -> list[str]:
    """Name the packages that are not installed, without importing those that are."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def prepare(way: str, workload: Workload, mode: Mode) -> Callable[[], object]:
    """Build a network in PyTorch, and give the function that makes one training step or infers one batch.

    Args:
        way: of WAYS.
    Raises:
        NotMeasuredError: PyTorch cannot compile here, for want of a C++ compiler for example.
    """
    from minifocal.bench.torch_nets import build

    torch: Any = import_module("torch")
    torch.set_num_threads(thread_count())
    model = build(workload.config).train(mode.training)
    images, labels = map(torch.from_numpy, workload.draw(mode))
    if way == CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    logits_of = torch.compile(model, dynamic=False) if way == COMPILED else model
    run = _training(torch, model, logits_of, images, labels) if mode.training else _inference(torch, logits_of, images)
    if way == COMPILED:
        try:
            run()
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = one_line(str(error).strip().partition("\n")[0])
            raise NotMeasuredError(f"torch.compile does not work here: {reason}") from error
    return run


def _training(torch: Any, model: Any, logits_of: Any, images: Any, labels: Any) -> Callable[[], object]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # what the optimizer here decays
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits_of(images), labels).backward()
        optimizer.step()

    return step


def _inference(torch: Any, logits_of: Any, images: Any) -> Callable[[], object]:
    def infer() -> None:
        with torch.inference_mode():
            logits_of(images)

    return infer
