"""Images per second of ViT-S/16 at 224 pixels: triune, timm and Hugging Face, same sizes, same batch, same run.

    python bench/vision_speed.py --batch 8                           eager, on this machine
    python bench/vision_speed.py --batch 8 --compile
    python bench/vision_speed.py --batch 256 --bf16 --compile        on a GPU

A training step is forward, cross-entropy, backward and an update by the same fused AdamW; inference is forward without
gradients. The models take turns; "times timm" is the median over the rounds of the ratio within a round, which a
machine that other work shares disturbs less than the images per second. `triune rotary` has 2-D rotary instead of
learned positions and is otherwise equal. Before anything is timed, triune's and timm's outputs are compared on the
same weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import interleaved, record, spread, table
from torch import Tensor, nn

DEPTH, DIM, HEADS, CLASSES = 12, 384, 6, 1000


def ours(rotary: bool = False, compiled: bool = False) -> nn.Module:
    from triune.core import RotaryConfig, TransformerConfig
    from triune.vision.model import VisionTransformer, VisionTransformerConfig

    turned = {"position": "rotary", "rotary": RotaryConfig(axes=2, base=100.0)} if rotary else {"position": "none"}
    transformer = TransformerConfig(dim=DIM, depth=DEPTH, heads=HEADS, norm_eps=1e-6, **turned)  # type: ignore[arg-type]
    position = "none" if rotary else "learned"
    model = VisionTransformer(VisionTransformerConfig(classes=CLASSES, transformer=transformer, position=position))
    if compiled:
        for block in model.transformer.blocks:
            block.compile()
    return model


def timms(compiled: bool = False) -> nn.Module:
    import timm

    model = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=CLASSES)
    return torch.compile(model) if compiled else model  # type: ignore[return-value]


class HuggingFace(nn.Module):
    """`ViTForImageClassification` that returns its logits."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * DIM,
            num_labels=CLASSES, attn_implementation="sdpa",
        )  # fmt: skip
        self.model = ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def hugging_faces(compiled: bool = False) -> nn.Module:
    model = HuggingFace()
    return torch.compile(model) if compiled else model  # type: ignore[return-value]


def weights_for_timm(model: nn.Module) -> dict[str, Tensor]:
    """The weights of triune's model under timm's names."""
    state, found = model.state_dict(), {}
    found["cls_token"] = state["class_token"]
    found["pos_embed"] = state["positions.table"][None]
    for name in ("weight", "bias"):
        found[f"patch_embed.proj.{name}"] = state[f"patch_embed.{name}"]
        found[f"norm.{name}"] = state[f"transformer.final_norm.{name}"]
        found[f"head.{name}"] = state[f"head.{name}"]
        for layer in range(DEPTH):
            mine, theirs = f"transformer.blocks.{layer}.", f"blocks.{layer}."
            found[f"{theirs}attn.qkv.{name}"] = torch.cat([state[f"{mine}attn.{x}.{name}"] for x in "qkv"])
            pairs = {
                "attn.out": "attn.proj",
                "ffn.up": "mlp.fc1",
                "ffn.down": "mlp.fc2",
                "norm1": "norm1",
                "norm2": "norm2",
            }
            for own, other in pairs.items():
                found[f"{theirs}{other}.{name}"] = state[f"{mine}{own}.{name}"]
    return found


def check_equal() -> float:
    """Largest difference of the logits of triune and timm with the same random weights."""
    torch.manual_seed(0)
    mine, theirs = ours().eval(), timms().eval()
    nn.init.normal_(mine.head.weight)
    theirs.load_state_dict(weights_for_timm(mine))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        difference = float((mine(images) - theirs(images)).abs().max())
    assert difference < 1e-3, f"triune and timm differ by {difference}"
    return difference


def training_step(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        model.train()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def inference(model: nn.Module, images: Tensor, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            model(images)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", choices=("train", "infer"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    difference = check_equal()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randn(options.batch, 3, 224, 224, device=device)
    labels = torch.randint(CLASSES, (options.batch,), device=device)
    makers = {
        "triune": lambda: ours(compiled=options.compile),
        "triune rotary": lambda: ours(rotary=True, compiled=options.compile),
        "timm": lambda: timms(options.compile),
        "transformers": lambda: hugging_faces(options.compile),
    }
    models = {name: make().to(device) for name, make in makers.items()}
    rows = []
    for kind in [options.only] if options.only else ["infer", "train"]:
        actions = {
            name: inference(model, images, options.bf16)
            if kind == "infer"
            else training_step(model, images, labels, options.bf16)
            for name, model in models.items()
        }
        found = interleaved(actions, options.rounds, options.repeats, sync=device.type == "cuda")
        for name, seconds in found.items():
            speed = spread([options.batch / s for s in seconds])
            beside = {x: statistics.median(b / a for a, b in zip(seconds, found[x])) for x in ("timm", "transformers")}
            size = sum(p.numel() for p in models[name].parameters())
            rows.append(
                {
                    "system": name,
                    "what": kind,
                    "parameters": size,
                    "images/s": speed["median"],
                    **{k: speed[k] for k in ("low", "high")},
                    **{f"times {x}": times for x, times in beside.items()},
                }
            )
    print(table(rows))
    name = f"vision_speed_{device.type}" + ("_compiled" if options.compile else "") + ("_bf16" if options.bf16 else "")
    record(name, rows, batch=options.batch, threads=options.threads, difference_from_timm=difference)


if __name__ == "__main__":
    main()
