"""Image models of timm, Hugging Face, torchvision and DINOv2: read, run with the same numbers, and written back.

| family                       | found as                                        | positions on other sizes            |
|------------------------------|-------------------------------------------------|-------------------------------------|
| timm VisionTransformer       | folder, hub or timm name, ARCHITECTURE.pth      | `timm`: bicubic, antialias          |
| timm Eva (EVA-02, DINOv3, …) | the same                                        | rotary; `timm` for its table        |
| timm Beit                    | the same                                        | none: its biases are for one size   |
| HF ViT, DeiT, DINOv2         | folder or hub name                              | `reference`: bicubic                |
| … CLIP, SigLIP               | the same; of two towers that of images          | `reference`                         |
| … BEiT, Data2Vec             | the same                                        | none: its biases are for one size   |
| … DINOv2 with registers      | the same                                        | `timm`, as upstream                 |
| HF DINOv3                    | the same                                        | rotary                              |
| torchvision ViT              | file of weights, folder (as `export` writes it) | `torchvision`: corners aligned      |
| DINOv2's own files           | `dinov2_vit*_pretrain.pth`                      | `dinov2-hub`; `timm` with registers |
| DINOv2 in ONNX               | `.onnx` exported from Hugging Face's DINOv2     | `reference`                         |

Exports give the original library's outputs at the size of the table of positions; where its way to resample differs
from that of the model's origin, outputs at other sizes follow the library that reads the export.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.checkpoints.family import Pretrained, apart, described, recognise, replacing, write_folder
from ...core.checkpoints.native import CONFIG
from ...core.checkpoints.source import Source, open_source
from ...core.errors import UserError
from ...core.files import few
from ...core.layers import Norm
from ..model import VisionTransformer, VisionTransformerConfig
from . import hf, hf_beit, hf_towers, timm, torchvision_files
from .family import PREPROCESSOR, VisionFamily
from .hf_preprocessing import write_preprocessing
from .originals import check_inputs, parity
from .timm_settings import hub_name

__all__ = ["FAMILIES", "check_inputs", "export", "facts", "find", "load", "parity"]

FAMILIES: tuple[VisionFamily, ...] = (
    timm.TIMM_VIT,
    timm.TIMM_EVA,
    timm.TIMM_BEIT,
    hf.HF_VIT,
    hf.HF_DINO2,
    hf.HF_DINO2_REGISTERS,
    hf.HF_DINO3,
    hf_beit.HF_DEIT,
    hf_beit.HF_BEIT,
    hf_beit.HF_DATA2VEC,
    hf_towers.HF_CLIP,
    hf_towers.HF_SIGLIP,
    torchvision_files.TORCHVISION_VIT,
    torchvision_files.DINO2_FILE,
    torchvision_files.DINO2_ONNX,
)
LIBRARIES = ("timm", "hf", "torchvision", "triune")
"""What `export` can write for."""
NEAR = 1e-5
"""Change of an output, relative to outputs larger than one, that another epsilon of the norms may make."""

_TIMM_NAME = re.compile(r"[a-z0-9]+_\w+(\.\w+)?")


def load(name: str) -> Pretrained:
    """Opens an image model: a folder, a run of ours, a file, a hub name or a timm name.

    >>> model = load("vit_small_patch14_dinov2.lvd142m").model

    Returns:
        `model` is a `VisionTransformer` in evaluation mode and float32; class names and preprocessing are in its
        config.

    Raises:
        UserError: it is no such model, is damaged, or has a setting that our model does not have.
    """
    source = find(name)
    if source.is_ours:
        return Pretrained(VisionTransformer.from_pretrained(source.path).eval(), source)
    family = _recognised(source)
    config = family.config(source)
    theirs = family.read(source)
    with described(source.name, config.transformer.depth, len(theirs)):
        model = VisionTransformer(config)
    family.table(config, theirs.keys()).load(model, theirs, source.name)
    return Pretrained(model.eval(), source, family)


def find(name: str) -> Source:
    """The checkpoint of that name, which may also be a name of timm's weights. Raises UserError when there is none."""
    path = Path(name).expanduser()
    if path.is_file() and (path.parent / CONFIG).is_file() and path.name in ("model.safetensors", "pytorch_model.bin"):
        return open_source(str(path.parent))  # the weights of a folder, which cannot be read without its config
    if not path.exists() and _TIMM_NAME.fullmatch(name):
        return replace(open_source(hub_name(name)), name=name)
    return open_source(name)


