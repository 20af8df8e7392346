"""Several processes that train one model: the same batch in parts, gathered, averaged, stopped.

torchrun or `accelerate launch` says by its environment who takes part. Alone, every function here
is the identity, so a caller need not ask. All processes must call the same ones in the same order.
b rows of one process, B of all of them together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

T = TypeVar("T")
# One process scores its benchmarks while the others wait; one that died is noticed at once.
PATIENCE = timedelta(hours=6)


class PeerLost(RuntimeError):
    """Another process of the group is gone, so that this one cannot go on either."""


def count() -> int:
    """How many processes there are, by what launched them; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def place() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return place() == 0


def join(device: torch.device) -> torch.device:
    """Meet the other processes, and give this one's own device of that kind."""
    if count() == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        _heard(dist.init_process_group, backend, timeout=PATIENCE)
    return device


def leave() -> None:
    """Part from the other processes; the end of a program."""
    if dist.is_initialized():
        dist.destroy_process_group()


def part(size: int) -> slice:
    """The rows of a batch of B = `size` that are this process's; all parts are of one size."""
    own, rest = divmod(size, count())
    if rest:
        raise ValueError(f"a batch of {size} cannot be divided among {count()} processes")
    return slice(place() * own, (place() + 1) * own)


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in order: [b, ...] -> [B, ...], with their gradient.

    Each process computes the same loss of [B, ...], and `mean_gradients` then gives the loss's own
    gradient, as of one process: the B rows get the sum of all processes' gradients, each of which
    is the whole one.
    """
    return rows if count() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    # torch.distributed.nn's all_gather gives the same gradient, but a process that is lost in its
    # backward is a RuntimeError like any fault of our own; and it is on its way out of torch.
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        found = [torch.empty_like(rows) for _ in range(count())]
        _heard(dist.all_gather, found, rows)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        _heard(dist.all_reduce, grad)
        return grad[part(len(grad))]


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's mean over the processes, through one exchange."""
    if count() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _heard(dist.all_reduce, flat)
    parts = (flat / count()).split([tensor.numel() for tensor in tensors])
    return [found.view_as(tensor) for found, tensor in zip(parts, tensors, strict=True)]


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of all gradients; one that no process has stays None."""
    if count() == 1:
        return
    chosen = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
    has = torch.tensor([float(p.grad is not None) for p in chosen], device=chosen[0].device)
    *grads, has = mean([*grads, has])
    for parameter, grad, share in zip(chosen, grads, has.tolist(), strict=True):
        parameter.grad = grad if share else None


def same(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values, in place."""
    for tensor in tensors if count() > 1 else ():
        _heard(dist.broadcast, tensor.detach(), 0)


def told(make: Callable[[], T]) -> T:
    """What the main process makes, for all of them; it is made there alone."""
    box: list[Any] = [make() if is_main() else None]
    if count() > 1:
        _heard(dist.broadcast_object_list, box, 0)
    return box[0]


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether any process says so."""
    return bool(mean([torch.tensor([float(flag)], device=device)])[0].item())


def main_first(make: Callable[[], T]) -> T:
    """`make()` in every process, in the main one before the others: what it leaves is there."""
    found = make() if is_main() else None
    told(lambda: None)
    return make() if found is None else found


def _heard(exchange: Callable[..., object], *given: Any, **options: Any) -> None:
    try:
        exchange(*given, **options)
    except RuntimeError as error:  # torch has no type of its own for a closed connection
        if "out of memory" in str(error):
            raise
        print(f"process {place()}: {str(error).splitlines()[0]}", file=sys.stderr)
        raise PeerLost(
            f"process {place()} of {count()} lost another one, which ended or was killed; run "
            "again to go on from the last checkpoint"
        ) from error
