"""What `pooling` does on the CPU, by torch's own operations, for rows that are on another device.

torch sorts the ids in the backward pass of its embeddings, so a row's gradient is summed in the
same order each time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from downpour.transfer import placed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from downpour.pooling import BagLayout


def torch_pool(rows: torch.Tensor, layout: BagLayout) -> torch.Tensor:
    """Pool rows [num_unique, dim] into bags [batch, num_features, dim] on the rows' device."""
    parts = [_ids_of(layout, feature) for feature in range(layout.num_features)]
    ids = placed(_joined(layout.inverse, parts), rows.device)
    shape = layout.num_features, layout.batch_size
    if not len(layout.offsets) and not len(layout.scale):
        return torch.nn.functional.embedding(ids.view(shape).t(), rows)
    scale = None
    if len(layout.scale):
        scale = placed(_joined(layout.scale, parts), rows.device).to(rows.dtype)
    bags = torch.nn.functional.embedding_bag(
        ids,
        rows,
        placed(_bounds(layout, parts, layout.inverse.dtype), rows.device),
        mode="sum",
        per_sample_weights=scale,
        include_last_offset=True,
    )
    return bags.view(*shape, rows.shape[1]).transpose(0, 1).contiguous()


def _ids_of(layout: BagLayout, feature: int) -> slice:
    """Where a feature's ids are in `inverse`."""
    start, at = int(layout.starts[feature]), int(layout.offset_at[feature])
    size = layout.batch_size if at < 0 else int(layout.offsets[at + layout.batch_size])
    return slice(start, start + size)


def _joined(array: NDArray[np.generic], parts: list[slice]) -> NDArray[np.generic]:
    """Parts of an array one after the other; a view where they are so in it."""
    if all(part.start == before.stop for before, part in pairwise(parts)):
        return array[parts[0].start : parts[-1].stop]
    return np.concatenate([array[part] for part in parts])


def _bounds(
    layout: BagLayout, parts: list[slice], dtype: np.dtype[np.generic]
) -> NDArray[np.generic]:
    """The first of the joined ids of each bag, feature by feature, and the end of the last."""
    size = layout.batch_size
    bounds = np.empty(len(parts) * size + 1, dtype)
    one_each, start = np.arange(size), 0
    for feature, (part, at) in enumerate(zip(parts, layout.offset_at.tolist(), strict=True)):
        own = one_each if at < 0 else layout.offsets[at : at + size]
        bounds[feature * size : (feature + 1) * size] = start + own
        start += part.stop - part.start
    bounds[-1] = start
    return bounds
