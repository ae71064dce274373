"""Labels of images from a table: a Vision Transformer with any head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core.checkpoints.family import Pretrained
from ..core.checkpoints.saved import SavedModel
from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.files import few
from ..core.labelled.headed import with_head
from ..core.labelled.model import OWN, LabelledModel
from ..core.labelled.rows import Rows
from ..core.labelled.table import FromTable
from ..core.labelled.task import LabelTask
from ..core.labels.columns import Table
from ..core.labels.guess import cells_of
from ..core.labels.targets import Target
from ..core.losses import IGNORED
from ..core.training.data import Batches
from ..core.training.run.folder import RunFolder
from ..core.training.start import Start
from ..core.work import cache_folder
from .data.collection import Collection, Images, Paths
from .data.drawn import Balanced, WithTargets
from .data.find import table_of_folders
from .data.gather import Settings, gather
from .data.masks import Masks, WithMasks
from .data.mirrors import has_sides, mirrors_all
from .data.module import ImageData
from .evaluate.patches import MOST_SHOWN, Shown, draw_patches, mean_iou
from .heads import open_with_head
from .labelled import refuse_views, seen_in
from .masks import from_planes, masks_up_to, patch_labels, with_prefix
from .model import VisionTransformer, VisionTransformerConfig, checked_patch
from .patches import patch_for
from .predictor import ImagePredictor
from .preprocessing import Preprocessing
from .task import SMALL
from .views import SHORT as VIEWS
from .views import Views, check_use, check_views, read_calibration, said, store_calibration


class ImageTable(FromTable, ImageData):
    """Images with labels from a table, whose input column holds paths, relative to the table. A target may hold masks,
    in files whose paths are relative to the table too, or as lists of rows that cover the image.

    Args:
        **others: see `FromTable` and `ImageData`, of which root, dataset and labels have no place here.
    """

    PATHS = ("table", "cache")
    parts = "patches"

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        for name in ("root", "val_root", "dataset"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"data.{name} is given beside data.table; a table says itself where its images are, and a folder "
                    "of classes is scored with `test RUN --data.test_root FOLDER`."
                )
        called = self.labels or {}
        if not isinstance(called, dict):
            raise UserError(
                "data.labels is a list, but beside data.table must be a mapping from the values of masks to names, "
                'such as {"0": "sky", "1": "sea"}.'
            )
        if twice := [name for name in called.values() if list(called.values()).count(name) > 1]:
            raise UserError(f"data.labels calls two values '{twice[0]}', but each must have a name of its own.")
        self.labels = None
        if self.augment.mixes:
            raise UserError("data.augment.mixup and cutmix mix classes, which a table need not have; set them to 0.")
        self._called = {str(key): name for key, name in called.items()}
        self.MASKS = masks_up_to(self.max_megapixels)._replace(called=self._called)
        self._masks: Masks | None = None
        self._patches: VisionTransformerConfig | None = None
        self._of_patches: dict[str, Target] = {}

    def continue_as(self, trained: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().continue_as(trained)
        images = trained["images"]
        called = images.get("mask_names", {})
        if self._called not in ({}, called):
            raise UserError(
                f"data.labels is {self._called}, but the model was trained with {called or 'the values as names'}; "
                "leave it out."
            )
        self._called = called
        self.MASKS = masks_up_to(self.max_megapixels)._replace(called=self._called)
        self.channels, self.statistics, self._adopted = images["channels"], "auto", True
        self.image_size = self.image_size or tuple(images["image_size"])
        self.preprocessing = replace(Preprocessing.from_dict(images["preprocessing"]), **self._chosen)

    @property
    def trained(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images = {
            "channels": self.channels, "image_size": list(self.image_size), "preprocessing": asdict(self.preprocessing),
            **self.mask_names,
        }  # fmt: skip
        return super().trained | {"images": images}

    @property
    def mask_names(self) -> dict[str, Any]:
        """The names of the values of masks, where some were given."""
        return {"mask_names": self._called} if self._called else {}

    def _settings(self) -> Settings:
        return replace(super()._settings(), bits=self.preprocessing.grey_bits if self.scores else None)

    def learned(self) -> Iterable[str | bytes]:
        """See `ResumableData`: rows, the pixels of their images and of their masks."""
        rows, masks = self.side("train").tolist(), self._masks
        return chain(super().learned(), self._digests, (masks[row].numpy().tobytes() for row in rows if masks))

    def read_inputs(self, rows: Rows) -> dict[str, np.ndarray]:
        if self._called and not rows.target.masked:
            raise UserError("data.labels is given beside data.table, whose cells are the names of the classes.")
        paths = [str(rows.table.beside(cell)) for cell in rows.inputs]
        there = self._there(rows, paths)
        sides = {}
        for side, found in rows.sides.items():
            kept = found[there[found]]
            encoded = Paths([paths[row] for row in kept])
            sides[side] = Images(
                [paths[row] for row in kept], kept.astype(np.int64), encoded, rows=np.arange(len(kept))
            )
        collection = Collection([], {side: images for side, images in sides.items() if len(images)}, labelled=False)
        found = gather(collection, self._settings(), cache_folder(self.cache), lambda content: None)
        (self.image_size, self.channels), self.preprocessing = found.shape, found.preprocessing
        self._pixels, self._images, self._content = found.pixels, collection.sides, found.content
        self._digests = found.learned
        parts = rows.target.parts or [rows.target]
        # Masks are mirrored with their images.
        self._mirror = not has_sides(rows.target.names) if rows.target.masked else mirrors_all(parts)
        if rows.target.masked:
            self._fit_masks(rows, paths)
        self.names = {side: images.names for side, images in self._images.items()}
        if found.skipped:
            rows.notes.append(f"{found.skipped:,} images cannot be read and are left out")
        if found.leaked:
            rows.notes.append(f"{found.leaked:,} training images with the pixels of held-out ones are left out")
        rows.notes += [note.rstrip(".") for note in collection.notes]
        rows.notes.append(self._mirroring().removesuffix("."))
        return {side: images.labels for side, images in self._images.items()}

    def _fit_masks(self, rows: Rows, paths: list[str]) -> None:
        target: Any = rows.target
        classes = None if target.numbers else len(target.names)
        self._masks = Masks(target.values, paths, self.preprocessing, self.image_size, classes)
        for side in self._pixels:
            self._masks.remember(self._images[side].labels)
        how = "the mean" if classes is None else "the commonest label"
        rows.notes.append(
            f"A patch has {how} of its pixels, and none where they have none; masks move with their images"
        )

    def label_patches(self, config: VisionTransformerConfig) -> None:
        """Says whose patches have the labels of masks; call it after `setup`."""
        self._patches = config
        self._of_patches.clear()

    def target_of(self, side: str) -> Target:
        """The targets of a side, in its order; of masks those of patches."""
        if self._masks is None or self._patches is None:
            return super().target_of(side)
        if side not in self._of_patches:
            values: Any = self._masks.of_patches(self.side(side), self._patches.patch)
            self._of_patches[side] = replace(super().target_of(side), values=values)
        return self._of_patches[side]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> dict[str, Any]:
        if self._masks is None:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        assert self._patches is not None, "label_patches comes first"
        batch = super().on_after_batch_transfer(batch | {"masks": batch["masks"].float()}, dataloader_idx)
        labels = patch_labels(from_planes(batch.pop("masks")), self._patches.patch, self._masks.classes)
        return batch | {"targets": with_prefix(labels, self._patches.prefix)}

    def _there(self, rows: Rows, paths: list[str]) -> np.ndarray:
        """Whether the file of each row exists, bool `[rows]`. Raises UserError where one does not."""
        there = np.array([Path(path).is_file() for path in paths], bool)
        lacking = np.flatnonzero(~there)
        if len(lacking) and self.on_error == "stop":
            more = f", and so are {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
            raise UserError(
                f"'{paths[lacking[0]]}' in {rows.name(int(lacking[0]))} is no file{more}; paths are relative to the"
                " table; mend them, or leave such rows out with --data.on_error skip."
            )
        if len(lacking):
            rows.notes.append(
                f"{len(lacking):,} rows without a file are left out, the first: {rows.inputs[lacking[0]]}"
            )
        return there

    # --- a folder of classes in the place of a table ------------------------------------------------------------------

    def refuse_unused(self) -> None:
        super().refuse_unused()
        if self.test_root is not None and not self.scores:
            raise UserError(
                "data.test_root is given beside data.table; hold out rows of the table (--data.split, "
                "--data.test_fraction), and score the folder afterwards with `test RUN --data.test_root FOLDER`."
            )

    def other_table(self) -> Table | None:
        """The images of `data.test_root` and the names of their folders, as a table with the columns of the
        training.
        """
        if self.test_root is None:
            return None
        assert self.spec is not None
        target = self.table_options["target"]
        if len(target) != 1 or cells_of(self.spec.kind) not in ("classify", "ordinal"):
            raise UserError(
                f"data.test_root '{self.test_root}' names folders of classes, but the model was trained on "
                f"{few(list(target))} ({self.spec.kind}); score a table (--data.table)."
            )
        return table_of_folders(Path(self.test_root), self.table_options["input"], target[0])

    # What both parents say, of the table.
    def describe(self) -> str:
        height, width = self.image_size
        return f"{FromTable.describe(self)} Images of {height}×{width}×{self.channels}."

    def _source(self, side: str) -> Any:
        source = super()._source(side)
        return WithTargets(source, self) if self._masks is None else WithMasks(source, self._masks)

    def train_dataloader(self) -> Batches:
        self.check_sides()
        classes = self.classes_of_rows()
        if classes is None:
            return super().train_dataloader()
        order = Balanced(classes, len(classes), self.batch, *self.ranks(), self.seed, position=self.position)
        return Batches(self._source("train"), order, self._workers, self.pin)

    @property
    def scored(self) -> str:
        return self.scored_side


class ImageLabels(LabelTask):
    """An image model for the labels of a table.

    Args:
        transformer: the core of a new model.
        patch_size: of a new model, in pixels; left out: by the image size, as for `VisionTask`.
        tta: views whose answers are averaged in validation and test, as for `VisionTask`; --tta for short.
        **options: see `LabelTask`.
    """

    MODEL = ImagePredictor
    SMALL = SMALL
    COMMAND = "vision"
    SHORT = VIEWS
    unit = "img"

    def __init__(
        self, transformer: TransformerConfig = SMALL, patch_size: int | None = None, tta: Views = "none", **options: Any
    ) -> None:
        super().__init__(transformer=transformer, **options)
        self.patch_size, self.tta = checked_patch(patch_size), tta
        self._said: list[str] = []
        self._shown: dict[int, Tensor] = {}  # outputs for some images whose patches have answers, by row
        check_views(tta, mirrors=True)

    # --- several views of each image ---------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_use(self.tta, stage, self._trainer and self.data)

    def outputs_of(self, batch: dict[str, Tensor]) -> Tensor:
        if self.training or self.tta == "none":
            return super().outputs_of(batch)
        assert isinstance(self.model, ImagePredictor)
        return seen_in(self.model, self.tta)(batch)

    def _stored(self, run: RunFolder | None) -> dict[str, Any]:
        views = None if run is None else read_calibration(run.model, self.tta)
        self._said = said(self.tta, views is not None, str(run))
        return super()._stored(run) if views is None else views

    def finalise(self, run: RunFolder | None) -> dict[str, Any]:
        found = super().finalise(run)
        if self.judgement is not None and (covered := self._covered()):
            self.judgement.metrics.update(covered)
            if covered and (right := self.judgement.baseline.get("accuracy")) is not None and self.judged is not None:
                # One class everywhere: of the classes that occur it alone covers anything, its own share.
                self.judgement.baseline["mean_iou"] = right / len(self.judged[1].unique())
            side = next(name for name in found if name.endswith("_accuracy")).removesuffix("_accuracy")
            found |= {f"{side}_{name}": value for name, value in covered.items()}
        if self.tta != "none" and self.calibration and self.trainer.state.fn == "validate" and run is not None:
            store_calibration(run.model, self.tta, self.calibration)
            self._said = said(self.tta, True)
        return found

    # --- labels of patches -------------------------------------------------------------------------------------------

    def update_metrics(self, batch: dict[str, Tensor]) -> None:
        outputs = self._outputs
        if outputs is not None and outputs.dim() == 3:
            for place, row in enumerate(batch["index"].tolist()):
                if row >= 0 and (row in self._shown or len(self._shown) < MOST_SHOWN):
                    self._shown[row] = outputs[place].float().cpu()
        super().update_metrics(batch)

    def compute_metrics(self) -> dict[str, float | Tensor]:
        return super().compute_metrics() | self._covered()

    def _covered(self) -> dict[str, float]:
        """mean_iou of the patches just judged; nothing for other targets."""
        model: Any = self.model
        if self.judged is None or not model.head.per_token or model.head.spec.options["numbers"]:
            return {}
        outputs, targets, _ = self.judged
        if not len(targets) or not bool(outputs.isfinite().all()):
            return {}
        return {"mean_iou": mean_iou(targets.numpy(), outputs.argmax(-1).numpy(), outputs.shape[1])}

    def finish(self, run: RunFolder) -> None:
        super().finish(run)
        model, data = self.model, self.data
        if not isinstance(model, ImagePredictor) or not self._shown or self.judgement is None:
            return
        config: Any = model.trunk.config
        side, grid = data.scored_side if self.trainer.state.fn == "test" else "val", config.grid(*data.image_size)
        place = {row: i for i, row in enumerate(data.side(side).tolist())}
        true, numbers = data.target_of(side).values, bool(model.head.spec.options["numbers"])
        shown = []
        for row, outputs in self._shown.items():
            found = model.head.predict(outputs[config.prefix :])
            values = found["value"] if numbers else outputs[config.prefix :].argmax(-1).numpy()
            labels = np.asarray(true[place[row]], np.float64)
            image = data.picture(side, place[row]).permute(1, 2, 0).squeeze(-1).numpy()
            labels = np.where(labels == IGNORED, np.nan, labels) if not numbers else labels
            shown.append(Shown(image, labels.reshape(grid), np.asarray(values, np.float64).reshape(grid)))
        names = None if numbers else list(model.head.spec.names)
        draw_patches(
            shown, names, run.path / "patches.png", f"{run.path.name}: {len(shown)} images that were not trained on"
        )

    def table(self, metrics: dict[str, Any]) -> str:
        return "\n".join([super().table(metrics), *self._said])

    # --- the model ---------------------------------------------------------------------------------------------------

    def _model(self, data: Any, trunk: Any, pretrained: bool) -> LabelledModel:
        if isinstance(data, ImageTable):
            data.label_patches(trunk.config)
        model = super()._model(data, trunk, pretrained)
        if model.head.per_token and self.tta != "none":
            raise refuse_views(self.tta)
        return model

    def new_trunk(self, data: Any) -> VisionTransformer:
        size = list(data.image_size)
        patch = patch_for(data.image_size) if self.patch_size is None else self.patch_size
        return VisionTransformer(
            VisionTransformerConfig(
                image_size=size, patch_size=patch, channels=data.channels,
                classes=0, transformer=self.transformer_config, preprocessing=data.preprocessing,
            )
        )  # fmt: skip

    def reads(self, data: Any) -> dict[str, Any]:
        return data.mask_names

    def default_pool(self, trunk: SavedModel, pretrained: bool) -> str:
        return OWN

    def fit_trunk(self, trunk: VisionTransformer, data: Any) -> VisionTransformer:
        if tuple(data.image_size) != trunk.config.size:
            trunk = trunk.resized(list(data.image_size))
        trunk.config = replace(trunk.config, preprocessing=data.preprocessing)
        return trunk

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import find, load

        return self.own_pretrained(source, find) or with_head(open_with_head(source)) or load(source)

    def adopt(self, start: Start, data: Any) -> str:
        model: Any = start.model
        if not isinstance(data, ImageTable):
            return ""
        return data.adopt(model.config.preprocessing, model.config.input_size, model.config.channels, start.source)
