"""Where a model is loaded from."""

import subprocess
import sys
from pathlib import Path

import pytest

from sona.errors import ModelNotFoundError
from sona.serving.resolve import resolve
from sona.tiny import model_path


def test_a_missing_folder_is_found_missing_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from sona.errors import ModelNotFoundError\n"
        "from sona.serving.resolve import resolve\n"
        "try: resolve('/nope')\n"
        "except ModelNotFoundError: print(*{'torch', 'transformers', 'peft', 'faiss'} & set(sys.modules), 'end')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["end"]


@pytest.mark.parametrize("name", ["", "/nope", "./nope", "~/nope", "~nobody-here/nope", "a/b/c", Path("nope/model")])
def test_what_can_only_be_a_folder_must_exist(name: str | Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        resolve(name)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")


def test_hub_ids_and_tiny_are_known() -> None:
    assert resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert resolve("gpt2") == "gpt2"
    assert resolve("tiny") == model_path()
