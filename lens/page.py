"""One self-contained HTML page of a report: it asks no network, and a person sees weights and effects side by side."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.page import document
from ..core.page.curves import Line, curves
from ..core.subject import Square
from .report import Curves, Grid, Heads, Panel, Report, Tokens, ranks
from .report import text as told

IMAGE_SIDE = 256
"""Pixels of the longer side of an image in it."""
HEADS = "Heads: point at one to see all its numbers (a row a layer, the first above; a column a head)"


def page(report: Report) -> str:
    """The page. Weights of single heads, rounded to 1/255 of the largest, are left out where it would be too large.

    Raises:
        UserError: it is too large without them.
    """
    panels = [_panel(panel) for panel in report.panels]
    text = _filled(report, panels)
    if len(text.encode()) > document.LARGEST:
        slim = [panel | ({"heads": {}} if panel["kind"] == "tokens" else {}) for panel in panels]
        text = _filled(report, slim)
    return document.check_size(text, "give a shorter input, or --json and --png instead")


def _filled(report: Report, panels: list[dict[str, Any]]) -> str:
    """The page: what needs no script as HTML, and a section for each panel that the script fills."""
    body = [document.element("h1", report.title), *(document.element("p", note, "note") for note in report.notes)]
    for number, panel in enumerate(report.panels):
        if isinstance(panel, Curves):
            body.append(_curves(panel))
        elif not isinstance(panel, Heads):
            title, note = panel.title, ""
            if isinstance(panel, Tokens):
                title = "What is read and what is used" + ": point at a place of the answer" * (len(panel.places) > 1)
                note = document.element("p", panel.caption, "note")
            body.append(f'<section data-panel="{number}">\n{document.element("h2", title)}{note}</section>')
    if any(isinstance(panel, Heads) for panel in report.panels):
        body.append(f'<section class="heads">\n{document.element("h2", HEADS)}</section>')
    for table in report.tables:
        rows = [[told(cell) for cell in row] for row in table.rows]
        body.append(document.section(table.title, document.table(table.columns, rows)))
    main = "<main>\n" + "\n".join(body) + '\n</main>\n<div id="tip" role="status"></div>'
    style, script = ((Path(__file__).parent / f"page.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    return document.document(report.title, main, style, [script], {"panels": panels})


def _curves(panel: Curves) -> str:
    x = [float(value) for value in panel.x]
    lines = [Line(name, x, values, points=True) for name, values in panel.lines.items()]
    band = (x, *panel.band) if panel.band else None
    about = "; ".join(part for part in (panel.unit, panel.caption) if part)
    return document.section(panel.title, curves("", lines, panel.x_label, band=band, caption=about))


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
    if isinstance(panel, Curves):  # needs no script
        return {"kind": "curves"}
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
    return document.data_uri(held.getvalue())


def _packed(values: Tensor) -> dict[str, Any]:
    array = np.ascontiguousarray(values.double().numpy(), dtype="<f4")
    return {"kind": "float32", "base64": base64.b64encode(array.tobytes()).decode()}


def _rounded(values: Tensor) -> dict[str, Any]:
    most = max(float(values.max()), 1e-9)
    array = (values.double().numpy() / most * 255).round().clip(0, 255).astype(np.uint8)
    return {"kind": "uint8", "most": most, "base64": base64.b64encode(array.tobytes()).decode()}
