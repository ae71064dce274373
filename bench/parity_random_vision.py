"""Random image models of timm, torchvision and transformers, and protein models of fair-esm and transformers.

    pip install '.[test]' && python bench/parity_random_vision.py [CONFIGURATIONS]

As `parity_random.py`: each model is made by its library with random weights, saved by it, read by triune, compared, and
what triune writes back is compared again. Image models are compared with the object that was saved, too. Refusals are
counted and printed; a configuration that the library itself cannot run is drawn again.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import warnings
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triune.core.checkpoints.family import apart
from triune.core.errors import UserError

LIMIT = 2.5e-5
HF = ("ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "DeiT", "Beit", "CLIP", "Siglip")
KINDS = ("timm ViT", "timm Eva", "timm Beit", "timm entry", "torchvision", *HF, "fair ESM-2", "fair ESM-1b", "ESM")
_ACTS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")


def draw(seed: int) -> tuple[str, dict[str, Any]]:
    """A kind of model and its options; every kind in turn."""
    r, kind = random.Random(seed), KINDS[seed % len(KINDS)]
    heads, depth, dim = r.choice((1, 2, 4, 6)), r.randint(1, 4), r.choice((8, 12, 16))
    if kind.startswith("timm"):
        return kind, _timm(r, kind, heads, depth, heads * dim)
    if kind == "torchvision":
        return kind, {
            "image_size": 8 * r.randint(1, 4), "patch_size": 8, "num_layers": depth, "num_heads": heads,
            "hidden_dim": heads * dim, "mlp_dim": r.randint(5, 90), "num_classes": r.choice((0, 1, 7)),
            "dropout": r.choice((0.0, 0.3)), "attention_dropout": r.choice((0.0, 0.3)),
            "representation_size": r.choice((None, heads * dim, 20)),
        }  # fmt: skip
    if kind.startswith("fair"):
        return kind, {
            "layers": depth, "embed_dim": heads * dim, "attention_heads": heads, "token_dropout": r.random() < 0.5,
            "norm": r.random() < 0.5, "ffn_embed_dim": r.randint(5, 90), "max_positions": r.choice((60, 1024)),
        }  # fmt: skip
    even = {"hidden_size": heads * dim, "num_hidden_layers": depth, "num_attention_heads": heads}
    even |= {"intermediate_size": r.randint(5, 90), "layer_norm_eps": r.choice((1e-12, 1e-6, 1e-5, 1e-3, 0.1))}
    even |= {"dtype": r.choice(("float32", "float32", "bfloat16", "float16"))}
    if kind == "ESM":
        return kind, even | {
            "vocab_size": r.choice((33, 40)), "mask_token_id": 32, "pad_token_id": 1,
            "position_embedding_type": r.choice(("rotary", "absolute")), "rope_theta": r.choice((100.0, 1e4)),
            "emb_layer_norm_before": r.random() < 0.5, "token_dropout": r.random() < 0.5,
            "max_position_embeddings": r.choice((64, 1026)), "hidden_dropout_prob": r.choice((0.0, 0.3)),
            "tie_word_embeddings": r.random() < 0.8, "is_decoder": r.random() < 0.1,
        }  # fmt: skip
    return kind, even | _image(r, kind)


def _image(r: random.Random, kind: str) -> dict[str, Any]:
    patch = r.choice((4, 5, 8))
    sides = [patch * r.randint(1, 4), patch * r.randint(1, 4)]
    found: dict[str, Any] = {
        "image_size": r.choice((sides[0], sides)), "patch_size": r.choice((patch, [patch, patch])),
        "num_channels": r.choice((1, 3, 4)), "hidden_act": r.choice(_ACTS), "num_labels": r.choice((0, 1, 2, 5)),
        "head": r.random() < 0.5, "drop_path_rate": r.choice((0.0, 0.2)), "hidden_dropout_prob": r.choice((0.0, 0.2)),
    }  # fmt: skip
    if kind == "DINOv3ViT":
        found |= {f"{name}_bias": r.random() < 0.5 for name in ("query", "key", "value", "proj", "mlp")}
        found |= {"rope_theta": r.choice((10.0, 100.0)), "use_gated_mlp": r.random() < 0.5, "head": False}
        return found | {"num_register_tokens": r.randint(0, 3), "layerscale_value": r.choice((1.0, 0.1))}
    if kind in ("CLIP", "Siglip"):
        side = patch * r.randint(1, 4)
        found |= {"image_size": side, "patch_size": patch, "vision_use_head": r.random() < 0.7}
        return found
    if kind == "Beit":
        both = r.choice((True, False)), r.random() < 0.3
        found |= {"use_relative_position_bias": both[0], "use_shared_relative_position_bias": both[1]}
        found |= {"use_absolute_position_embeddings": r.random() < 0.4, "use_mean_pooling": r.random() < 0.7}
        found |= {"image_size": r.choice((sides[0], sides[0], sides)), "patch_size": patch}
        return found | {"layer_scale_init_value": r.choice((0.0, 0.1))}
    found |= {"qkv_bias": r.random() < 0.5}
    if kind == "DeiT":
        return found | {"pooler_act": "tanh", "teacher": r.random() < 0.4}
    if kind == "ViT":
        return found | {"pooler_act": r.choice(("tanh", "tanh", "gelu")), "head_dim": r.choice((None, None, 8, 12))}
    found |= {
        "mlp_ratio": r.randint(1, 4),
        "use_swiglu_ffn": r.random() < 0.4,
        "layerscale_value": r.choice((1.0, 0.1)),
    }
    return found | ({"num_register_tokens": r.randint(0, 3)} if "Registers" in kind else {"use_mask_token": True})


def _timm(r: random.Random, kind: str, heads: int, depth: int, dim: int) -> dict[str, Any]:
    patch, yes = r.choice((4, 8)), lambda chance=0.5: r.random() < chance
    found: dict[str, Any] = {"img_size": [patch * r.randint(1, 4), patch * r.randint(1, 4)], "patch_size": patch}
    found |= {"embed_dim": dim, "depth": depth, "num_heads": heads, "num_classes": r.choice((0, 1, 5))}
    if kind == "timm entry":
        import timm

        modules = {name for m in ("vision_transformer", "deit", "eva", "beit") for name in timm.list_models(module=m)}
        return found | {"name": r.choice(sorted(modules))}
    if kind == "timm Beit":
        return found | {
            "name": "beit_base_patch16_224", "qkv_bias": yes(), "swiglu_mlp": yes(0.3), "scale_mlp": yes(0.3),
            "init_values": r.choice((None, 0.1)), "use_abs_pos_emb": yes(), "use_rel_pos_bias": yes(0.6),
            "use_shared_rel_pos_bias": yes(0.3), "use_fc_norm": r.choice((None, True, False)),
            "global_pool": r.choice(("avg", "token", "")), "mlp_ratio": r.choice((1.0, 2.5, 3.3)),
        }  # fmt: skip
    found |= {
        "in_chans": r.choice((1, 3)), "mlp_ratio": r.choice((1.0, 2.5, 3.3, 4.0)), "qkv_bias": yes(),
        "qk_norm": yes(0.3), "class_token": yes(0.8), "no_embed_class": yes(),
        "init_values": r.choice((None, 0.0, 0.1)),
        "drop_rate": r.choice((0.0, 0.2)), "drop_path_rate": r.choice((0.0, 0.2)), "dynamic_img_size": yes(0.2),
        "global_pool": r.choice(("token", "avg", "map", "") * 4 + ("max", "avgmax")),
    }  # fmt: skip
    if kind == "timm ViT":
        return found | {
            "name": r.choice(("vit_base_patch16_224", "vit_base_patch16_clip_224", "vit_giant_patch14_dinov2")),
            "reg_tokens": r.choice((0, 0, 2)), "pre_norm": yes(0.3), "final_norm": yes(0.8),
            "fc_norm": r.choice((None, True, False)), "pool_include_prefix": yes(0.1), "proj_bias": yes(0.8),
            "scale_attn_norm": yes(0.3), "scale_mlp_norm": yes(0.3), "pos_embed": r.choice(("learn", "learn", "none")),
            "act_layer": r.choice(("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")),
            "norm_layer": r.choice(("layernorm", "rmsnorm", None)),
            "embed_norm_layer": "layernorm" if yes(0.1) else None,
        }  # fmt: skip
    return found | {
        "name": r.choice(("eva02_base_patch14_224", "vit_base_patch16_dinov3")), "num_reg_tokens": r.choice((0, 0, 2)),
        "qkv_fused": yes(), "swiglu_mlp": yes(), "swiglu_align_to": r.choice((0, 0, 8)), "scale_mlp": yes(),
        "scale_attn_inner": yes(), "attn_type": r.choice(("eva", "rope")), "use_abs_pos_emb": yes(),
        "use_rot_pos_emb": yes(0.8), "rope_type": r.choice(("cat", "dinov3") * 3 + ("mixed",)),
        "rope_grid_indexing": r.choice(("ij", "xy")), "rope_grid_offset": r.choice((0.0, 0.0, 0.5, 1.0)),
        "rope_temperature": r.choice((10.0, 100.0, 1e4)), "rope_rotate_half": yes(), "use_post_norm": yes(0.05),
        "use_pre_transformer_norm": yes(0.3), "use_post_transformer_norm": r.choice((None, True, False)),
        "use_fc_norm": r.choice((None, True, False)), "ref_feat_shape": r.choice((None, [3, 3], [4, 2])),
        "attn_only_layer_scale": yes(0.05), "num_kv_heads": r.choice((None, None, 1)),
    }  # fmt: skip


def shaken(model: nn.Module) -> Any:
    """The model in evaluation mode with every parameter random, outputs of order one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            spread = max(parameter[0].numel(), 1) ** -0.5 if parameter.dim() > 1 and name.endswith("weight") else 0.3
            parameter.copy_(around + spread * torch.randn_like(parameter))
    return model.eval()


