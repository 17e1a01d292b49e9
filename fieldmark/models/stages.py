"""Images -> means and mean squares of every stage's channels, on the grid of the last map: for the multi-stage head.

Early stages know of edges, textures and colours what the last map has given up for ImageNet's classes. On images unlike
ImageNet's a classifier of all stages is the better one (Evci et al. 2022, "Head2Toe: Utilizing Intermediate
Representations for Better Transfer Learning").
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone
from fieldmark.models.layers import at_least_float32, without_autocast


class StageMaps(NamedTuple):
    """What the first layers of a backbone pass on to the others.

    Attributes:
        map: (n, c, h, w), the output of the last of these layers.
        moments: (n, 2k), means and then mean squares of the k channels of the stages that end in these layers.
    """

    map: Tensor
    moments: Tensor

    def chunk(self, count: int) -> list["StageMaps"]:
        """The images in `count` parts, as `Tensor.chunk`."""
        return [StageMaps(*part) for part in zip(self.map.chunk(count), self.moments.chunk(count), strict=True)]

    def pack(self) -> Tensor:
        """Everything of an image in one row, (n, c * h * w + 2k)."""
        return torch.cat([self.map.flatten(1).float(), self.moments], 1)

    @classmethod
    def unpack(cls, rows: Tensor, shape: tuple[int, ...]) -> "StageMaps":
        """The inverse of `pack` for maps of `shape` (c, h, w)."""
        count = math.prod(shape)
        maps = rows[:, :count].unflatten(1, shape).contiguous(memory_format=torch.channels_last)
        return cls(maps, rows[:, count:])


LayerInput = Tensor | StageMaps
"""What layers get from those before them."""


class MultiStageBackbone(Backbone):
    """A backbone whose output (n, 2k, h', w') holds the moments of all its stages, k channels in all.

    The first k channels are the stages' maps, averaged over the cells of the last map's grid (h', w'), the others their
    squares, averaged likewise; the mean over the cells is that over all positions.
    """

    def forward(self, x: LayerInput) -> Tensor:  # type: ignore[override]  # nn.Sequential's parameter is `input`
        before, x = (x.moments, x.map) if isinstance(x, StageMaps) else (None, x)
        ends, last = _run(self, x)
        means, squares = _moments_of_stages(ends, last)
        if before is not None:
            grid = last.shape[2:]
            first_means, first_squares = (part[..., None, None].expand(-1, -1, *grid) for part in before.chunk(2, 1))
            means, squares = [first_means, *means], [first_squares, *squares]
        return torch.cat([*means, *squares], 1)

    def split_after(self, name: str) -> tuple["Backbone", "Backbone"]:
        """As `Backbone.split_after`; the first part returns StageMaps, which the second one takes."""
        first, rest = super().split_after(name)
        return StagePrefix.of(first), rest


class StagePrefix(Backbone):
    """The first layers of a MultiStageBackbone: images -> StageMaps."""

    def forward(self, x: Tensor) -> StageMaps:  # type: ignore[override]  # nn.Sequential's parameter is `input`
        return _prefix_output(*_run(self, x))


class LastMapBackbone(Backbone):
    """The layers of a MultiStageBackbone, whose output is the last map alone, (n, c, h, w)."""

    def forward(self, x: LayerInput) -> Tensor:  # type: ignore[override]  # nn.Sequential's parameter is `input`
        return super().forward(x.map if isinstance(x, StageMaps) else x)


def run_in_two_parts(first: StagePrefix, rest: MultiStageBackbone, x: Tensor) -> tuple[StageMaps, Tensor]:
    """Outputs of the first layers and of all layers of a split backbone.

    The latter is to the bit that of the whole backbone, wherever it is split: `rest(first(x))` rounds the moments of
    the first stages differently.
    """
    first_ends, between = _run(first, x)
    ends, last = _run(rest, between)
    means, squares = _moments_of_stages([*first_ends, *ends], last)
    return _prefix_output(first_ends, between), torch.cat([*means, *squares], 1)


def _moments_of_stages(ends: list[Tensor], last: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Means and mean squares of the stages' maps on the grid of the last map."""
    maps = [*ends[:-1], last]  # what follows the last stage's end, as a norm, belongs to it
    means, squares = zip(*(average_moments(stage, last.shape[2:]) for stage in maps), strict=True)
    return list(means), list(squares)


def _prefix_output(ends: list[Tensor], last: Tensor) -> StageMaps:
    means, squares = zip(*(average_moments(stage, (1, 1)) for stage in ends), strict=True) if ends else ((), ())
    moments = torch.cat([*means, *squares], 1).flatten(1) if ends else last.new_empty(len(last), 0)
    return StageMaps(last, moments)


def _run(layers: nn.Sequential, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The maps at the ends of the stages, behind attention that follows them, and the output."""
    ends: list[Tensor] = []
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential) and _has_stage_ends(layer):
            inner, x = _run(layer, x)
            ends += inner
        else:
            x = layer(x)
        if hasattr(layer, "stage_channels"):
            ends.append(x)
        elif ends and isinstance(layer, Attention) and name.startswith("after_"):
            ends[-1] = x
    return ends, x


def _has_stage_ends(layers: nn.Sequential) -> bool:
    return any(hasattr(layer, "stage_channels") for layer in layers.modules() if layer is not layers)


SAMPLED_SIDE = 28
"""A map is sampled at the least stride that leaves fewer than twice as many rows and columns."""


def average_moments(x: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Means of x and of x^2 over the equal cells of a grid: (n, c, h, w) -> each float32 (n, c, rows, columns).

    Of the large maps of the first stages only some positions are read, which tell as much about the mean and the
    deviation of a texture. All of them would take a tenth of the time of a small network.
    """
    row_stride, column_stride = (max(1, side // SAMPLED_SIDE) for side in x.shape[2:])
    if max(row_stride, column_stride) > 1:
        x = x[:, :, ::row_stride, ::column_stride]
    with without_autocast(x):  # squares in bfloat16 have no digits left for a variance
        x = at_least_float32(x)
        return _average_cells(x, grid), _average_cells(x.square(), grid)


def _average_cells(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    height, width = x.shape[2:]
    if grid == (1, 1):
        return x.mean((2, 3), keepdim=True)
    if (height, width) == tuple(grid):
        return x
    if height % grid[0] == 0 and width % grid[1] == 0:
        return functional.avg_pool2d(x, (height // grid[0], width // grid[1]))
    rows, columns = (
        x.new_tensor(_cell_weights(size, cells)) for size, cells in zip((height, width), grid, strict=True)
    )
    return rows.T @ (x @ columns)


def _cell_weights(size: int, cells: int) -> list[list[float]]:
    """The share (size, cells) of each position in each cell's mean; one on a border counts in both by its overlap."""
    width = size / cells
    return [
        [max(0.0, min(p + 1, (k + 1) * width) - max(p, k * width)) / width for k in range(cells)] for p in range(size)
    ]
