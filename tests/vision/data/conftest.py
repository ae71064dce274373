"""What the tests of image data share: small pictures, folders of them, and a cache of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


class Pictures:
    """Writes PNG files of noise, each with pixels of its own."""

    def __init__(self) -> None:
        self.written = 0

    def save(self, path: Path, size: tuple[int, int] = (12, 12)) -> Path:
        """One file of `size` (height, width)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(self.written).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        self.written += 1
        return path

    def fill(self, root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 12)) -> Path:
        """So many files in each folder below `root`."""
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                self.save(root / name / f"{i:03d}.png", size)
        return root


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()
