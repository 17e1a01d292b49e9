"""The picture at the top of README: a training in the terminal, its report, and the page that uses it."""

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from io import BytesIO

from PIL import Image

PANEL_WIDTHS, PANEL_HEIGHT = (438, 342, 342), 560
CAPTIONS = {"en": ("1  train", "2  read the report", "3  use it"), "zh": ("1  训练", "2  看报告", "3  使用")}
STYLE = """
:root{--ground:#fff;--ink:#1b1f24;--line:#c9d0d7;--paper:#fff;--terminal:#f6f8fa}
@media (prefers-color-scheme:dark){
:root{--ground:#0d1117;--ink:#e8eaed;--line:#363c43;--paper:#15181b;--terminal:#0d1117}
}
body{margin:0;background:var(--ground);color:var(--ink)}
main{display:grid;grid-template-columns:440px 344px 344px;gap:0 20px;padding:12px 16px 16px}
p{margin:0 0 8px;font-size:21px;font-weight:700;line-height:1.5;white-space:pre}
div{height:562px;border:1px solid var(--line);border-radius:8px;overflow:hidden;background:var(--paper)}
section:first-child div{background:var(--terminal)}
img{display:block;width:100%}
"""


def way_page(panels: Iterable[Image.Image], language: str) -> str:
    """The page with the three panels and their captions."""
    sections = [
        f'<section><p>{escape(caption)}</p><div><img src="{_data_uri(panel)}"></div></section>'
        for caption, panel in zip(CAPTIONS[language], panels, strict=True)
    ]
    return f'<!DOCTYPE html><meta charset="utf-8"><style>{STYLE}</style><main>{"".join(sections)}</main>'


def _data_uri(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
