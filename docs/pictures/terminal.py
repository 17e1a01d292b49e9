"""What commands printed, as a page that looks like a terminal."""

import re
from html import escape

STYLE = """
:root{--paper:#f6f8fa;--ink:#1f2328;--soft:#656d76;--warn:#8a5a00;--go:#0b62a4}
@media (prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--soft:#8b949e;--warn:#e3b341;--go:#6db3f2}}
body{margin:0;background:var(--paper);color:var(--ink)}
main{padding:20px 24px}
pre{margin:0;font-size:16px;line-height:1.45;white-space:pre-wrap;overflow-wrap:anywhere}
.prompt{color:var(--go);font-weight:700}.output+.prompt{margin-top:1em}.warning{color:var(--warn)}.cut{color:var(--soft)}
"""
NARROW = """
pre{font-size:13px}main{padding:14px 16px}
pre div{padding-left:14ch;text-indent:-14ch}pre .prompt{padding-left:2ch;text-indent:-2ch}
"""
STEP = re.compile(r"(?=.{13} \S)(\S[\w ]*?)  ")
"""The name of a step of a run, in a column of 14 characters (`fieldmark.core.progress`)."""


def terminal_page(printed: dict[str, str], *, is_narrow: bool = False) -> str:
    """The page of some commands and what each printed.

    Args:
        is_narrow: wrap below the text of a step, and leave out the warnings.
    """
    lines = [line for command, output in printed.items() for line in _lines(command, output, is_narrow)]
    style = STYLE + (NARROW if is_narrow else "")
    return f'<!DOCTYPE html><meta charset="utf-8"><style>{style}</style><main><pre>{"".join(lines)}</pre></main>'


def _lines(command: str, output: str, is_narrow: bool) -> list[str]:
    lines, is_cut = [f'<div class="prompt">$ {escape(command)}</div>'], False
    for line in output.splitlines():
        is_warning = line.startswith("warning: ")
        if is_narrow and is_warning:
            lines += [] if is_cut else ['<div class="output cut">…</div>']
            is_cut = True
            continue
        text = escape(line) or "&nbsp;"
        if step := STEP.match(line):
            text = f'<b class="step">{escape(step[1])}</b>{escape(line[step.end(1) :])}'
        lines.append(f'<div class="output{" warning" if is_warning else ""}">{text}</div>')
    return lines
