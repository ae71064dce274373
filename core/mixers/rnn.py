"""LSTM and GRU: the recurrences that attention took the place of, with fair starts.

Two forms each: the cell, token by token, which can hold its state and clear it where a document begins, and PyTorch's
kernel over the whole row, used where nothing has to be held.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from .convolution import ShortConvolution
from .recurrent import RecurrentMixer, Row, State, exact
from .recurrent_options import GRUOptions, LSTMOptions

Hidden = tuple[Tensor, ...]
"""h, or h and c, each `[batch, width]`."""


def lstm_cell(pre: Tensor, recurrent: Tensor, hidden: Hidden) -> Hidden:
    """One step (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    `pre` and `recurrent` `[batch, 4·width]` are what input and state contribute to input gate, forget gate, candidate
    and output gate, in this order.
    """
    i, f, g, o = (pre + recurrent).chunk(4, dim=-1)
    c = hidden[1]
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(pre: Tensor, recurrent: Tensor, hidden: Hidden) -> Hidden:
    """One step (Cho et al. 2014; the reset gate acts after the recurrent product, as in PyTorch and cuDNN).

    `pre` and `recurrent` `[batch, 3·width]` are what input and state contribute to reset gate, update gate and
    candidate, in this order.
    """
    r, z, n = pre.chunk(3, dim=-1)
    hr, hz, hn = recurrent.chunk(3, dim=-1)
    z = (z + hz).sigmoid()
    return ((1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * hidden[0],)


class _RecurrentNetwork(RecurrentMixer):
    """out(h), h from a cell. `input` and `recurrent` hold the gates one below the other."""

    GATES: int
    memories: tuple[str, ...]
    """What the state holds."""
    cell: Callable[[Tensor, Tensor, Hidden], Hidden]

    def __init__(self, config: TransformerConfig, options: LSTMOptions | GRUOptions) -> None:
        super().__init__()
        self.width = options.width or 0
        self.conv = ShortConvolution(config.dim, options.conv, options.conv_bias) if options.conv else None
        self.input = nn.Linear(config.dim, self.GATES * self.width)
        self.recurrent = nn.Linear(self.width, self.GATES * self.width)
        self.out = nn.Linear(self.width, config.dim, bias=options.biased(config.bias, "out"))

    @torch.no_grad()
    def initialise(self, config: TransformerConfig) -> None:
        """Each gate's recurrent matrix orthogonal."""
        for gate in self.recurrent.weight.chunk(self.GATES):
            nn.init.orthogonal_(gate)

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        if self.conv is not None:
            x, inputs = self.conv(x, row, state.get("inputs"))
            state.put("inputs", inputs)
        dtype, x = x.dtype, x.to(self.input.bias.dtype)
        zero = x.new_zeros(x.shape[0], self.width)
        hidden = tuple(zero if (h := state.get(name)) is None else h for name in self.memories)
        with exact(x):
            weights = [self.input.weight, self.recurrent.weight, self.input.bias, self.recurrent.bias]
            plain = isinstance(self.recurrent, nn.Linear)  # compressed weights can only be called
            if plain and row.begins is None and row.count is None:
                y, hidden = self.kernel(x, hidden, weights)
            else:
                y, hidden = self.reference(x, hidden, row)
        for name, kept in zip(self.memories, hidden, strict=True):
            state.put(name, kept)
        return self.out(y.to(dtype))

    def reference(self, x: Tensor, hidden: Hidden, row: Row) -> tuple[Tensor, Hidden]:
        """Token by token. `[batch, tokens, dim]` -> h `[batch, tokens, width]`, and the state after the last real
        token.
        """
        pre, outputs = self.input(x), []
        for t in range(x.shape[1]):
            if row.begins is not None:
                hidden = tuple(h.masked_fill(row.begins[:, t, None], 0.0) for h in hidden)
            new = self.cell(pre[:, t], self.recurrent(hidden[0]), hidden)
            if row.count is not None:
                real = (row.count > t)[:, None]
                new = tuple(torch.where(real, n, h) for n, h in zip(new, hidden, strict=True))
            hidden = new
            outputs.append(hidden[0])
        return torch.stack(outputs, dim=1), hidden

    def kernel(self, x: Tensor, hidden: Hidden, weights: list[Tensor]) -> tuple[Tensor, Hidden]:
        """The same by one call of PyTorch, for rows of real tokens of one document."""
        raise NotImplementedError


class LSTM(_RecurrentNetwork):
    """Long short-term memory. The bias of the forget gate starts at 1 (Jozefowicz et al. 2015)."""

    GATES, memories = 4, ("h", "c")
    cell = staticmethod(lstm_cell)

    @torch.no_grad()
    def initialise(self, config: TransformerConfig) -> None:
        """Orthogonal recurrent matrices; the forget gate's bias 1, the others 0."""
        super().initialise(config)
        self.input.bias.chunk(4)[1].fill_(1.0)

    def kernel(self, x: Tensor, hidden: Hidden, weights: list[Tensor]) -> tuple[Tensor, Hidden]:
        h, c = hidden
        y, h, c = torch.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, self.training, False, True)
        return y, (h[0], c[0])


class GRU(_RecurrentNetwork):
    """Gated recurrent unit."""

    GATES, memories = 3, ("h",)
    cell = staticmethod(gru_cell)

    def kernel(self, x: Tensor, hidden: Hidden, weights: list[Tensor]) -> tuple[Tensor, Hidden]:
        y, h = torch.gru(x, hidden[0][None], weights, True, 1, 0.0, self.training, False, True)
        return y, (h[0],)
