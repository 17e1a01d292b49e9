"""What commands printed, as a page that looks like a terminal."""

import re
from html import escape

STYLE = """
:root{--paper:#f6f8fa;--ink:#1f2328;--soft:#656d76;--warn:#8a5a00;--go:#0b62a4}
@media (prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--soft:#8b949e;--warn:#e3b341;--go:#6db3f2}}
body{margin:0;background:var(--paper);color:var(--ink)}
main{padding:20px 24px}
pre{margin:0;font-size:16px;line-height:1.45;white-space:pre-wrap;overflow-wrap:anywhere}
.prompt{color:var(--go);font-weight:700}:not(.prompt)+.prompt{margin-top:1em}
.warning{color:var(--warn)}.cut{color:var(--soft)}
"""
NARROW = """
pre{font-size:13px}main{padding:14px 16px}
.step{padding-left:14ch;text-indent:-14ch}.prompt{padding-left:2ch;text-indent:-2ch}
.row{font-size:11.2px}
"""
STEP = re.compile(r"(?=.{13} \S)(\S[\w ]*?)  ")
"""The name of a step of a run, in a column of 14 characters (`fieldmark.core.progress`)."""


def terminal_page(printed: dict[str, str], *, is_narrow: bool = False) -> str:
    """The page of some commands and what each printed.

    Args:
        is_narrow: for half the width: lines wrap below the text of a step, the table of epochs has no column beside it,
            and warnings are left out.
    """
    lines = [line for command, output in printed.items() for line in _lines(command, output, is_narrow)]
    style = STYLE + (NARROW if is_narrow else "")
    return f'<!DOCTYPE html><meta charset="utf-8"><style>{style}</style><main><pre>{"".join(lines)}</pre></main>'


def _lines(command: str, output: str, is_narrow: bool) -> list[str]:
    lines = [_div("prompt", f"$ {command}")]
    for line in output.splitlines():
        step = STEP.match(line)
        is_row = line.startswith(" " * 14) or (step and "train loss" in line)
        if line.startswith("warning: "):
            lines.append(_div("cut", "…") if is_narrow else _div("warning", line))
        elif is_narrow and is_row:
            lines += [_div("step", "", step[1])] if step else []
            lines.append(_div("row", line[14:]))
        elif step:
            lines.append(_div("step", line[step.end(1) :], step[1]))
        else:
            lines.append(_div("", line))
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line != before or "cut" not in line]


def _div(kind: str, text: str, name: str = "") -> str:
    """A line; a word joiner keeps `--out` from being divided."""
    shown = escape(text).replace("-", "\u2060-\u2060") if kind != "prompt" else escape(text)
    return f'<div class="{kind}">{f"<b>{escape(name)}</b>" if name else ""}{shown or "&nbsp;"}</div>'