def make(kind: str, options: dict[str, Any], folder: Path) -> tuple[Any, Path, str]:
    """The original model, as saved: itself, where it lies, and its library."""
    options, theirs = dict(options), folder / "theirs"
    if kind.startswith("timm"):
        import timm
        from timm.models import save_for_hf

        model = shaken(timm.create_model(options.pop("name"), **options))
        save_for_hf(model, str(theirs), safe_serialization=True)
        return model, theirs, "timm"
    if kind == "torchvision":
        from safetensors.torch import save_file
        from torchvision.models import VisionTransformer

        model = shaken(VisionTransformer(**options))
        theirs.mkdir()
        save_file(model.state_dict(), theirs / "model.safetensors")
        (theirs / "config.json").write_text(json.dumps({"library": "torchvision", "model_args": options}))
        return model, theirs, "torchvision"
    if kind.startswith("fair"):
        return (*_fair(kind, options, folder), "fair-esm")
    import transformers

    dtype, head = getattr(torch, options.pop("dtype")), options.pop("head", True)
    if options.get("head_dim", 0) is None:
        del options["head_dim"]
    teacher = options.pop("teacher", False)
    name = "EsmForMaskedLM" if kind == "ESM" else f"{kind}{'ForImageClassification' if head else 'Model'}"
    if head and teacher:
        name += "WithTeacher"
    tower = kind in ("CLIP", "Siglip")
    if tower and not head:
        name = f"{kind}VisionModel"
    cls: Any = getattr(transformers, name)
    if tower and head:
        labels = {"num_labels": options.pop("num_labels")}
        options = {"vision_config": options, "text_config": {"hidden_size": 8, "num_attention_heads": 1}, **labels}
    model = shaken(cls(cls.config_class(**options)))
    if options.get("position_embedding_type") == "rotary":
        dtype = torch.float32  # its frequencies would be rounded to that dtype
    model.to(dtype).save_pretrained(theirs)
    return cls.from_pretrained(theirs, dtype=torch.float32).eval(), theirs, "hf"


