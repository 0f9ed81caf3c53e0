"""The package's shape: its names, its light import, its two mapped folders, and what a wheel holds."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import sona

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("loops", "storage")  # folders beside sona/ that are its subpackages

PUBLIC = [
    "Config",
    "CycleReport",
    "Engine",
    "Feedback",
    "Message",
    "Pattern",
    "SonaError",
    "Step",
    "SyncEngine",
    "Trajectory",
    "Version",
    "__version__",
    "open",
    "open_sync",
]

HEAVY = {"torch", "faiss", "transformers", "peft"}
MOST_MODULES = 100  # what `import sona` may load beyond a bare interpreter

BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, 'build_' + sys.argv[1])(sys.argv[2])"


def python(code: str, *args: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, in `cwd`, with `path` on sys.path."""
    env = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def build(kind: str, tree: Path) -> Path:
    """Build the `kind` ("wheel" or "sdist") of `tree` and return the one file that came of it."""
    out = tree.parent / kind
    out.mkdir()
    done = python(BUILD, kind, str(out), cwd=tree)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a build reads, symlinks kept, with nothing that an earlier build left."""
    tree = tmp_path / "checkout"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("sona", *MAPPED):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def test_import_is_light() -> None:
    code = "import sys; bare = set(sys.modules); import sona; print(*sorted(set(sys.modules) - bare))"
    done = python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert HEAVY.isdisjoint(loaded)
    assert len(loaded) < MOST_MODULES, loaded


def test_public_names_are_these() -> None:
    assert sorted(sona.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves(name: str) -> None:
    assert getattr(sona, name) is not None


@pytest.mark.parametrize("name", MAPPED)
def test_symlink_is_relative(name: str) -> None:
    assert (ROOT / "sona" / name).readlink() == Path("..", name)


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folder_refuses_another_name(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / name, tmp_path / name)
    done = python(f"import {name}", cwd=tmp_path)
    assert f"ImportError: this package is sona.{name}" in done.stderr
    assert f"write `import sona.{name}`" in done.stderr


@pytest.mark.parametrize("name", MAPPED)
def test_host_module_of_the_same_name_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("OWNER = 'host'\n")
    done = python(f"import {name}, sona.{name}; print({name}.OWNER, sona.{name}.__name__)", cwd=tmp_path, path=ROOT)
    assert done.stdout.split() == ["host", f"sona.{name}"], done.stderr


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folder_is_loaded_once(name: str) -> None:
    assert Path(str(import_module(f"sona.{name}").__file__)).resolve() == ROOT / name / "__init__.py"
    assert name not in sys.modules


def package_folders() -> list[str]:
    """The dotted names of all folders under sona/ with an `__init__.py`, those behind symlinks too."""
    found = [Path(folder) for folder, _, files in os.walk(ROOT / "sona", followlinks=True) if "__init__.py" in files]
    return sorted(".".join(folder.relative_to(ROOT).parts) for folder in found)


def test_pyproject_names_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"] == package_folders()


@pytest.mark.parametrize("through_sdist", [False, True], ids=["checkout", "sdist"])
def test_wheel_holds_every_file_once(through_sdist: bool, checkout: Path) -> None:
    tree = checkout
    if through_sdist:
        with tarfile.open(build("sdist", checkout)) as sdist:
            sdist.extractall(checkout.parent / "unpacked", filter="data")
        (tree,) = (checkout.parent / "unpacked").iterdir()

    with zipfile.ZipFile(build("wheel", tree)) as wheel:
        held = [name for name in wheel.namelist() if ".dist-info/" not in name]

    sources = [
        Path(folder, name) for folder, _, files in os.walk(checkout / "sona", followlinks=True) for name in files
    ]
    weights = [path for path in sources if path.parent.name == "weights"]
    expected = [path for path in sources if path.suffix in (".py", ".html") or path.name == "py.typed"] + weights
    assert sorted(held) == sorted(str(path.relative_to(checkout)) for path in expected)
    assert {path.suffix for path in weights} == {".json", ".safetensors"}


def test_wheel_has_the_version_of_the_package(checkout: Path) -> None:
    assert build("wheel", checkout).name.startswith(f"sona-{sona.__version__}-")
