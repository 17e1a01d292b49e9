"""The pages of the servers have the colours of the report."""

from pathlib import Path

from fieldmark.report.charts import frame
from fieldmark.serve import app, teach_app


def test_the_pages_have_the_colours_of_the_report():
    folder = Path(app.__file__).parent
    style = (folder / app.PAGE_FILES["/base.css"]).read_text(encoding="utf-8")
    assert f":root{{{frame.LIGHT}}}" in style and f":root{{{frame.DARK}}}" in style
    for files in (app.PAGE_FILES, teach_app.PAGE_FILES):
        for path, name in files.items():
            text = (folder / name).read_text(encoding="utf-8")
            assert path == "/base.css" or "--paper:" not in text  # set in one place
            assert path != "/" or '<link rel="stylesheet" href="base.css">' in text