def _fair(kind: str, o: dict[str, Any], folder: Path) -> tuple[Any, Path]:
    import esm

    settings = Namespace(**{k if k == "token_dropout" else f"encoder_{k}": o[k] for k in _FAIR})
    if kind == "fair ESM-2":
        model = shaken(esm.ESM2(o["layers"], o["embed_dim"], o["attention_heads"], token_dropout=o["token_dropout"]))
    else:
        args = Namespace(
            arch="roberta_large", emb_layer_norm_before=o["norm"], **{k: v for k, v in o.items() if k != "norm"}
        )
        model = shaken(esm.ProteinBertModel(args, esm.Alphabet.from_architecture("ESM-1b")))
        vars(settings).update(
            arch="roberta_large", encoder_ffn_embed_dim=o["ffn_embed_dim"], max_positions=o["max_positions"]
        )
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("contact_head")}
    state = {("encoder." if n.startswith("lm_head") else "encoder.sentence_encoder.") + n: t for n, t in state.items()}
    path = folder / ("esm2_x.pt" if kind == "fair ESM-2" else "esm1b_x.pt")
    whole = {"cfg": {"model": settings}} if kind == "fair ESM-2" else {"args": settings}
    torch.save(whole | {"model": state}, path)
    head = {n: t for n, t in model.state_dict().items() if n.startswith("contact_head")}
    torch.save({"model": head}, folder / f"{path.stem}-contact-regression.pt")
    return model, path


