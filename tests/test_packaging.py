"""What a release holds: the wheel, the source distribution, the metadata, the image of the server."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
import typer.main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fieldmark"
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
BUILD = """
import sys
from setuptools import build_meta
dist = sys.argv[1]  # the backend changes sys.argv
build_meta.build_sdist(dist)
build_meta.build_wheel(dist)
"""


def files_of_the_package() -> set[str]:
    """All files in fieldmark/ that a release needs, relative to it."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE).as_posix() for path in files}


def test_every_file_that_is_no_module_is_package_data():
    patterns = METADATA["tool"]["setuptools"]["package-data"]["fieldmark"]
    data = {name for name in files_of_the_package() if not name.endswith(".py")}
    matched = {
        pattern: {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob(pattern)} for pattern in patterns
    }
    assert data == {name for names in matched.values() for name in names if "__pycache__" not in name}
    assert all(matched.values())


def test_the_version_stands_where_people_look_for_it():
    version = METADATA["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1].rstrip(",") == version
    (deploy,) = (ROOT / "docs").rglob("deploy.md")
    assert set(re.findall(r"fieldmark-([\d.]+)-py3", deploy.read_text(encoding="utf-8"))) == {version}


def instructions(name: str) -> list[str]:
    """What stands behind an instruction of the Dockerfile, for each of its uses."""
    return re.findall(rf"^{name} (.*)", DOCKERFILE, re.MULTILINE)


def test_the_image_is_built_from_what_the_context_holds():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "*" in lines
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert set(copied) == set(kept) and all((ROOT / name).exists() for name in copied)
    needed = {"pyproject.toml", METADATA["project"]["readme"], *METADATA["project"]["license-files"], "fieldmark"}
    assert needed <= set(copied)


def test_the_image_serves_without_rights_and_is_asked_for_its_health():
    from fieldmark.cli.main import app

    (user,), (entry,), (check,) = (instructions(name) for name in ("USER", "ENTRYPOINT", "HEALTHCHECK"))
    assert user.isdecimal() and int(user) > 0 and f"--uid {user} " in DOCKERFILE
    program, verb, *words = json.loads(entry)
    command: Any = typer.main.get_command(app)
    given = command.get_command(None, verb).make_context(verb, words).params
    assert (program, given["model"], given["host"]) == ("fieldmark", "/model", "0.0.0.0")
    assert instructions("EXPOSE") == [str(given["port"])]
    python = json.loads(check.partition("CMD ")[2])[-1]
    compile(python, "Dockerfile", "exec")
    assert f"'127.0.0.1', {given['port']}" in python and "'/health'" in python


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel of a clean copy of the repository."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    shutil.copytree(PACKAGE, copy / "fieldmark", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    return build(copy, dist)


def build(source: Path, dist: Path) -> Path:
    """Build both by the backend of pyproject.toml, which any front end calls."""
    done = subprocess.run([sys.executable, "-c", BUILD, dist], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dist


def read_wheel(dist: Path) -> dict[str, bytes]:
    (file,) = dist.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path):
    wheel = read_wheel(built)
    own = {name for name in wheel if ".dist-info/" not in name}
    assert own == {f"fieldmark/{name}" for name in files_of_the_package()}
    assert any(fnmatch.fnmatch(name, "*.dist-info/licenses/LICENSE") for name in wheel)
    metadata = message_from_bytes(next(wheel[name] for name in wheel if name.endswith(".dist-info/METADATA")))
    assert (metadata["Version"], metadata["License-Expression"]) == (METADATA["project"]["version"], "Apache-2.0")
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(required) == len(METADATA["project"]["dependencies"]) and not any("torch" in line for line in required)


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert not any((source / name).exists() for name in ("tests", "benchmarks", "docs"))
    (dist := tmp_path / "dist").mkdir()
    again, first = read_wheel(build(source, dist)), read_wheel(built)
    assert again == first
