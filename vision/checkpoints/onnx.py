"""DINOv2's weights out of an ONNX file that PyTorch exported from Hugging Face's model, whatever was built on top of
it.

The exporter meant is that of TorchScript (`torch.onnx.export(dynamo=False)`), the only one until 2025. Parameters that
it passed on keep their names, `….bias` among them. It folds the weights of linear layers into
constants with generated names, and here the graph says what they are: the constant of a MatMul to whose result
`x.bias` is added is `x.weight`, transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.checkpoints.source import Source
from ...core.config import FeedForwardKind
from ...core.errors import UserError
from .bare import square

_TOKEN = "embeddings.cls_token"
_TABLE = "embeddings.position_embeddings"
_PARTS = ("embeddings.", "encoder.", "layernorm.")
_KEYS = ("attention.attention.key.bias", "attention.k_proj.bias")
"""As transformers 4 and 5 call it."""
_MOST_OF_AN_ACTIVATION = 30
"""Nodes; the longest spelling of a GELU has a dozen."""


@dataclass(frozen=True)
class Settings:
    """What the shapes and constants of the graph say about the model."""

    dim: int
    depth: int
    heads: int
    ffn: FeedForwardKind
    ffn_dim: int
    image_size: int
    patch_size: int
    norm_eps: float


class Graph:
    """An ONNX graph: its constants by name, and which nodes make and use a value."""

    def __init__(self, proto: Any) -> None:
        from onnx import numpy_helper

        self.weights: dict[str, Any] = {tensor.name: tensor for tensor in proto.initializer}
        self.maker: dict[str, Any] = {name: node for node in proto.node for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in proto.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self._array = numpy_helper.to_array

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant, None for what is computed."""
        if name in self.weights:
            return self._array(self.weights[name])
        node = self.maker.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return next(self._array(a.t) for a in node.attribute if a.name == "value")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.weights[name].dims)

    def prefix(self) -> str:
        """What the names of the encoder begin with."""
        return next((name.removesuffix(_TOKEN) for name in self.weights if name.endswith(_TOKEN)), "")

    def linear_layers(self) -> dict[str, str]:
        """For each constant that a MatMul uses: the name of the layer, taken from the bias that is added to the
        result.
        """
        found = {}
        for name in self.weights:
            for node in self.users.get(name, ()):
                if node.op_type == "MatMul" and len(self.weights[name].dims) == 2:
                    adds = [n for n in self.users.get(node.output[0], ()) if n.op_type == "Add"]
                    biases = [i for n in adds for i in n.input if i in self.weights and i.endswith(".bias")]
                    if len(biases) == 1:
                        found[name] = biases[0].removesuffix("bias") + "weight"
        return found

    def table(self, dim: int) -> list[str]:
        """Names of the constants that make up the table of positions, in their order; empty when there is none."""
        named = [name for name in self.weights if name.endswith(_TABLE)]
        if named:
            return named
        rows = [
            n
            for n in self.weights
            if self.shape(n)[:1] == (1,) and self.shape(n)[2:] == (dim,) and not n.endswith(_TOKEN)
        ]
        # Where images may have any size, the class token's row lies apart from those that are resampled.
        return sorted(rows, key=lambda name: self.shape(name)[1])


def read(source: Source) -> dict[str, Tensor]:
    """The encoder's weights under the names of Hugging Face's files. Raises UserError when there is none."""
    graph = _graph(source)
    prefix, linear = graph.prefix(), graph.linear_layers()
    named = {linear.get(name, name): name for name in graph.weights}
    found = {
        name.removeprefix(prefix): _tensor(graph.constant(original), transposed=original in linear)
        for name, original in named.items()
        if name.startswith(tuple(prefix + part for part in _PARTS))
    }
    rows = graph.table(found[_TOKEN].shape[-1])
    if not rows:
        raise UserError(f"'{source.name}' has no table of positions ([1, positions, dim]); it is no DINOv2 encoder.")
    table = torch.cat([_tensor(graph.constant(name)) for name in rows], dim=1)
    return found | {_TABLE: table}


