"""The fonts of printed words. The held-out split has other font families than training."""

from __future__ import annotations

import importlib.util
import random
from functools import cache
from pathlib import Path
from typing import cast

import matplotlib
from PIL import ImageFont

from demo.seeds import Split

# Font files by package: matplotlib's own, and packages with one family each.
FAMILIES: dict[Split, dict[str, tuple[str, ...]]] = {
    Split.TRAIN: {
        "matplotlib": (
            "DejaVuSans.ttf",
            "DejaVuSans-Bold.ttf",
            "DejaVuSans-Oblique.ttf",
            "DejaVuSansMono.ttf",
            "DejaVuSansMono-Bold.ttf",
            "DejaVuSerif.ttf",
            "DejaVuSerif-Bold.ttf",
            "DejaVuSerif-Italic.ttf",
            "STIXGeneral.ttf",
            "STIXGeneralBol.ttf",
            "STIXGeneralItalic.ttf",
            "cmss10.ttf",
            "cmr10.ttf",
            "cmtt10.ttf",
        ),
        "font_roboto": (
            "Roboto-Light.ttf",
            "Roboto-Regular.ttf",
            "Roboto-Medium.ttf",
            "Roboto-Bold.ttf",
            "Roboto-Black.ttf",
            "Roboto-BoldItalic.ttf",
        ),
        "font_source_sans_pro": (
            "SourceSansPro-ExtraLight.ttf",
            "SourceSansPro-Regular.ttf",
            "SourceSansPro-Black.ttf",
            "SourceSansPro-It.ttf",
        ),
        "font_caladea": ("Caladea-Regular.ttf", "Caladea-Bold.ttf", "Caladea-Italic.ttf"),
        "font_hanken_grotesk": ("HankenGrotesk-Light.otf", "HankenGrotesk-Regular.otf", "HankenGrotesk-Bold.otf"),
        "font_manrope": ("Manrope-Light.ttf", "Manrope-Medium.ttf", "Manrope-ExtraBold.ttf"),
        "font_rhd": ("RedHatDisplay-Regular.ttf", "RedHatDisplay-Black.ttf", "RedHatDisplay-MediumItalic.ttf"),
        "font_fredoka_one": ("FredokaOne-Regular.ttf",),
        "pillow": ("default",),
    },
    Split.HELD_OUT: {
        "font_lato": ("Lato-Regular.ttf", "Lato-Bold.ttf"),
        "font_source_serif_pro": ("SourceSerifPro-Regular.ttf", "SourceSerifPro-Bold.ttf"),
    },
}

_FILES = {
    split: [(package, name) for package, names in families.items() for name in names]
    for split, families in FAMILIES.items()
}

Font = ImageFont.FreeTypeFont


def pick_font(rng: random.Random, split: Split, size: int) -> Font:
    """A font of the split, `size` pixels to the em."""
    # Pillow's default layout engine takes several times as long; held-out words use it, as users do.
    return _load(*rng.choice(_FILES[split]), size, ImageFont.Layout.BASIC if split is Split.TRAIN else None)


@cache
def _load(package: str, name: str, size: int, engine: ImageFont.Layout | None) -> Font:
    if package == "pillow":
        # Pillow's wheels are built with FreeType, and then its default font is of this class.
        return cast("Font", ImageFont.load_default(size))
    return ImageFont.truetype(str(_directory(package) / name), size, layout_engine=engine)


@cache
def _directory(package: str) -> Path:
    if package == "matplotlib":
        return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {package.replace('_', '-')} is missing: install triptych[demo]")
    return Path(spec.origin).parent / "files"
