"""The blocks of a page of the documentation."""

import re
import shlex
from pathlib import Path


def commands(page: Path) -> list[list[str]]:
    """The words of each line in the blocks of shell, without what stands behind #."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").replace(" && ", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_blocks(text: str) -> list[str]:
    """The blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
