"""Chromium: pages as pictures in light and dark, cropped where no block is cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
WIDTH = 1200
"""Pixels of a picture."""
SCHEMES = ("light", "dark")
LOCALES = {"en": "en-GB", "zh": "zh-CN"}
# The pages take the fonts of the visitor's system. One font for all letters makes the same picture on every machine.
# Its quotes are as wide as Chinese letters, which is right in Chinese text alone.
FONTS = """@font-face{font-family:Quotes;src:local("Liberation Sans");unicode-range:U+B7,U+2018-201D,U+2026}
*:not(#x){font-family:Quotes,"Noto Sans CJK SC",sans-serif!important}
*:lang(zh):not(#x){font-family:"Noto Sans CJK SC",sans-serif!important}
pre:not(#x),pre :not(#x),code:not(#x){font-family:"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace!important}"""
SHOWN = "h1,h2,h3,th,dt,caption,summary,button,label,a,p,li,small,figcaption,figcaption *,pre b,svg text"
LOAD_IMAGES = """() => Promise.all([...document.images].map((image) => {
  image.loading = "eager";
  return image.decode().catch(() => 0);
}))"""
# -> top and bottom of the part, and the texts in it. The bottom is the last place above the limit where no block is cut
# and no heading stands alone.
CROP = """([from, to, limit, shown]) => {
  const box = (element) => element.getBoundingClientRect();
  const visible = (element) => element.checkVisibility() && box(element).height > 0;
  const start = document.querySelector(from), end = document.querySelector(to || from);
  if (!start || !end) throw new Error(`the page has no ${start ? to : from}`);
  const top = box(start).top + scrollY, last = box(end).bottom + scrollY;
  const kinds = "h1,h2,h3,p,li,tr,figure,svg,img,dl>*,pre:not(:has(div)),pre>div,#upload,summary";
  const blocks = [...document.querySelectorAll(kinds)].filter(visible).map((element) => {
      const { top, bottom } = box(element);
      return [top + scrollY, bottom + scrollY, /^H\\d|CAPTION/.test(element.tagName)];
    });
  const cut = (y) => blocks.some(([high, low]) => high < y - 1 && low > y + 1);
  const alone = (y) => blocks.some(([, low, heading]) => heading && low <= y && y - low < 24);
  const ends = blocks.map(([, low]) => low).filter((y) => y > top && y < top + limit).sort((a, b) => b - a);
  const bottom = last <= top + limit ? last : ends.find((y) => !cut(y) && !alone(y)) ?? top + limit;
  const inside = [...document.querySelectorAll(shown)].filter(visible)
    .filter((element) => box(element).top + scrollY >= top - 1 && box(element).bottom + scrollY <= bottom + 1);
  const above = start.matches("header") ? 20 : start.matches("section") ? -2 : 0; // a section without the line above it
  const next = Math.min(...blocks.map(([high]) => high).filter((y) => y > bottom - 1));
  return [Math.max(0, top - above), Math.min(bottom + 20, next - 2), inside.map((element) => element.textContent)];
}"""


@dataclass(frozen=True)
class Shot:
    """A picture of a page, and the texts that are visible in it."""

    image: Image.Image
    texts: list[str]


@contextmanager
def chromium() -> Iterator[Any]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, address: str, scheme: str, viewport: int, width: int, language: str) -> Iterator[Any]:
    """A page in a window of that many CSS pixels, whose picture is `width` pixels wide."""
    size = {"width": viewport, "height": 900}
    settings = {
        "color_scheme": scheme,
        "locale": LOCALES[language],
        "device_scale_factor": width / viewport,
        "bypass_csp": True,
    }
    context = browser.new_context(viewport=size, reduced_motion="reduce", **settings)
    page = context.new_page()
    page.goto(address)
    page.add_style_tag(content=FONTS)
    try:
        yield page
    finally:
        context.close()


def take(page: Any, start: str, end: str, limit: int) -> Shot:
    """From the top of one element to the bottom of another, at most `limit` CSS pixels; both are CSS selectors."""
    page.evaluate(LOAD_IMAGES)
    top, bottom, shown = page.evaluate(CROP, [start, end, limit, SHOWN])
    clip = {"x": 0, "y": top, "width": page.viewport_size["width"], "height": bottom - top}
    return Shot(Image.open(BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB"), shown)


def save(image: Image.Image, file: Path) -> None:
    """As WebP, without loss where that is no larger: charts and text."""
    kept = [BytesIO(), BytesIO()]
    image.save(kept[0], "WEBP", quality=82, method=6)
    image.save(kept[1], "WEBP", lossless=True, method=6)
    file.write_bytes(min(kept, key=lambda one: one.tell()).getvalue())
