"""An image model beside the same one in its own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.checkpoints.family import Pretrained, apart
from ...core.checkpoints.source import read_tensors
from ...core.errors import UserError
from ..model import VisionTransformer, VisionTransformerConfig
from .hf_shared import headed
from .timm_settings import architecture
from .torchvision_files import write_torchvision

_HF = {
    "vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "dinov3_vit": "DINOv3ViT",
    "deit": "DeiT", "beit": "Beit", "data2vec-vision": "Data2VecVision", "clip": "CLIP", "clip_vision_model": "CLIP",
    "siglip": "Siglip", "siglip_vision_model": "Siglip",
}  # fmt: skip
"""Beginnings of the names of their classes."""
_POOLED = ("beit", "data2vec-vision", "clip", "siglip")
"""Those whose backbone pools without weights that a file may lack."""


def parity(pretrained: Pretrained, folder: str | Path, library: str) -> float:
    """The largest difference between the outputs of our model and those of `library` on a folder or file, which
    `export` wrote or which is the source itself. See `apart` for what is measured.

    Tokens (of a model that normalises them only after pooling: the pooled vector) and the logits of a classifier, for
    random images of the size of the table of positions.

    Raises:
        UserError: the library is not installed, or cannot be asked.
    """
    model = pretrained.model
    assert isinstance(model, VisionTransformer)
    config = model.config
    images = torch.randn(2, config.channels, *config.size, generator=torch.Generator().manual_seed(0))
    theirs = _outputs(pretrained, Path(folder), library, images)
    with torch.inference_mode():
        tokens = model.tokens(images)
        pooled = model.pooled(tokens)
        ours = {"tokens": tokens, "pooled": pooled, "logits": model.head(model.pre_logits(pooled))}
    if not config.transformer.resolved().final_norm and len(theirs) > 1:
        theirs.pop("tokens", None)  # of any size, and so are their differences
    return max(apart(ours[name], output) for name, output in theirs.items())


def check_inputs(pretrained: Pretrained, folder: str | Path, library: str) -> str:
    """Nothing: what becomes of an image file is not compared here."""
    return ""


def _outputs(pretrained: Pretrained, path: Path, library: str, images: Tensor) -> dict[str, Tensor]:
    if library not in _OUTPUTS:
        raise UserError("no other library reads such a file here.")
    try:
        with torch.inference_mode():
            return _OUTPUTS[library](pretrained, path, images)
    except ImportError as error:
        raise UserError(f"Comparing with {library} needs it: pip install {error.name}.") from None
    except Exception as error:  # of any kind: whatever the library's code meets in a file that it does not expect
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{library} itself cannot open it ({why}).") from None


def _timm(pretrained: Pretrained, path: Path, images: Tensor) -> dict[str, Tensor]:
    import timm

    if path.is_dir():
        model: Any = timm.create_model(f"local-dir:{path}", pretrained=True)
    else:
        model = timm.create_model(str(architecture(pretrained.source)), checkpoint_path=str(path))
    tokens = model.eval().forward_features(images)
    found = {"pooled": model.forward_head(tokens, pre_logits=True), "logits": model.forward_head(tokens)}
    if hasattr(model, "head_dist"):
        del found["pooled"]  # the mean of two tokens, of which ours has both
    if not model.global_pool:  # a vector for each token; ours reads the one of the class token, if there is one
        found = {} if model.cls_token is None else {name: each[:, 0] for name, each in found.items()}
    return {"tokens": tokens, **found}


def _hf(pretrained: Pretrained, path: Path, images: Tensor) -> dict[str, Tensor]:
    import transformers

    ours = pretrained.model.config
    assert isinstance(ours, VisionTransformerConfig)
    found: Any = transformers.AutoConfig.from_pretrained(path)
    # A file of the bare model, or one with a head for another purpose, is read with the head that ours has.
    kind = found.model_type.removesuffix("_vision_model")
    head = bool(ours.classes) or (headed(ours) if kind != "clip" else ours.pool == "mean")
    name = _HF[found.model_type] + ("ForImageClassification" if head else "Model")
    if kind in ("clip", "siglip") and not head:
        name = name.replace("Model", "VisionModel")
    if ours.pool == "prefix":
        name += "WithTeacher"
    # It would take the dtype of the file, whose rounding is not ours.
    model: Any = getattr(transformers, name).from_pretrained(path, dtype=torch.float32).eval()
    output = model(images, output_hidden_states=False)
    if hasattr(output, "logits"):
        backbone: Any = getattr(model, "vision_model", None) or getattr(model, model.base_model_prefix)
        return {"tokens": backbone(images).last_hidden_state, "logits": output.logits}
    pooled = {"logits": output.pooler_output} if kind in _POOLED and output.pooler_output is not None else {}
    return {"tokens": output.last_hidden_state} | pooled


def _torchvision(pretrained: Pretrained, path: Path, images: Tensor) -> dict[str, Tensor]:
    from torchvision.models import VisionTransformer as Theirs

    ours = pretrained.model.config
    assert isinstance(ours, VisionTransformerConfig)
    arguments = {key: value for key, value in write_torchvision(ours)["model_args"].items() if value is not None}
    model = Theirs(**arguments).eval()
    model.load_state_dict(read_tensors(path / "model.safetensors" if path.is_dir() else path))
    return {"logits": model(images)}


def _triune(pretrained: Pretrained, path: Path, images: Tensor) -> dict[str, Tensor]:
    return {"logits": VisionTransformer.from_pretrained(path).eval()(images)}


_OUTPUTS = {"timm": _timm, "hf": _hf, "torchvision": _torchvision, "triune": _triune}
