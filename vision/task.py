"""Training an image classifier: cross-entropy or one-vs-rest, judged by accuracy and by how honest its probabilities
are.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.checkpoints.native import CONFIG
from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.evaluate import pictures as shared
from ..core.evaluate.judgement import Judgement
from ..core.heads.classify import Classify
from ..core.losses import IGNORED
from ..core.training.lightning_fixes import copies
from ..core.training.module import Loss
from ..core.training.run.folder import RunFolder
from ..core.training.start import Start, adapted_transformer, rebuilt, refuse_contradictions
from .data.module import ImageData
from .data.names import refuse_other
from .data.trained import read_trained
from .evaluate import plots as pictures
from .evaluate.baselines import Baseline, all_baselines
from .evaluate.calibration import read_temperature, store_temperature
from .evaluate.metrics import by_class, class_head, interval, of_epoch, summary
from .evaluate.table import NO_TEST, table
from .model import Pool, Position, VisionTransformer, VisionTransformerConfig, checked_patch, new_head, pair
from .patches import Stem
from .patches import patch_for as patch_for
from .positions import Coordinates, Resample
from .training import ImageTraining
from .views import SHORT as VIEWS
from .views import Views, averaged, check_use, check_views, read_calibration, said, store_calibration

SMALL = TransformerConfig(
    dim=192, depth=6, heads=3, position="none", norm_eps=1e-6, bias=False, init_std=None, init_residual="zero"
)
"""An encoder for small data sets: with few tokens, LayerNorm and a learned table take about two thirds of the time of
RMSNorm, QK-norm and rotary positions."""


class VisionTask(ImageTraining):
    """A Vision Transformer that names what is in an image.

    Image size, channels and class names come from the data. Validation and test score the softmax cross-entropy of the
    true class, whatever was trained. The best weights are those with the highest top-1 accuracy.

    Args:
        transformer: the core.
        patch_size: pixels of a patch, or height and width. Left out: by the image size; 2 of 8 pixels, 4 of 28 or 32,
            16 from 112 on.
        class_token: a learned token before the patches.
        registers: further learned tokens (Darcet et al. 2024).
        pool: what the head reads: the `class` token, the `mean` of the patches, or an `attention` pool.
        position: table added to the patches: `learned`, `sincos2d` or `none`; beside it, transformer.position is `none`
            or `rotary`.
        position_covers_class: the learned table has a row for the class token.
        resample: how the learned table is stretched to images of another size.
        rotary_coordinates: `index` counts patches, `unit` runs over the image.
        stem: how a patch becomes a token: one matrix for its pixels (`patches`), or 3 x 3 `convolutions`, which learn
            more from few images (Xiao et al. 2021).
        pre_logits: a linear layer and tanh before the head.
        label_smoothing: part of each label that is spread over all classes, in training.
        logit_adjustment: for classes of unequal size: in training, this times the log of each class's share is added to
            its logit, so that 1 aims at the mean accuracy over classes (Menon et al. 2021) and 0 at that over images.
        binary: train one yes-or-no question for each class (binary cross-entropy, summed over classes; DeiT III).
        tta: views whose probabilities are averaged in validation and test: `none`, `flip` (mirrored), `crops` (and the
            four corners) or `all`; --tta for short. What calibrates the averages is kept for `test` and `classify`.
        pretrained: a checkpoint to fine-tune: a folder or hub name of Hugging Face or timm, a file, a run or model
            folder. Its config and its preprocessing are used, with a new head unless it has the classes of the data;
            of `transformer` only dropout and stochastic depth may then be chosen.
        lora: train low-rank factors beside the linear layers, and the head, instead of all weights.
        **training: optimizer, schedule, ema, compile, lora and freeze; see `TrainingModule`.
    """

    SHORT = VIEWS
    unit = "img"
    loss_unit = "nats per image"
    monitor = ("val_top1", "max")

    def __init__(
        self,
        transformer: TransformerConfig = SMALL,
        patch_size: int | list[int] | None = None,
        class_token: bool = False,
        registers: int = 0,
        pool: Pool = "mean",
        position: Position = "learned",
        position_covers_class: bool = True,
        resample: Resample = "reference",
        rotary_coordinates: Coordinates = "index",
        stem: Stem = "patches",
        pre_logits: bool = False,
        label_smoothing: float = 0.0,
        logit_adjustment: float = 0.0,
        binary: bool = False,
        tta: Views = "none",
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.tta, self._said = tta, list[str]()
        check_views(tta, mirrors=True)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}, but must be at least 0 and below 1 (such as 0.1).")
        if not 0 <= logit_adjustment <= 10 or (logit_adjustment and binary):
            raise UserError(f"logit_adjustment is {logit_adjustment}, but must be 0 to 10, and 0 with binary true.")
        self.label_smoothing, self.binary, self.logit_adjustment = label_smoothing, binary, logit_adjustment
        self._adjustment: Tensor | None = None
        self.transformer_config, self.patch_size = transformer, checked_patch(patch_size)
        self.options: dict[str, Any] = {
            "stem": stem, "class_token": class_token, "registers": registers, "pool": pool, "position": position,
            "position_covers_class": position_covers_class, "resample": resample,
            "rotary_coordinates": rotary_coordinates, "pre_logits": pre_logits,
        }  # fmt: skip
        self._logits: Tensor | None = None  # of the evaluation batch at hand
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.predicted: tuple[Tensor, Tensor, Tensor] | None = None
        """Of the last evaluation: logits [images, classes], labels [images] and the number of each image in its
        side.
        """
        self._heads: dict[bool, Classify] = {}  # not among the modules: its layer is the model's own
        self.judgement: Judgement | None = None
        """Of the last evaluation."""
        self.temperature: float | None = None
        """Fitted on the validation images of the last evaluation."""
        self.baselines: list[Baseline] = []

    @property
    def data(self) -> ImageData:
        """The data module of the trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def build_model(self, data: Any) -> VisionTransformer:
        """A new model for the images and classes of the data."""
        if not isinstance(data, ImageData):
            raise UserError("VisionTask needs ImageData: its classes decide the size of the head.")
        return VisionTransformer(
            VisionTransformerConfig(
                image_size=list(data.image_size),
                patch_size=patch_for(data.image_size) if self.patch_size is None else self.patch_size,
                channels=data.channels,
                classes=data.classes,
                transformer=self.transformer_config,
                head_bias=self._head_bias(data.classes),
                labels=list(data.labels),
                preprocessing=data.preprocessing,
                **self.options,
            )
        )

    def _head_bias(self, classes: int) -> float:
        """So that a one-vs-rest model starts by giving each class its share."""
        return -math.log(classes) if self.binary else 0.0

    # --- fine-tuning --------------------------------------------------------------------------------------------------

    def lens_subject(self, batch: dict[str, Tensor]) -> Any:
        from .lens import in_training

        assert self.model is not None
        return in_training(self.model, batch["images"][:16])

    def adapt_model(self, start: Start, data: Any) -> VisionTransformer:
        """The checkpoint's model at the size of the data's images, with a head for their classes."""
        if not isinstance(data, ImageData):
            raise UserError("VisionTask needs ImageData: its classes decide the size of the head.")
        model = start.model
        assert isinstance(model, VisionTransformer)
        config = model.config
        given = self.options | {"patch_size": self.patch_size and pair(self.patch_size, "patch_size")}
        refuse_contradictions(VisionTask, given, vars(config), start.source)
        transformer = adapted_transformer(self.transformer_config, SMALL, config.transformer, start.source)
        if transformer != config.transformer:
            model = rebuilt(model, replace(config, transformer=transformer))
        if tuple(data.image_size) != config.size:
            model = model.resized(list(data.image_size))
        same = bool(config.labels) and config.labels == list(data.labels)
        model.config = config = replace(
            model.config, classes=data.classes, labels=list(data.labels), preprocessing=data.preprocessing,
            head_bias=self._head_bias(data.classes),
        )  # fmt: skip
        if not same:
            model.head = new_head(config)
        self.transformer_config, self.options["position"] = config.transformer, config.position
        return model

    def is_new(self, name: str) -> bool:
        return name.startswith("head.")

    # --- training ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_use(self.tta, stage, self._trainer and self.data)

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """Loss in nats over the images. Batch as `ImageData` makes it: labels int `[batch]`, or float `[batch,
        classes]`.
        """
        assert self.model is not None
        kind, labels = "none" if self.training else self.tta, batch["labels"]
        logits = averaged(self.model, batch["images"], kind).float()
        if not self.training:
            self._logits = logits
            return Loss(*self.head().loss(logits, labels))
        if self.logit_adjustment:
            logits = logits + self._log_shares().to(logits.device)
        # The number is known on the host; on the device nothing has to be counted.
        count = torch.full((), len(labels), device=logits.device)
        return Loss(self.head(True).loss(logits, labels)[0], count)

    def head(self, training: bool = False) -> Classify:
        """The core's head for the classes, whose layer is the model's own; with the options of the training."""
        if training not in self._heads:
            options = {"label_smoothing": float(self.label_smoothing), "one_vs_rest": self.binary} if training else {}
            self._heads[training] = class_head(self._names, **options)
        return self._heads[training]

    def _log_shares(self) -> Tensor:
        """What the option adds to the logits: float32 `[classes]`."""
        if self._adjustment is None:
            counts = torch.tensor(self.data.counts("train"), dtype=torch.float32)
            self._adjustment = self.logit_adjustment * (counts / counts.sum()).log()
        return self._adjustment

    def slots(self, batch: dict[str, Tensor]) -> int:
        return len(batch["images"])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> dict[str, Tensor]:
        """Logits float32 `[images, classes]`, labels and numbers of the images of a batch, without what fills it up."""
        assert self.model is not None
        keep = batch["labels"] != IGNORED
        logits = averaged(self.model, batch["images"], self.tta).float()
        kept = {"logits": logits, "labels": batch["labels"], "index": batch["index"]}
        return {name: values[keep].cpu() for name, values in kept.items()}

    # --- judging -----------------------------------------------------------------------------------------------------

    def update_metrics(self, batch: dict[str, Tensor]) -> None:
        assert self._logits is not None
        self._seen.append((self._logits.detach(), batch["labels"], batch["index"]))
        self._logits = None

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """Accuracy and calibration over the images of all ranks; the predictions themselves stay in `predicted`."""
        parts = [torch.cat(part) for part in zip(*self._seen)]
        self._seen = []
        if self.trainer.world_size > 1:
            # Ranks have equally many; what fills up the last batches is labelled as ignored.
            same = copies(self.trainer)
            parts = [self.all_gather(part)[::same].flatten(0, 1) for part in parts]  # type: ignore[index]
        logits, labels, index = (part.cpu() for part in parts)
        keep = labels != IGNORED
        self.predicted = logits[keep], labels[keep], index[keep]
        if not torch.isfinite(logits).all():
            return {}  # diverged: the loss says so, and a long training is stopped by its own check
        return dict(of_epoch(self.head(), *self.predicted[:2]))

    def on_test_epoch_end(self) -> None:
        self._evaluation_end(self.data.scored)  # validation images must not be called test images

    @property
    def _names(self) -> list[str]:
        assert isinstance(self.model, VisionTransformer)
        return self.model.config.labels

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        """Further metrics of the evaluation just made: calibration and, on validation images, the baselines.

        The temperature is fitted on validation images, and judged by cross-fitting: no image by a temperature that it
        helped to choose. Test images are judged with the one stored with the run's model.
        """
        if self.predicted is None:
            return {}
        logits, labels, _ = self.predicted
        testing = self.trainer.state.fn == "test"
        if testing and self.data.scored == "test":
            return self._test_metrics(logits, labels, run)
        trained = "train" in self.data.names and not testing
        judged = self._judge(logits, labels, None, self.data.counts("train") if trained else None)
        self.temperature = self.head().calibrate(logits, labels)["temperature"]
        if self.tta != "none" and self.trainer.state.fn == "validate" and run is not None:
            store_calibration(run.model, self.tta, {"temperature": self.temperature})
        self._said = said(self.tta, True)
        self.baselines = all_baselines(self.data, self._names) if trained else []
        return {
            **({"scored": NO_TEST} if testing else {}),
            **summary(judged, "val"),
            "temperature": self.temperature,
            **{f"baseline_{b.name.replace(' ', '_')}": b.top1 for b in self.baselines},
            "skipped_images": self.data.skipped,
            **by_class(judged),
        }

    def _test_metrics(self, logits: Tensor, labels: Tensor, run: RunFolder | None) -> dict[str, Any]:
        stored: dict[str, Any] = {}
        if run is not None and (run.model / CONFIG).is_file():
            views = read_calibration(run.model, self.tta)
            self._said = said(self.tta, views is not None, str(run))
            stored = {"temperature": views["temperature"] if views else read_temperature(run.model)}
        judged = self._judge(logits, labels, stored)
        return {**summary(judged, "test"), **stored, **by_class(judged)}

    def _judge(
        self, logits: Tensor, labels: Tensor, calibration: dict[str, Any] | None, counts: Sequence[int] | None = None
    ) -> Judgement:
        """Fills `judgement`; without the training images of each class no constant answer is known."""
        judged = class_head(self._names, counts).judge(logits, labels, calibration)
        self.judgement = judged if counts else replace(judged, baseline={})
        return self.judgement

    # --- what the command line shows and writes ----------------------------------------------------------------------

    def describe(self) -> str:
        """One line about the model."""
        c, model = self.transformer_config, self.model
        patch = "x".join(map(str, model.config.patch)) if isinstance(model, VisionTransformer) else "?"
        positions = " + ".join(p for p in (self.options["position"], c.position) if p != "none") or "no"
        stem = " by convolutions" if self.options["stem"] == "convolutions" else ""
        return (
            f"patches of {patch}{stem}, {c.depth} layers x {c.dim}, {c.heads} heads, {c.norm}, {c.ffn_words()}, "
            f"{positions} positions"
        )

    def table(self, metrics: dict[str, Any]) -> str:
        """The metrics beside those of the baselines."""
        notes = list(self.data.notes) if self.data.scores else []
        return table(metrics, self.baselines, [*interval(self.judgement), *notes, *self._said])

    def finish(self, run: RunFolder) -> None:
        """Draws the pictures of a run: confusion.png, reliability.png, classes.png, mistakes.png and
        learning_curves.png.
        """
        if self.judgement is None or self.temperature is None or self.predicted is None:
            return
        name = run.path.name
        shared.draw(self.judgement, run.path, unit="images")
        logits, labels, index = self.predicted
        wrong = pictures.confident_mistakes(logits, labels)
        pictures.mistakes(
            [self._pixels(int(index[i])) for i in wrong], logits[wrong] / self.temperature, labels[wrong],
            self._names, run.path / "mistakes.png", name,
        )  # fmt: skip
        beaten = {b.name: b.top1 for b in self.baselines if b.top1 is not None}
        pictures.learning_curves(run.metrics, run.path / "learning_curves.png", name, beaten)

    def _pixels(self, index: int) -> Any:
        """A validation image as an array `[height, width]` or `[height, width, 3]`, as the model was shown it."""
        return self.data.picture("val", index).permute(1, 2, 0).squeeze(-1).numpy()

    def export(self, folder: Path) -> None:
        """Writes the model with class names, preprocessing and temperature, for `triune vision classify`."""
        assert isinstance(self.model, VisionTransformer)
        self.model.save_pretrained(folder, self.export_state())
        if self.temperature is not None:
            store_temperature(folder, self.temperature)

    def next_steps(self, run: RunFolder) -> list[str]:
        """Commands to type after training."""
        folder = shlex.quote(str(run))
        return [
            f"triune vision classify IMAGE --run {folder} --attention seen.png",
            f"triune vision export {folder} --onnx model.onnx",
        ]

    # --- class names in checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["labels"] = self._names
        checkpoint["images"] = self.data.trained.to_dict()

    def before_scoring(self, checkpoint: Path, data: Any) -> None:
        """Lets the data prepare images, and name classes, as those of the training were."""
        if isinstance(data, ImageData) and (trained := read_trained(checkpoint)) is not None:
            data.continue_as(trained)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError when the data have other classes than the checkpoint."""
        if "labels" in checkpoint and self._trainer is not None and not self.data.scores:
            refuse_other(self.data.labels, checkpoint["labels"], "the checkpoint")
        super().on_load_checkpoint(checkpoint)
