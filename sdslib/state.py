"""Module and optimizer state as flat named tensors, so that it fits safetensors and JSON alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pack_state(
    modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """Everything needed to go on training: `<module>.<parameter>` and `optimizer.<i>.<slot>`."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value).cpu().clone()
    return tensors


def unpack_state(
    tensors: dict[str, Tensor],
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Put back what `pack_state` took; a missing or surplus module tensor raises RuntimeError."""
    for name, module in modules.items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    if optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, slot = key.split(".")
                state.setdefault(int(index), {})[slot] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
