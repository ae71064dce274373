"""One self-contained HTML page of a report: it asks no network, and a person sees weights and effects side by side."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.subject import Square
from .report import Curves, Grid, Heads, Panel, Report, Tokens, plain, ranks

LARGEST = 5_000_000
"""Bytes of a page."""
IMAGE_SIDE = 256
"""Pixels of the longer side of an image in it."""


def page(report: Report) -> str:
    """The page. Weights of single heads, rounded to 1/255 of the largest, are left out where it would be too large.

    Raises:
        UserError: it is too large without them.
    """
    content = {
        "title": report.title, "notes": report.notes,
        "tables": [{"title": t.title, "columns": t.columns, "rows": plain(t.rows)} for t in report.tables],
        "panels": [_panel(panel) for panel in report.panels],
    }  # fmt: skip
    text = _filled(content)
    if len(text.encode()) > LARGEST:
        for panel in content["panels"]:
            panel.pop("heads", None)
        content["panels"] = [
            panel | ({"heads": {}} if panel["kind"] == "tokens" else {}) for panel in content["panels"]
        ]
        text = _filled(content)
    if len(text.encode()) > LARGEST:
        raise UserError(
            f"The page would have {len(text) / 1e6:.0f} MB, but may have {LARGEST / 1e6:.0f}; give a shorter input, or "
            "--json and --png instead."
        )
    return text


def _filled(content: dict[str, Any]) -> str:
    """The template with the numbers; `<` is written so that no text of the input ends the script."""
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (Path(__file__).parent / "page.html").read_text(encoding="utf-8").replace("__DATA__", data)


def _panel(panel: Panel) -> dict[str, Any]:
    if isinstance(panel, Heads):
        return {
            "kind": "heads", "title": panel.title, "unit": panel.unit, "caption": panel.caption,
            "shape": list(panel.values.shape), "values": _packed(panel.values), "columns": panel.columns,
        }  # fmt: skip
    if isinstance(panel, Grid):
        return {
            "kind": "grid", "title": panel.title, "unit": panel.unit, "caption": panel.caption, "rows": panel.rows,
            "columns": panel.columns, "shape": list(panel.values.shape), "values": _packed(panel.values),
        }  # fmt: skip
    if isinstance(panel, Curves):
        return {
            "kind": "curves", "title": panel.title, "x": panel.x, "lines": plain(panel.lines), "unit": panel.unit,
            "x_label": panel.x_label, "band": plain(panel.band), "caption": panel.caption,
        }  # fmt: skip
    if isinstance(panel, Square):
        return {
            "kind": "square", "title": panel.title, "caption": panel.caption, "size": len(panel.upper),
            "values": _rounded(torch.from_numpy(ranks(panel))), "marks": panel.marks,
        }  # fmt: skip
    assert isinstance(panel, Tokens)
    return {
        "kind": "tokens", "title": panel.title, "names": panel.names, "places": panel.places, "grid": panel.grid,
        "weights": _packed(panel.weights), "effects": _packed(panel.effects), "caption": panel.caption,
        "unit": panel.unit,
        "heads": {name: _rounded(values) for name, values in panel.heads.items()},
        "image": None if panel.image is None else _image(panel.image),
    }  # fmt: skip


def _image(pixels: Tensor) -> str:
    """Pixels of 0 to 255, `[height, width, channels]`, as a PNG that the page holds itself."""
    from PIL import Image

    array = pixels.numpy().squeeze().clip(0, 255).astype(np.uint8)
    picture, held = Image.fromarray(array), io.BytesIO()
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    picture.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _packed(values: Tensor) -> dict[str, Any]:
    array = np.ascontiguousarray(values.double().numpy(), dtype="<f4")
    return {"kind": "float32", "base64": base64.b64encode(array.tobytes()).decode()}


def _rounded(values: Tensor) -> dict[str, Any]:
    most = max(float(values.max()), 1e-9)
    array = (values.double().numpy() / most * 255).round().clip(0, 255).astype(np.uint8)
    return {"kind": "uint8", "most": most, "base64": base64.b64encode(array.tobytes()).decode()}
