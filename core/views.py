"""Names of the views of an image that answers are averaged over (`--tta`). Standard library only, for the help."""

from __future__ import annotations

from typing import Literal, get_args

Views = Literal["none", "flip", "crops", "all"]
"""`flip`: the image and its mirror image; `crops`: the image and its four corners; `all`: the crops and their mirror
images."""
KINDS: tuple[Views, ...] = get_args(Views)
ABOUT = "average the answers to several views: flip (mirrored), crops (and the four corners), all"
