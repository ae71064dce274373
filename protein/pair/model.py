"""The pair model: sequence, profile and alignment in; distances and contacts of all residue pairs out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.again import run_again
from ...core.checkpoints.saved import SavedModel
from ...core.config import TransformerConfig
from ...core.transformer import Transformer
from ..language.model import SequenceModel, esm_tokens
from ..read.alphabet import GAP, PAD, VOCABULARY
from .axial import in_chunks
from .blocks import EvoformerBlock, PairBlock, layer_norm
from .config import PairConfig
from .covariance import FREQUENCIES, Covariance, column_statistics

FIRST_BREAK, LAST_BREAK = 2.3125, 21.6875
"""Ångström: limits of the distogram classes (supplement, 1.9.8), `bins` - 1 breaks at equal distances."""

CONTACT_PRIOR = -3.5
"""Log odds of a contact before anything is learned, about 3 %."""


_CPU_CHUNK, _GPU_CHUNK = 1 << 19, 1 << 25
"""Numbers of z in one chunk of training: 2 MiB, and 128 MiB in float32."""


class PairOutput(NamedTuple):
    """Logits, symmetric in the two residues.

    contacts: `[batch, residues, residues]`, of a Cβ distance below 8 Å.
    distogram: `[batch, residues, residues, bins]`, of the Cβ distance's class.
    """

    contacts: Tensor
    distogram: Tensor


def distance_classes(distance: Tensor, bins: int = 64) -> Tensor:
    """The distogram class of Cβ distances in ångström, int64; the last class is everything beyond 21.6875 Å."""
    breaks = torch.linspace(FIRST_BREAK, LAST_BREAK, bins - 1, device=distance.device, dtype=distance.dtype)
    return torch.bucketize(distance, breaks)


def _encoder(dim: int, depth: int) -> TransformerConfig:
    """A small encoder that learns fast: the choices of the language model's ablation, with dropout."""
    return TransformerConfig(
        dim=dim, depth=depth, heads=max(1, dim // 32), norm="rmsnorm", norm_weight="none", qk_norm="head", bias=False,
        dropout=0.1, init_std=None, init_residual="zero",
    )  # fmt: skip


class PairInput(nn.Module):
    """Algorithms 3-5: z_ij = left(s_i) + right(s_j) + relative position, and the MSA representation.

    s is a linear map of what is known about a residue: letter, profile, and, from the alignment, weighted frequencies,
    entropy and depth. Deviations from AlphaFold2: the profile is that of a database search, whether or not there is an
    alignment, and the MSA features are letter and "is a gap" (no clusters, no deletions). With `sequence_depth` a core
    Transformer refines s, and products of its channels enter z (as in ESMFold); with `covariance_dim` the covariances
    of alignment columns do; with a `trunk`, a linear map of its last vectors is added to s (as ESMFold does with a
    learned sum over all layers).
    """

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.clip = config.relative_positions
        features, width = VOCABULARY + 20 + FREQUENCIES, config.sequence_dim
        self.embed = nn.Linear(features, width)
        self.from_trunk = nn.Linear(config.trunk.transformer.dim, width) if config.trunk else None
        self.encoder = self.product = None
        if config.sequence_depth:
            self.encoder = Transformer(_encoder(width, config.sequence_depth))
            self.product = nn.Linear(config.dim, config.dim, bias=False)
        self.left, self.right = nn.Linear(width, config.dim), nn.Linear(width, config.dim)
        self.relative = nn.Embedding(2 * self.clip + 1, config.dim)
        nn.init.normal_(self.relative.weight, std=0.5)
        self.covariance = Covariance(config.covariance_dim, config.dim) if config.covariance_dim else None
        self.msa = self.msa_target = None
        if config.msa_depth:
            self.msa = nn.Linear(VOCABULARY + 1, config.msa_dim)
            self.msa_target = nn.Linear(features, config.msa_dim)

    def forward(
        self, tokens: Tensor, profile: Tensor, msa: Tensor | None, residue_index: Tensor, mask: Tensor | None,
        chunk: int | None = None, known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """-> z `[batch, residues, residues, dim]` and m `[batch, rows, residues, msa_dim]` (None without an MSA track).

        `known` are the vectors of the trunk, `[batch, residues, trunk dim]`.
        """
        dtype = self.embed.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        weights, columns = column_statistics(tokens[:, None] if msa is None else msa, mask, wide)
        target = torch.cat([F.one_hot(tokens, VOCABULARY), profile, columns], dim=-1).to(dtype)
        s = self.embed(target)
        if self.from_trunk is not None and known is not None:
            s = s + self.from_trunk(known.to(dtype))
        if self.encoder is not None:
            s = self.encoder(s, valid=mask, positions=residue_index)
        left, right = self.left(s), self.right(s)

        def rows(part: Tensor) -> Tensor:
            """z for some residues i: `part` holds left(s_i) and the residue index."""
            left_i, index_i = part[..., :-1], part[..., -1].long()
            offset = (index_i[:, :, None] - residue_index[:, None, :]).clamp(-self.clip, self.clip) + self.clip
            z = left_i[:, :, None] + right[:, None] + self.relative(offset)
            return z if self.product is None else z + self.product(left_i[:, :, None] * right[:, None])

        # The index rides along as a channel; float32 holds any residue number that occurs.
        z = in_chunks(rows, chunk, torch.cat([left.to(wide), residue_index[..., None].to(wide)], dim=-1)).to(left.dtype)
        if msa is not None and self.covariance is not None:
            z = z + self.covariance(msa, weights.to(dtype), mask, chunk)
        if self.msa is None or self.msa_target is None:
            return z, None
        if msa is None:
            msa = tokens[:, None]
        letters = torch.cat([F.one_hot(msa, VOCABULARY), (msa == GAP)[..., None]], dim=-1).to(dtype)
        return z, self.msa(letters) + self.msa_target(target)[:, None]


class Recycling(nn.Module):
    """Algorithm 32: what the previous pass found is added to the input of the next.

    Deviation: without a structure there are no coordinates, so instead of the binned distances of the previous
    structure the probabilities of the previous distogram enter, through a linear layer.
    """

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.norm = layer_norm(config.dim)
        self.distogram = nn.Linear(config.bins, config.dim)
        self.msa_norm = layer_norm(config.msa_dim) if config.msa_depth else None

    def forward(
        self, z: Tensor, m: Tensor | None, previous: tuple[Tensor, Tensor | None, Tensor], chunk: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """`previous` holds z, m and the distogram logits of the pass before, detached."""
        last_z, last_m, logits = previous
        z = z + self.norm(last_z) + in_chunks(lambda rows: self.distogram(rows.softmax(-1).to(z.dtype)), chunk, logits)
        if m is not None and last_m is not None and self.msa_norm is not None:
            m = torch.cat([m[:, :1] + self.msa_norm(last_m[:, :1]), m[:, 1:]], dim=1)
        return z, m


class PairHead(nn.Module):
    """LayerNorm and one linear map of z, symmetrised: logits + transposed logits (supplement, 1.9.8).

    Deviations: the LayerNorm, and a contact logit of its own beside the distogram's classes.
    """

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.norm = layer_norm(config.dim)
        self.logits = nn.Linear(config.dim, 1 + config.bins)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        nn.init.constant_(self.logits.bias[:1], CONTACT_PRIOR / 2)  # the two directions add up

    def forward(self, z: Tensor, chunk: int | None = None) -> PairOutput:
        wide = torch.promote_types(self.logits.weight.dtype, torch.float32)
        logits = in_chunks(lambda rows: self.logits(self.norm(rows)).to(wide), chunk, z)
        logits = logits + logits.transpose(1, 2)
        return PairOutput(logits[..., 0], logits[..., 1:])


class PairModel(SavedModel, config=PairConfig):
    """Contacts and distances from a sequence, its profile and its alignment.

    >>> model = PairModel(PairConfig.preset("tiny"))
    >>> model(torch.randint(20, (1, 30)), torch.rand(1, 30, 20)).contacts.shape
    torch.Size([1, 30, 30])

    Args:
        config: what to build.
        trunk: the language model of `config.trunk` with its weights, which becomes part of this model; at random when
            left out. It reads the chain, or the crop, alone: not the alignment.
    """

    def __init__(self, config: PairConfig, trunk: SequenceModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # as of the core's Transformer; a config with checkpoint "block" does the same
        self.input = PairInput(config)
        self.recycling = Recycling(config) if config.recycles else None
        self.blocks = nn.ModuleList(
            EvoformerBlock(config) if layer < config.msa_depth else PairBlock(config) for layer in range(config.depth)
        )
        self.head = PairHead(config)
        self.trunk = (trunk or SequenceModel(config.trunk)) if config.trunk else None
        if self.trunk is not None:
            self.trunk.head = nn.Identity()  # type: ignore[assignment] (nothing reads its letters)

    def forward(
        self, tokens: Tensor, profile: Tensor | None = None, msa: Tensor | None = None,
        residue_index: Tensor | None = None, mask: Tensor | None = None, chunk: int | None = None,
        recycles: int | None = None,
    ) -> PairOutput:  # fmt: skip
        """Predicts all pairs.

        Args:
            tokens: int `[batch, residues]`, numbers of `alphabet`.
            profile: frequencies of the 20 amino acids, `[batch, residues, 20]`; zero when not given.
            msa: int `[batch, rows, residues]`, the query first; rows of PAD only fill a batch.
            residue_index: int `[batch, residues]`, for relative positions; counted from 0 when not given.
            mask: bool `[batch, residues]`, True for real residues; None when all are.
            chunk: compute this many rows of each update at a time (inference; `memory.choose_chunk` picks it).
            recycles: passes beyond the first; by default drawn from 0..config.recycles in training, else the largest.
        """
        if profile is None:
            profile = torch.zeros(*tokens.shape, 20, device=tokens.device)
        if residue_index is None:
            residue_index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        if recycles is None:
            most = self.config.recycles
            # From PyTorch's CPU generator, so that a seed and a resumed run repeat it; costs no device sync.
            recycles = int(torch.randint(most + 1, ())) if self.training and most else most
        row_mask = None if msa is None else (msa != PAD).any(-1)
        known = None if self.trunk is None else self.trunk.hidden(esm_tokens(tokens))[:, 1:-1]
        inputs = (tokens, profile, msa, residue_index, mask, row_mask, chunk, known)
        previous: tuple[Tensor, Tensor | None, Tensor] | None = None
        for _ in range(recycles):
            with torch.no_grad():  # gradients flow through the last pass only (supplement, 1.10)
                z, m, output = self._pass(*inputs, previous)
            previous = (z, m, output.distogram)
        if previous is not None and torch.is_grad_enabled():
            # Autocast remembers the weights it cast, also those without a gradient, and would use them again.
            torch.clear_autocast_cache()
        return self._pass(*inputs, previous)[2]

    def _pass(
        self, tokens: Tensor, profile: Tensor, msa: Tensor | None, residue_index: Tensor, mask: Tensor | None,
        row_mask: Tensor | None, chunk: int | None, known: Tensor | None,
        previous: tuple[Tensor, Tensor | None, Tensor] | None,
    ) -> tuple[Tensor, Tensor | None, PairOutput]:  # fmt: skip
        z, m = self.input(tokens, profile, msa, residue_index, mask, chunk, known)
        if self.recycling is not None and previous is not None:
            z, m = self.recycling(z, m, previous, chunk)
        z, m = self._trunk(z, m, mask, row_mask, chunk)
        return z, m, self.head(z, chunk)

    def _trunk(
        self, z: Tensor, m: Tensor | None, mask: Tensor | None, row_mask: Tensor | None, chunk: int | None
    ) -> tuple[Tensor, Tensor | None]:
        training = torch.is_grad_enabled()
        again = "block" if self.checkpointing else self.config.checkpoint
        if training and chunk is None and again != "none":
            # So many rows that one tensor of them stays in the cache of a core, or keeps a GPU busy.
            chunk = max(1, (_GPU_CHUNK if z.is_cuda else _CPU_CHUNK) // z[:, 0].numel())
        for block in self.blocks:
            args = (m, z, mask, row_mask, chunk) if isinstance(block, EvoformerBlock) else (z, mask, chunk)
            if training and again == "block":
                result: Any = run_again(block, *args)
            else:
                result = block(*args)
            z, m = (result[1], result[0]) if isinstance(result, tuple) else (result, m)
        return z, m
