"""A server as people start it: a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Served(NamedTuple):
    """A running server."""

    url: str
    process: subprocess.Popen
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def memory(self) -> int:
        """Bytes of memory that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@contextmanager
def running(model: Path, *options: str) -> Iterator[Served]:
    """`fieldmark serve MODEL OPTIONS` on a free port, ended behind the block."""
    with _running("serve", str(model), "--port", "0", "--json", *options) as served:
        yield served


@contextmanager
def teaching(images: Path, folder: Path, *options: str) -> Iterator[Served]:
    """`fieldmark teach IMAGES --out FOLDER OPTIONS` on a free port, with the token `secret`; ended behind the block."""
    words = ["teach", str(images), "--out", str(folder), "--port", "0", "--json", "--token", "secret", *options]
    with _running(*words) as served:
        yield served._replace(url=served.url.partition("/#")[0])


@contextmanager
def _running(*words: str) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "fieldmark.cli", *words]
        with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
            assert process.stdout
            told = b""
            for line in process.stdout:
                told += line
                if line == b"}\n":
                    break
            assert told, log.read_text()
            try:
                yield Served(json.loads(told)["url"], process, log)
            finally:
                process.terminate()
                process.wait(60)