_FAIR = ("layers", "embed_dim", "attention_heads", "token_dropout")


def answers(model: Any, library: str, images: torch.Tensor) -> torch.Tensor:
    """What the original returns: logits, the pooled vector where it has no head, or tokens where nothing is pooled."""
    if library == "timm" and not model.global_pool:
        return model.forward_features(images)
    found = model(images)
    if library != "hf":
        return found
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def compare(seed: int, folder: Path) -> dict[str, Any] | None:
    """One row of the table; None where the library itself cannot run the configuration."""
    from triune.protein.language.checkpoints import pretrained as protein
    from triune.vision.checkpoints import pretrained as vision

    kind, options = draw(seed)
    room: Any = protein if "ESM" in kind else vision
    row: dict[str, Any] = {"seed": seed, "class": options.get("name", kind)}
    torch.manual_seed(seed)
    images = wanted = None
    try:
        original, theirs, library = make(kind, options, folder)
        if room is vision:
            size: Any = options.get("image_size", options.get("img_size"))
            height, width = size if isinstance(size, list) else (size, size)
            channels = options.get("num_channels", options.get("in_chans", 3))
            images = torch.randn(2, channels, height, width)
            with torch.no_grad():
                wanted = answers(original, library, images)
    except Exception:  # whatever the library says to a configuration that it does not have
        return None
    try:
        ours = room.load(str(theirs))
        if wanted is not None:
            with torch.no_grad():
                found = ours.model.tokens(images) if wanted.dim() == 3 else ours.model(images)
            row["object"] = apart(found, wanted) if found.shape == wanted.shape else float("nan")
        row["source"] = room.parity(ours, theirs, library)
        room.export(ours, folder / "back", library)
        row["written"] = room.parity(ours, folder / "back", library)
    except UserError as error:
        return row | {"refused": str(error).replace(str(folder), "")}
    except Exception as error:  # what was written does not run there, or ours is not prepared for it
        return row | {"source": float("nan"), "error": f"{type(error).__name__}: {error}"[:200]}
    return row


def run(wanted: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of the first `wanted` configurations from seed `first` on that their libraries can run."""
    rows: list[dict[str, Any]] = []
    while len(rows) < wanted:
        with tempfile.TemporaryDirectory() as folder:
            row = compare(first, Path(folder))
        first += 1
        rows += [row] if row else []
    return rows


def largest(row: dict[str, Any]) -> float:
    """The largest difference of a row; NaN counts as infinite."""
    found = [row[key] for key in ("object", "source", "written") if key in row]
    return max(value if value == value else float("inf") for value in [*found, 0.0])


def wrong(row: dict[str, Any]) -> bool:
    """Whether outputs differ by more than rounding, also where a later step was refused."""
    return largest(row) > LIMIT


def main() -> None:
    import transformers
    from common import record

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = run(int(sys.argv[1]) if len(sys.argv) > 1 else 330, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    bad, refused = [row for row in rows if wrong(row)], [row for row in rows if "refused" in row]
    worst = max(largest(row) for row in rows if not wrong(row))
    print(*bad, *Counter(row["refused"] for row in refused).items(), sep="\n")
    print(f"{len(rows)} configurations: {len(bad)} wrong, {len(refused)} refused, largest difference {worst:.2g}")
    record("parity_random_vision", rows, configurations=len(rows), wrong=len(bad), refused=len(refused), largest=worst)


if __name__ == "__main__":
    main()
