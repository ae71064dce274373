"""Pictures of all tasks: names are drawn as they are written, in fonts that have their characters."""

from __future__ import annotations

import re

from triune.core import canvas


def test_long_names_stay_whole_or_distinct():
    names = [f"a_long_species_name_{i:02d}" for i in range(20)]
    assert len({canvas.clip(name, 14) for name in names}) == 20
    assert canvas.clip("$5", 14) == r"\$5"
    deer = "Chinese water deer (Hydropotes inermis inermis)"
    assert canvas.fitted([deer], 24)[0].replace("\n", " ") == deer, "two lines hold it whole"
    assert canvas.fitted(["\U000f0000"], 24) == ["<U+F0000>"]
    short = canvas.fitted(["x" * 60 + str(i) + "y" * 60 for i in range(3)], 20)
    assert len(set(short)) == 3, "names that differ where they are cut get their numbers"
    assert max(map(len, short[0].split("\n"))) <= 23


def test_no_name_takes_more_lines_or_width_than_its_row(monkeypatch):
    names = [
        "Chelonoidis niger subsp. (Pinta, extinct 2012) adult, the very last female",
        "猫と犬の長い名前" * 6,
        "x\ny",
    ]
    monkeypatch.setattr(canvas, "_families", lambda _: (("DejaVu Sans",), frozenset()))
    for lines in (1, 3):
        broken = [name.split("\n") for name in canvas.fitted(names, 24, lines)]
        assert [len(parts) <= lines for parts in broken] == [True] * 3
        assert max(len(part) for part in broken[0]) <= 24
        assert max(len(part) for part in broken[1]) <= 12, "each of these characters is as wide as two letters"
        assert broken[2] == ["x y"]
    assert canvas.fitted(names, 24)[0].endswith("last female")
    monkeypatch.setattr(canvas, "_families", lambda wanted: (("DejaVu Sans",), wanted - {"…"}))
    codes = canvas.fitted(["猫と犬の長い名前" * 2], 24, 2)[0].replace("\n", "")
    assert re.fullmatch(r"(<U\+[0-9A-F]{4}>)+…(<U\+[0-9A-F]{4}>)+", codes), "no code point is cut"


def test_every_character_is_drawn_or_written_out(tmp_path):
    families, lacking = canvas._families(frozenset("aé猫ق\U000f0000"))
    assert families[0] == "DejaVu Sans"
    assert "ق" not in lacking, "the usual font has Arabic letters"
    assert "\U000f0000" in lacking, "no font has a character for private use"
    drawn = canvas.figure(3, 3)
    text = drawn.text(0.5, 0.5, "a\U000f0000")
    canvas.save(drawn, tmp_path / "a.png")
    assert text.get_text() == "a<U+F0000>"
    assert canvas.MISSING in [found.get_text() for found in drawn.texts]


def test_a_font_that_has_the_characters_is_found(monkeypatch):
    from matplotlib import font_manager

    # mathematical bold A is in STIX, which comes with matplotlib, and not in DejaVu Sans Mono
    mono = font_manager.findfont("DejaVu Sans Mono")
    monkeypatch.setattr(font_manager, "findfont", lambda *_: mono)
    canvas._families.cache_clear()
    families, lacking = canvas._families(frozenset("\u2a0c\U0001d400"))
    canvas._families.cache_clear()
    assert not lacking
    assert len(families) > 1
