"""Classifiers of images. Standard library only, because `triune --help` reads this."""

from __future__ import annotations

from ..core.task import Task, Verb, training

_CLASSES = ("triune.vision.task:VisionTask", "triune.vision.data.module:ImageData")
_MASKED = ("triune.vision.masked.task:MaskedTask", "triune.vision.masked.data:PlainImages")

TASK = Task(
    about="image classifiers: train, use, explain",
    verbs={
        "shard": Verb("write images into a few large files, for sets of any size", "triune.vision.shard:main"),
        "check": Verb("look through a folder of images before training", "triune.vision.check:main"),
        **training(*_CLASSES, names=("fit",)),
        **training(*_MASKED, "train an encoder without labels (masked autoencoder)", ("pretrain",)),
        **training(*_CLASSES, names=("validate", "test", "predict")),
        "probe": Verb("judge a checkpoint's frozen features on your images, in seconds", "triune.vision.probe:main"),
        "classify": Verb(
            "name what is in images, with calibrated probabilities and attention maps", "triune.vision.classify:main"
        ),
        "export": Verb(
            "write a classifier as ONNX or for torch.export, compared with the model", "triune.vision.export:main"
        ),
    },
    also={
        "data.table": {
            **training("triune.vision.labels:ImageLabels", "triune.vision.labels:ImageTable"),
            "predict": Verb("answer new images with the best weights of a run", "triune.vision.labelled:predict"),
            "probe": Verb("judge frozen features on the labels of a table", "triune.vision.labelled:probe"),
        }
    },
    examples="""\
  triune vision fit                                         train on scikit-learn's digits
  triune vision check FOLDER                                one folder of images for each class
  triune vision fit --data.root FOLDER
  triune vision pretrain --data.root FOLDER                 without labels; then fit --model.pretrained RUN
  triune vision probe --model vit_small_patch14_dinov2.lvd142m --data.root FOLDER
  triune vision classify photo.jpg --run RUN --attention seen.png
  triune vision export RUN --onnx model.onnx""",
    checkpoints="triune.vision.checkpoints.pretrained",
    find="triune.vision.checkpoints.pretrained:find",
    architectures=("VisionTransformer",),
    own=("ImagePredictor",),
    lens="triune.vision.lens:open_subject",
    modality="triune.vision.labelled:MODALITY",
    libraries={"hf": "transformers", "timm": "timm", "torchvision": "torchvision"},
    demo="triune.vision.demo:main",
    smallest=("--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--model.transformer.depth", "1"),
    shown=("val_loss", "val_top1", "ece_calibrated", "baseline_logistic_regression"),
)
