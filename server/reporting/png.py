"""Renders SVG as PNG (resvg), with a bundled font."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec

SCALE = 2.0  # pixels for each unit of the picture: sharp on a phone
_FONT, _FAMILY = "DejaVuSans.ttf", "DejaVu Sans"


def is_possible() -> bool:
    """True if resvg is installed: the extra `png`."""
    return find_spec("resvg_py") is not None


def render(svg: str) -> bytes:
    """Render in light colours. Call only if `is_possible`."""
    import resvg_py

    font = resources.files("server.reporting") / "fonts" / _FONT
    with resources.as_file(font) as path:
        return resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=SCALE,
            skip_system_fonts=True,
            font_files=[str(path)],
            sans_serif_family=_FAMILY,
        )
