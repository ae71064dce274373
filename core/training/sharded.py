"""Weights that are cut over processes: cutting them, their averages, and checkpoints in parts.

A device mesh has two dimensions. Over `data_parallel` each weight is cut, and put together when a block runs (FSDP2);
over `tensor_parallel` the layers of a block are cut, and stay so (`core/tensor_parallel.py`).

A sharded checkpoint is a folder of `torch.distributed.checkpoint`: `.metadata` says which tensor lies where, each
process wrote one `.distcp` file, and `meta.pt` holds all that is no weight and no state of the optimizer. Any number of
processes can read it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..checkpoints.native import whole
from ..compiled import blocks_of
from ..errors import UserError
from ..tensor_parallel import partial, split

METADATA, REST = ".metadata", "meta.pt"
MOST = 2**30
"""Bytes of a list of tensors that is read, at most."""
ALLOWED = {
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "WindowsPath", "Path", "PurePosixPath", "PureWindowsPath"),
    "torch": ("Size", "device", "float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"),
    "torch._utils": ("_rebuild_tensor_v2",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
}  # fmt: skip
"""Names that the list of tensors may use."""


class CutBlocks:
    """Cuts each block over the processes of a device mesh as soon as it is made; see `Cutter`."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh

    def cut(self, block: nn.Module) -> None:
        _cut_block(block, self._mesh)

    @torch.no_grad()
    def fill(self, block: nn.Module, values: dict[str, Tensor]) -> None:
        own = block.state_dict(keep_vars=True)
        for name, value in values.items():
            value = value.detach().to(own[name].device)
            # Each process has made the same values, so that none are sent.
            like = own[name]
            if isinstance(like, DTensor):
                value = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
            part(like).copy_(part(value))


def cut(model: nn.Module, mesh: Any) -> None:
    """Cuts the weights over the processes of a device mesh, each block by itself, where they are not cut already."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    for block in blocks_of(model):
        if not isinstance(block, FSDPModule):
            _cut_block(block, mesh)
    fully_shard(model, mesh=mesh["data_parallel"])
    if hasattr(model, "loss"):  # a method that is called in the place of `forward`
        register_fsdp_forward_method(model, "loss")


def _cut_block(block: nn.Module, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    if (sharing := _sharing(mesh)) is not None:
        split(block, sharing)
    fully_shard(block, mesh=mesh["data_parallel"])


def _sharing(mesh: Any) -> Any:
    """The part of a device mesh over which layers are cut; None where they are whole."""
    name = "tensor_parallel"
    return mesh[name] if name in (mesh.mesh_dim_names or ()) and mesh[name].size() > 1 else None


@torch.no_grad()
def sum_partial(model: nn.Module | None, mesh: Any) -> None:
    """Sums the gradients of which each of the processes that share layers has a part; after a backward pass."""
    if model is None or mesh is None or (sharing := _sharing(mesh)) is None:
        return
    grads = [part(p.grad) for p in partial(model) if p.grad is not None]
    if not grads:
        return
    together = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(together, group=sharing.get_group())
    for grad, summed in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))


def _by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors in lists of those that are cut over the same processes, which PyTorch's operators can take together."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(found.values())


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar that all processes have."""
    norms = [whole(torch.nn.utils.get_total_norm(some, foreach=True)) for some in _by_mesh(gradients)]
    return norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)


def clip(params: Iterable[Tensor], most: float, norm: Tensor | None = None) -> None:
    """Clips gradients in place: each number to `most`, or all by one factor so that their `norm` is at most that."""
    for some in _by_mesh(params):
        if norm is None:
            torch.nn.utils.clip_grad_value_(some, most)
        else:
            torch.nn.utils.clip_grads_with_norm_(some, most, norm, foreach=True)


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all, where it is not cut. It shares the memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put_into_place(own: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a tensor, as that of all processes that is cut as `like` is."""
    if not isinstance(like, DTensor):
        return own
    found = torch.empty_like(like)
    part(found).copy_(own)
    return found


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which all processes have, cut as `like` is, if that is cut and it is not."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def let_go(model: nn.Module) -> None:
    """Gives up what a pass without a backward pass has put together: the parts may change now."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # pyright: ignore[reportCallIssue]


class _Named(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def check(folder: Path) -> None:
    """Raises UserError where a sharded checkpoint is damaged, see `damage`. PyTorch reads its list of tensors as it is,
    whatever that runs.
    """
    if found := damage(folder):
        raise UserError(f"{folder} is damaged ({found}); go on from another checkpoint, or start anew.")


def damage(folder: Path) -> str:
    """What is wrong with a sharded checkpoint, in words; empty for a good one. Weights are not read."""
    path = folder / METADATA
    if not path.is_file() or not (folder / REST).is_file():
        return "it is a folder that holds no checkpoint"
    try:
        if path.stat().st_size > MOST:
            return f"its {METADATA} is too large"
        listed = _Named(io.BytesIO(path.read_bytes())).load()
        ends: dict[str, int] = {}
        for place in listed.storage_data.values():
            name = str(place.relative_path)
            if Path(name).name != name:
                return f"its {METADATA} names the file {name}"
            ends[name] = max(ends.get(name, 0), int(place.offset) + int(place.length))
        torch.load(folder / REST, map_location="meta", weights_only=True)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except Exception as error:  # whatever a file made by somebody else raises
        return f"its list of tensors or {REST} holds something else ({str(error).splitlines()[0][:80]})"
    for name, end in sorted(ends.items()):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size < end:
            return f"{name} is cut short"
    return ""
