"""Local self-attention: our layer, and other ways to compute it with PyTorch. It needs torch alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import LocalAttention
from ..ops.borders import inside
from .memory import peak_memory
from .timing import Labels, Result, Setting, Step, time_results

LARGEST = 1 << 28  # bytes: 'dense' is left out where its logits are larger
TENSORS = 3  # query, key and value come before the two tables


@dataclass(frozen=True)
class Attention(Setting):
    """Self-attention over a square window, with 8 heads and relative position embeddings (Stand-Alone's eq. 3).

    With the ``border`` 'zeros', keys and values outside the image are zeros that take part in the softmax. With 'mask'
    they take no part.
    """

    channels: int
    size: tuple[int, int]
    kernel_size: int = 7
    heads: int = 8
    border: str = 'zeros'

    @property
    def labels(self) -> Labels:
        """The labels of a :class:`.Result` of this attention."""
        shape = f'{self.channels}x{self.size[0]}x{self.size[1]}, K = {self.kernel_size}'
        return {'shape': shape, 'border': self.border, **super().labels}

    @property
    def padding(self) -> int:
        """The pixels around the image that take part in the softmax."""
        return self.kernel_size // 2 if self.border == 'zeros' else 0

    @property
    def logits_bytes(self) -> int:
        """The bytes of the logits of 'dense', between all pixels."""
        keys = prod(size + 2 * self.padding for size in self.size)
        return self.batch * self.heads * prod(self.size) * keys * self.dtype.itemsize

    def inputs(self) -> tuple[Tensor, ...]:
        """Returns random query, key and value (N, C, H, W), and embeddings of rows and columns (C / heads / 2, K)."""
        half = self.channels // self.heads // 2
        tables = (self.randn(half, self.kernel_size) / self.kernel_size for _ in range(2))
        return *(self.randn(self.batch, self.channels, *self.size) for _ in range(TENSORS)), *tables

    def taps_inside(self) -> Tensor:
        """Returns booleans (K, K, H, W): whether a tap takes part in the softmax."""
        k = self.kernel_size
        taps = inside(self.size, (k, k), (1, 1), (k // 2, k // 2), (1, 1), torch.device(self.device))
        return taps | (self.border == 'zeros')

    def position_logits(self, query: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Returns the products of queries and embeddings (N, heads, K, K, H, W), minus infinity at masked taps."""
        halves = query.unflatten(1, (self.heads, 2, -1))
        row = torch.einsum('ngcij,cu->nguij', halves[:, :, 0], rows)
        column = torch.einsum('ngcij,cv->ngvij', halves[:, :, 1], columns)
        logits = row.unsqueeze(3) + column.unsqueeze(2)
        return logits if self.border == 'zeros' else logits.masked_fill(~self.taps_inside(), float('-inf'))

    def axis_logits(self, query: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the terms of 'dense' for the row and the column of a key: (N, heads, H, W, 1, W') and so on.

        They are minus infinity where the key is not in the window of the query.
        """
        halves = query.unflatten(1, (self.heads, 2, -1)).unbind(2)
        (row, row_outside), (column, column_outside) = (
            _along(table, size, self.padding) for table, size in zip((rows, columns), self.size, strict=True)
        )
        row_term = torch.einsum('ngcij,cia->ngija', halves[0], row).masked_fill(row_outside[:, None], float('-inf'))
        column_term = torch.einsum('ngcij,cjb->ngijb', halves[1], column).masked_fill(column_outside, float('-inf'))
        return row_term, column_term

    def heads_last(self, x: Tensor, padding: int = 0) -> Tensor:
        """Pads (N, C, H, W) with zeros and returns (N, heads, pixels, C / heads), as PyTorch's attention needs it."""
        return F.pad(x, (padding,) * 4).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)

    def image(self, x: Tensor) -> Tensor:
        """Returns the result of PyTorch's attention as (N, C, H, W)."""
        return x.transpose(2, 3).reshape(x.shape[0], -1, *self.size)


def _along(table: Tensor, size: int, padding: int) -> tuple[Tensor, Tensor]:
    """Returns the embeddings of all pairs of a query and a key on one axis, and which keys are outside the window."""
    taps = (
        torch.arange(-padding, size + padding, device=table.device) - torch.arange(size, device=table.device)[:, None]
    )
    taps = taps + table.shape[1] // 2
    return table[:, taps.clamp(0, table.shape[1] - 1)], (taps < 0) | (taps >= table.shape[1])


class _Given(nn.Module):
    """Returns ``tensor`` for every input. It takes the place of a projection."""

    tensor: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.tensor


def layer(problem: Attention) -> Callable[..., Tensor]:
    """Returns :class:`.LocalAttention` with query, key, value and embeddings as arguments."""
    query_, key_, value_ = (_Given() for _ in range(TENSORS))
    attention = LocalAttention(
        problem.channels, problem.kernel_size, groups=problem.heads, border=problem.border, value=value_
    )
    phi = attention.kernel_generation
    phi.query, phi.key = query_, key_
    del phi.rows, phi.columns

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        query_.tensor, key_.tensor, value_.tensor = query, key, value
        phi.rows, phi.columns = rows, columns
        return attention(value)

    return run


def unfold(problem: Attention, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Copies the windows of keys and values, and multiplies them with ``einsum``."""
    k, heads = problem.kernel_size, problem.heads
    keys, values = (
        F.unfold(x, k, padding=k // 2).unflatten(2, problem.size).unflatten(1, (heads, -1, k * k)) for x in (key, value)
    )
    logits = torch.einsum('ngcij,ngctij->ngtij', query.unflatten(1, (heads, -1)), keys)
    logits = logits + problem.position_logits(query, rows, columns).flatten(2, 3)
    return torch.einsum('ngtij,ngctij->ngcij', logits.softmax(2), values).flatten(1, 2)


def taps(problem: Attention, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Adds the taps of the window in a loop, each with a shifted view of the padded keys and values."""
    (height, width), k = problem.size, problem.kernel_size
    query_heads = query.unflatten(1, (problem.heads, -1))
    keys, values = (F.pad(x, (k // 2,) * 4).unflatten(1, (problem.heads, -1)) for x in (key, value))
    windows = [(..., slice(u, u + height), slice(v, v + width)) for u in range(k) for v in range(k)]
    products = torch.stack([(query_heads * keys[window]).sum(2) for window in windows], 2)
    weights = (products + problem.position_logits(query, rows, columns).flatten(2, 3)).softmax(2)
    terms = (weight.unsqueeze(2) * values[window] for weight, window in zip(weights.unbind(2), windows, strict=True))
    return sum(terms, start=query.new_zeros(())).flatten(1, 2)


def dense(problem: Attention, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Runs ``scaled_dot_product_attention`` on all pixels, with a mask that contains the position logits."""
    row, column = problem.axis_logits(query, rows, columns)
    mask = (row.unsqueeze(5) + column.unsqueeze(4)).flatten(4, 5).flatten(2, 3)
    keys, values = (problem.heads_last(x, problem.padding) for x in (key, value))
    out = F.scaled_dot_product_attention(problem.heads_last(query), keys, values, mask, scale=1.0)
    return problem.image(out)


def flex(problem: Attention) -> Callable[..., Tensor]:
    """Compiles FlexAttention for the window. It has no gradients on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    half, width = problem.kernel_size // 2, problem.size[1]
    keys_high, keys_wide = (size + 2 * problem.padding for size in problem.size)

    def distances(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return k // keys_wide - problem.padding - q // width, k % keys_wide - problem.padding - q % width

    def in_window(batch, head, q, k):
        down, right = distances(q, k)
        return (down.abs() <= half) & (right.abs() <= half)

    sizes = prod(problem.size), keys_high * keys_wide
    block_mask = create_block_mask(in_window, None, None, *sizes, device=str(problem.device))
    compiled: Any = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def run(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        halves = query.unflatten(1, (problem.heads, 2, -1)).flatten(4).unbind(2)
        row, column = (
            torch.einsum('ngcp,ck->ngpk', half, table) for half, table in zip(halves, (rows, columns), strict=True)
        )

        def add_positions(score, batch, head, q, k):
            down, right = (distance.clamp(-half, half) + half for distance in distances(q, k))
            return score + row[batch, head, q, down] + column[batch, head, q, right]

        keys, values = (problem.heads_last(x, problem.padding).contiguous() for x in (key, value))
        queries = problem.heads_last(query).contiguous()
        return problem.image(compiled(queries, keys, values, add_positions, block_mask, scale=1.0))

    return run


def compiled_taps(problem: Attention) -> Callable[..., Tensor]:
    """Compiles :func:`taps`."""
    return torch.compile(partial(taps, problem), fullgraph=True, dynamic=False)


CANDIDATES: dict[str, Callable[[Attention], Callable[..., Tensor]]] = {
    'layer': layer,
    'unfold': partial(partial, unfold),
    'taps': partial(partial, taps),
    'dense': partial(partial, dense),
    'compiled taps': compiled_taps,
    'compiled flex': flex,
}


def applies(candidate: str, problem: Attention) -> bool:
    """Returns whether a candidate can compute a problem."""
    if candidate == 'dense':
        return problem.logits_bytes <= LARGEST
    return candidate != 'compiled flex' or problem.phase == 'forward' or torch.device(problem.device).type == 'cuda'


def attention_step(candidate: str, problem: Attention) -> Step:
    """Returns a function that runs the phase of a problem ('forward' or 'training') once, with a candidate."""
    inputs = problem.inputs()
    return problem.step(CANDIDATES[candidate](problem), inputs, inputs[0].shape)


def stand_alone(
    batches: Sequence[int], dtypes: Sequence[torch.dtype], device: str | torch.device, channels_last: bool = False
) -> list[Attention]:
    """Returns the attention of Stand-Alone ResNet's four stages, for images of 224x224.

    Those of the last two stages are also there with masked borders: 'dense' is at its best with them.
    """
    stages = [(border, stage) for border, first in (('zeros', 0), ('mask', 2)) for stage in range(first, 4)]
    place: Any = dict(device=device, channels_last=channels_last)
    return [
        Attention(
            64 << stage, (56 >> stage, 56 >> stage), border=border, batch=batch, dtype=dtype, phase=phase, **place
        )
        for dtype in dtypes
        for batch in batches
        for border, stage in stages
        for phase in ('forward', 'training')
    ]


def benchmark_attention(problems: Sequence[Attention], budget: float, compiled: bool = False) -> Iterator[Result]:
    """Times candidates in turns, and measures their peak memory. Yields milliseconds, then MiB.

    ``compiled`` adds those that ``torch.compile`` compiles; their memory is not measured. ``budget`` is in seconds for
    each problem.
    """
    memory = []
    for problem in problems:
        torch.compiler.reset()  # dynamo compiles one function for at most eight shapes
        names = [name for name in CANDIDATES if applies(name, problem) and (compiled or 'compiled' not in name)]
        steps = {name: attention_step(name, problem) for name in names}
        yield from time_results(steps, {**problem.labels, 'unit': 'ms'}, problem.device, budget)
        memory += [(problem, name) for name in names if 'compiled' not in name]
    for problem, name in memory:
        small = replace(problem, channels=16, size=(8, 8), batch=1)
        build, warm_up = (partial(attention_step, name, p) for p in (problem, small))
        peak = peak_memory(build, warm_up, problem.device) / 2**20
        yield Result({**problem.labels, 'unit': 'MiB'}, name, 'MiB', (peak,))
