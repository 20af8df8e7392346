"""Pictures as a model is shown them, kept between runs and epochs in a byte a value.

A model's transform resizes 8-bit pictures, and then maps each level by itself: to [0, 1], less a
mean, over a spread. So its pixels are a byte each and a table of 256 levels a channel, and come
back from these to the last bit. Pixels of which that is not true are kept as they are.
B pictures, H,W their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdslib.io import shared
from sdslib.io.images import ImageRef

_BATCHES = 4  # a file; more would take memory where pictures are large
_MOST_BYTES = shared.MOST_BYTES // 4  # of a set: a larger one would leave no room for others
_MOST_IN_MEMORY = 2**28  # bytes of a set that training keeps by it


def batches(
    refs: Sequence[ImageRef],
    batch_size: int,
    size: tuple[int, int],
    transform: Callable[[Image.Image], Tensor],
    told: Any,
    load: Callable[[Sequence[ImageRef]], Tensor],
) -> Iterator[Tensor]:
    """What `load` gives of each batch of the pictures, [B, 3, H, W], or gave to another run.

    `told` is what decides it beside the pictures, as plain values; `transform` ends what `load`
    does, and gives pictures of `size`.
    """
    parts = [refs[start : start + batch_size] for start in range(0, len(refs), batch_size)]
    if shared.folder() is None or len(refs) * 3 * size[0] * size[1] > _MOST_BYTES:
        yield from map(load, parts)
        return
    table = levels(transform, size)
    for start in range(0, len(parts), _BATCHES):
        block = parts[start : start + _BATCHES]
        yield from (unpacked(part, table) for part in _kept(block, table, told, load))


class Kept:
    """The pictures of a small set, which every epoch shows again, in memory.

    `count` is how many there are, `transform` what each goes through. A set of more than
    `_MOST_IN_MEMORY` bytes is read anew each time.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], count: int) -> None:
        self._transform, self._count = transform, count
        self._places: dict[int, Tensor] = {}
        self._table = torch.empty(0)

    def __call__(self, index: Sequence[int], load: Callable[[int], Tensor]) -> Tensor:
        """The pictures [B, 3, H, W] of these numbers; `load` gives those that are not kept."""
        new = {i: load(i) for i in index if i not in self._places}
        self._keep(new)
        if not new:
            return unpacked(torch.stack([self._places[i] for i in index]), self._table)
        known = [i for i in index if i not in new]
        found = new | {i: unpacked(self._places[i][None], self._table)[0] for i in known}
        return torch.stack([found[i] for i in index])

    def _keep(self, new: Mapping[int, Tensor]) -> None:
        shapes = {pixels.shape for pixels in new.values()}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 3:
            return
        if self._count * shape.numel() > _MOST_IN_MEMORY:
            return
        if not len(self._table):
            self._table = levels(self._transform, (shape[1], shape[2]))
        for index, pixels in new.items():
            if (places := _places(pixels[None], self._table)) is not None:
                self._places[index] = places[0]


def _kept(
    block: Sequence[Sequence[ImageRef]],
    table: Tensor,
    told: Any,
    load: Callable[[Sequence[ImageRef]], Tensor],
) -> Sequence[Tensor]:
    keys = [[ref.key for ref in part] for part in block]
    known = {"batches": keys, "transform": told, "levels": table.tolist()}
    found = shared.tensors("pixels", lambda: known, lambda: packed(map(load, block), table))
    return found["pixels"].split(len(block[0]))


def levels(transform: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Tensor:
    """What the transform makes of each level 0…255 in each channel, [3, 256]."""
    gray = np.resize(np.arange(256, dtype=np.uint8), size)
    return transform(Image.fromarray(gray).convert("RGB")).reshape(3, -1)[:, :256].contiguous()


def packed(pixels: Iterable[Tensor], table: Tensor) -> dict[str, Tensor]:
    """Batches one after the other, as places in the table of levels where that is exact."""
    found = [(_places(part, table), part) for part in pixels]
    if any(places is None for places, _ in found):
        return {"pixels": torch.cat([part for _, part in found])}
    return {"pixels": torch.cat([places for places, _ in found if places is not None])}


def _places(pixels: Tensor, table: Tensor) -> Tensor | None:
    near = [torch.searchsorted(own, pixels[:, c].contiguous()) for c, own in enumerate(table)]
    places = torch.stack(near, dim=1).clamp(max=table.shape[1] - 1).to(torch.uint8)
    return places if torch.equal(unpacked(places, table), pixels) else None


def unpacked(kept: Tensor, table: Tensor) -> Tensor:
    """The pixels that `packed` was given."""
    if kept.dtype != torch.uint8:
        return kept
    return torch.stack([own[kept[:, c].int()] for c, own in enumerate(table)], dim=1)