def settings(source: Source) -> Settings:
    """Sizes of the encoder, and what is not in its weights: heads and the norms' epsilon. Raises UserError without
    them.
    """
    graph, found = _graph(source), read(source)
    dim, _, patch, width = found["embeddings.patch_embeddings.projection.weight"].shape
    depth = len({name.split(".")[2] for name in found if name.startswith("encoder.layer.")})
    layer, prefix = "encoder.layer.0.", graph.prefix() + "encoder.layer.0."
    try:
        ffn_dim = found[layer + "mlp.fc1.weight"].shape[0]
        eps = _epsilon(graph, prefix + "norm1.weight")
        keys = next(name for name in _KEYS if prefix + name in graph.users)
        head_dim = _head_dim(graph, prefix + keys)
        ffn = _activation(graph, prefix + "mlp.fc1.bias")
    except (KeyError, StopIteration):
        raise UserError(
            f"'{source.name}' has a class token but not the layers of a DINOv2 encoder as PyTorch exports it "
            "(attention, mlp.fc1, norm1); other models in ONNX files are not supported."
        ) from None
    if patch != width:
        raise UserError(f"'{source.name}' has patches of {patch}×{width} pixels, but DINOv2's are square.")
    size = square(source, found[_TABLE].shape[1] - 1) * patch
    return Settings(dim, depth, dim // head_dim, ffn, ffn_dim, size, patch, eps)


def _activation(graph: Graph, bias: str) -> FeedForwardKind:
    """Our name of the non-linearity after the first layer of a feed-forward: what lies before the next product."""
    reached, ahead = {}, list(graph.users[bias])
    while ahead:
        node = ahead.pop()
        if node.op_type != "MatMul" and node.output[0] not in reached:
            reached[node.output[0]] = node
            ahead += [user for name in node.output for user in graph.users.get(name, ())]
            if len(reached) > _MOST_OF_AN_ACTIVATION:
                break
    kinds = {node.op_type for node in reached.values()}
    ways = {a.s.decode() for node in reached.values() if node.op_type == "Gelu" for a in node.attribute} or {"none"}
    if "Erf" in kinds or ("Gelu" in kinds and ways == {"none"}):
        return "gelu"
    if "Tanh" in kinds or "Gelu" in kinds:
        return "gelu_tanh"
    if "Relu" in kinds:
        return "relu"
    raise UserError(
        f"The feed-forward layers of this ONNX file apply {', '.join(sorted(kinds))}, none of the GELUs or ReLU that a "
        "DINOv2 has."
    )


def _epsilon(graph: Graph, weight: str) -> float:
    """What is added to the variance in the norm that has this weight; one node in new files, several in old ones."""
    node = graph.users[weight][0]
    if node.op_type == "LayerNormalization":
        return float(f"{next(a.f for a in node.attribute if a.name == 'epsilon'):.6g}")  # stored as float32
    while node.op_type != "Sqrt":
        # Mul <- Div <- Sqrt <- Add; the other input of a Div is the centred value.
        inputs = [graph.maker[name] for name in node.input if name in graph.maker]
        node = next(n for n in inputs if n.op_type == ("Div" if node.op_type == "Mul" else "Sqrt"))
    add = graph.maker[node.input[0]]
    value = next(v for v in map(graph.constant, add.input) if v is not None)
    return float(f"{float(value):.6g}")


def _head_dim(graph: Graph, bias: str) -> int:
    """The last number of the shape that keys are given: `[batch, tokens, heads, head_dim]`."""
    add = graph.users[bias][0]
    reshape = next(n for n in graph.users[add.output[0]] if n.op_type == "Reshape")
    shape = graph.constant(reshape.input[1])
    if shape is None:
        shape = graph.constant(graph.maker[reshape.input[1]].input[-1])
    if shape is None:
        raise KeyError(bias)
    return int(shape.reshape(-1)[-1])


def _tensor(array: np.ndarray | None, transposed: bool = False) -> Tensor:
    assert array is not None
    return torch.from_numpy(np.array(array.T if transposed else array))


def _graph(source: Source) -> Graph:
    return source.once(_opened)


def _opened(name: Path) -> Graph:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UserError(f"'{name}' is an ONNX file, and reading it needs: pip install 'triune[onnx]'.") from None
    try:
        graph = Graph(onnx.load(name).graph)
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise UserError(
            f"'{name}' cannot be read as ONNX ({type(error).__name__}); it was cut short or damaged."
        ) from None
    if not graph.prefix() and _TOKEN not in graph.weights:
        raise UserError(
            f"'{name}' holds no DINOv2 encoder as PyTorch exports it from Hugging Face's model (with dynamo=False): "
            f"nothing in it is named ….{_TOKEN}."
        )
    return graph