def _recognised(source: Source) -> VisionFamily:
    if source.file is None:
        found = recognise(source, FAMILIES, "image model")
        assert isinstance(found, VisionFamily)
        return found
    for family in FAMILIES:
        if family.fits(source):
            return family
    names = list(source.tensors())
    if "storage_tokens" in names:
        raise UserError(
            f"'{source.name}' is one of DINOv3's own files, which are not read; take the same weights from Hugging "
            "Face (facebook/dinov3-…) or timm (vit_small_patch16_dinov3.lvd1689m, …)."
        )
    if "patch_embed.proj.weight" in names:
        raise UserError(
            f"'{source.name}' has the tensor names of timm, but a file of weights does not say its architecture: "
            "rename it to ARCHITECTURE.safetensors (such as vit_small_patch16_224.safetensors), or give the folder "
            "with timm's config.json."
        )
    raise UserError(
        f"'{source.name}' is no file of weights of a known kind (it holds {few(names)}); give the folder with its "
        "config.json, or a file of torchvision's or DINOv2's, or of timm's named after its architecture."
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def export(pretrained: Pretrained | VisionTransformer, folder: str | Path, library: str) -> Path:
    """Writes a model so that `library` loads it, with class names and preprocessing.

    `timm.create_model("local-dir:FOLDER", pretrained=True)`,
    `AutoModelForImageClassification.from_pretrained(FOLDER)`, or
    `torchvision.models.VisionTransformer(**config["model_args"])`; "triune" is our own format.

    Raises:
        UserError: the library has no such model; says in what it differs and which libraries have it.
    """
    given = pretrained if isinstance(pretrained, Pretrained) else None
    model = pretrained.model if isinstance(pretrained, Pretrained) else pretrained
    assert isinstance(model, VisionTransformer)
    with replacing(folder) as new:
        if library == "triune":
            model.save_pretrained(new)
            return Path(folder)
        origin = given.family if given is not None else None
        if isinstance(origin, VisionFamily) and origin.library == library and origin.represents(model.config):
            family = origin
            settled = model.config
        else:
            family, settled = family_near(model, library)
        config, tensors, more = _translated(model, settled, given, family)
        write_folder(new, config, tensors)
        for name, content in more.items():
            (new / name).write_text(json.dumps(content, indent=2) + "\n")
    _warn(model.config, family)
    return Path(folder)


def _warn(config: VisionTransformerConfig, family: VisionFamily) -> None:
    """Says so where the other library makes another table of positions for the images that the model is used on."""
    if config.position == "learned" and config.input_size != config.size and config.resample != family.resample:
        sizes = ["×".join(map(str, size)) for size in (config.input_size, config.size)]
        print(
            f"note: {family.library} stretches the table of positions in another way ({family.resample} instead of "
            f"{config.resample}), so for images of {sizes[0]} pixels its outputs are others; for {sizes[1]} they are "
            "equal.",
            file=sys.stderr,
        )


def _translated(
    model: VisionTransformer, config: VisionTransformerConfig, given: Pretrained | None, family: VisionFamily
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Config, weights and further files of an export with the settings `config`."""
    origin = None if given is None else given.family
    if given is not None and origin is not None and origin.library == family.library == "timm":
        recipe = timm.recipe_of(given.source, config)
        if recipe and not timm.differs(recipe, config):
            weights = timm.table(config, timm.names_of(recipe))
            return timm.write(recipe, config), weights.to_theirs(model), {}
    assert family.their_config is not None
    weights = family.table(config, ())
    theirs = weights.to_theirs(model)
    if weights.constants and given is not None and origin is family:
        stored = family.read(given.source)  # a mask token: not ours, but not to be lost either
        theirs |= {name: stored[name] for name in weights.constants if name in stored}
        given.source.release()
    more = {PREPROCESSOR: write_preprocessing(config)} if family.library == "hf" else {}
    return family.their_config(config), theirs, more


def family_near(model: VisionTransformer, library: str) -> tuple[VisionFamily, VisionTransformerConfig]:
    """The family that a model can be written as, and the settings to write.

    Those are its own, or with another epsilon of the norms where the library has no other (Hugging Face's ViT has 1e-12
    by default, timm 1e-6 or 1e-5), as long as this changes no output by more than `NEAR`, which is said.

    Raises:
        UserError: see `family_for`, or what another epsilon would change.
    """
    try:
        return family_for(model.config, library), model.config
    except UserError as error:
        problem = error
    core, moved = model.config.transformer, {}
    for eps in (1e-6, 1e-5):
        near = replace(model.config, transformer=replace(core, norm_eps=eps))
        try:
            family = family_for(near, library)
        except UserError:
            continue
        moved[eps] = _moved(model, eps)
        if moved[eps] <= NEAR:
            print(
                f"note: {library} has no norm_eps {core.norm_eps:g} in such a model, so {eps:g} is written, which "
                f"changes the outputs for {len(_trials(model))} random images by at most {moved[eps]:.1g}.",
                file=sys.stderr,
            )
            return family, near
    if moved:
        eps = min(moved, key=lambda eps: moved[eps])
        raise UserError(
            f"This model cannot be written for {library}, which has no norm_eps {core.norm_eps:g} in such a model: "
            f"with {eps:g} its outputs differ by {moved[eps]:.2g}, more than {NEAR:g}; write it for another library."
        ) from None
    raise problem


def _trials(model: VisionTransformer) -> Tensor:
    """Images of one colour and of noise, small and large: `[8, channels, height, width]`."""
    noise = torch.randn(8, model.config.channels, *model.config.size, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([0, 0.01, 0.1, 0.5, 1, 1, 1, 2]).view(-1, 1, 1, 1)


def _moved(model: VisionTransformer, eps: float) -> float:
    """The largest change of an output, see `apart`, when all norms of a model have another epsilon."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    before, training = [norm.eps for norm in norms], model.training
    images = _trials(model)
    try:
        with torch.inference_mode():
            own = [model.eval().pooled(model.tokens(images)), model(images)]
            for norm in norms:
                norm.eps = eps
            return max(apart(a, b) for a, b in zip([model.pooled(model.tokens(images)), model(images)], own))
    finally:
        model.train(training)
        for norm, value in zip(norms, before, strict=True):
            norm.eps = value


def family_for(config: VisionTransformerConfig, library: str) -> VisionFamily:
    """The family that a model can be written as. Raises UserError, with the libraries that have such a model."""
    candidates = [family for family in FAMILIES if family.library == library and family.their_config is not None]
    for family in candidates:
        if family.represents(config):
            return family
    if library not in LIBRARIES:
        raise UserError(f"Image models cannot be written for '{library}'; they can be for {', '.join(LIBRARIES)}.")
    others = [f.library for f in FAMILIES if f.library != library and f.their_config and f.represents(config)]
    name, odd = min(((f.name, f.why_not(config)) for f in candidates), key=lambda found: len(found[1]))
    raise UserError(
        f"This model cannot be written for {library}: {name} comes nearest and differs in {', '.join(odd)}; it can be "
        f"for {', '.join([*dict.fromkeys(others), 'triune'])}."
    )


def facts(pretrained: Pretrained) -> list[tuple[str, str]]:
    """What `triune info` says about a checkpoint of this task: pairs of name and text."""
    config: Any = pretrained.model.config
    (height, width), patch = config.size, config.patch
    name = pretrained.source.name
    return [
        ("images", f"{height}x{width}x{config.channels}, patches of {patch[0]}x{patch[1]}, pool {config.pool}"),
        ("table", f"{config.position} positions, stretched as {config.resample} does"),
        ("classes", f"{config.classes}" if config.classes else "none: a backbone"),
        ("probe", f"triune vision probe --model {name} --data.root FOLDER"),
        ("fine-tune", f"triune vision fit --model.pretrained {name} --data.root FOLDER"),
    ]
