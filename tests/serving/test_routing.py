"""Versions of several adapters: each request gets the one that the router picks, in a batch as alone."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

from sona.checks import Float32, Int32
from sona.config import ServeConfig
from sona.errors import ModelError, SwapError
from sona.ports import Router, Served
from sona.serving.adapted import AdaptedModel, RowsLostError
from sona.serving.adapters import Adapter, ResidentAdapters, content_key, sharing_copy
from sona.serving.local import LocalModel
from sona.serving.packed import Packed
from sona.serving.seat import Seat
from sona.tiny import model_path
from sona.types import Message
from tests.serving.noisy_adapter import one, write_noisy_adapter
from tests.serving.test_features import counted_passes

ROUTES: dict[str, str | None] = {
    "echo blue river": "a",
    "reverse one two three four five": "b",
    "last of red green": None,
    "count x y z": "a",
    "first of stone": "c",
}


class Nearest:
    """Answers as for the known prompt that is most alike."""

    def __init__(self, known: Float32, names: list[str | None]) -> None:
        self.known, self.names, self.calls = known, names, 0

    def route(self, features: Float32) -> list[str | None]:
        self.calls += 1
        return [self.names[place] for place in (features @ self.known.T).argmax(1)]


class Always:
    """Says the same whatever it is asked."""

    def __init__(self, *names: str | None, first: Callable[[], None] = lambda: None) -> None:
        self.names, self.first = names, first

    def route(self, features: Float32) -> list[str | None]:
        self.first()
        return list(self.names)


@pytest.fixture
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = LocalModel("tiny", ServeConfig(device="cpu", threads=1))
    made = tmp_path_factory.mktemp("adapters")
    return {name: write_noisy_adapter(base, made / name, seed) for seed, name in enumerate("abcdef")}


def prompts_of(model: LocalModel) -> list[Int32]:
    return [model.encode_prompt([Message(role="user", content=text)]) for text in ROUTES]


def router_of(model: LocalModel) -> Nearest:
    return Nearest(model.features(prompts_of(model)), list(ROUTES.values()))


def routed(model: LocalModel, folders: dict[str, Path]) -> Served:
    return Served({name: folders[name] for name in "abc"}, router_of(model))


def answers(model: LocalModel) -> list[tuple[str | None, tuple[int, ...]]]:
    return [(reply.adapter, reply.token_ids) for reply in model.generate_batch(prompts_of(model), max_new_tokens=8)]


def alone(model: LocalModel, folders: dict[str, Path]) -> list[tuple[str | None, tuple[int, ...]]]:
    """What each prompt's adapter writes as the only one that is served."""
    wanted = []
    for prompt, name in zip(prompts_of(model), ROUTES.values(), strict=True):
        model.swap(f"only-{name}", one(folders[name] if name else None))
        wanted.append((name, model.generate(prompt, max_new_tokens=8).token_ids))
    return wanted


@contextmanager
def counted_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    loads: list[str] = []
    original = ResidentAdapters._load

    def counted(self: ResidentAdapters, key: str, folder: Path) -> Adapter:
        loads.append(folder.name)
        return original(self, key, folder)

    with monkeypatch.context() as patch:
        patch.setattr(ResidentAdapters, "_load", counted)
        yield loads


# ------------------------------------------------------------------------------------------------ who answers


def test_each_prompt_is_answered_by_its_adapter_in_a_batch_as_alone(
    model: LocalModel, folders: dict[str, Path]
) -> None:
    wanted = alone(model, folders)
    model.swap("v1", routed(model, folders))
    assert answers(model) == wanted
    replies = [model.generate(prompt, max_new_tokens=8) for prompt in prompts_of(model)]
    assert [(reply.adapter, reply.token_ids) for reply in replies] == wanted
    assert {reply.version for reply in replies} == {"v1"}
    assert len({tokens for _, tokens in wanted}) == len(wanted)


@pytest.mark.parametrize("name", ["a", None])
def test_a_batch_of_one_adapter_is_what_it_is_without_a_router(
    model: LocalModel, folders: dict[str, Path], name: str | None
) -> None:
    model.swap("v1", one(folders[name] if name else None))
    wanted = [tokens for _, tokens in answers(model)]
    model.swap("v2", Served({key: folders[key] for key in "abc"}, Always(*[name] * len(ROUTES))))
    assert answers(model) == [(name, tokens) for tokens in wanted]


def test_the_only_adapter_needs_no_router_and_no_extra_pass(model: LocalModel, folders: dict[str, Path]) -> None:
    with counted_passes(model) as passes:
        assert {adapter for adapter, _ in answers(model)} == {None}
        model.swap("v1", one(folders["a"]))
        assert {adapter for adapter, _ in answers(model)} == {"skill"}
    assert passes == []


def test_a_router_without_adapters_is_not_asked(model: LocalModel) -> None:
    model.swap("v1", Served({}, Always("nobody")))
    with counted_passes(model) as passes:
        assert {adapter for adapter, _ in answers(model)} == {None}
    assert passes == []


def test_a_routed_answer_to_an_embedded_prompt_costs_no_extra_pass(model: LocalModel, folders: dict[str, Path]) -> None:
    served = routed(model, folders)
    model.swap("v1", served)
    prompt = prompts_of(model)[1]
    with counted_passes(model) as passes:
        model.embed([prompt])
        assert model.generate(prompt, max_new_tokens=2).adapter == "b"
        assert passes == [1]
        answers(model)
    assert passes == [1, len(ROUTES)]


@pytest.mark.parametrize("names", [("nobody",), (), ("a", "b")])
def test_a_router_that_answers_wrongly_is_a_model_error(
    model: LocalModel, folders: dict[str, Path], names: tuple[str, ...]
) -> None:
    router: Router = Always(*names)
    model.swap("v1", Served({name: folders[name] for name in "ab"}, router))
    with pytest.raises(ModelError, match="router of v1"):
        model.generate(prompts_of(model)[0], max_new_tokens=2)
    model.swap("v0", one(None))
    assert model.generate(prompts_of(model)[0], max_new_tokens=2).adapter is None


# ------------------------------------------------------------------------------------------------ mixed batches


def test_logits_of_a_mixed_batch_are_what_peft_makes_of_each_adapter(
    model: LocalModel, folders: dict[str, Path]
) -> None:
    adapters = model._adapters.load({name: folders[name] for name in "abc"})
    mixed = AdaptedModel(model._base)
    mixed.set_rows([adapters[name] if name else None for name in ROUTES.values()])
    prompts = prompts_of(model)
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.pad_id)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
    with torch.no_grad():
        found = mixed.model(input_ids=ids).logits
        for row, name in enumerate(ROUTES.values()):
            plain: Any = sharing_copy(model._base)
            if name is not None:
                plain = PeftModel.from_pretrained(plain, str(folders[name]))
            wanted = plain(input_ids=ids[row : row + 1]).logits[0]
            torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=1e-4)
            mixed.set_rows([adapters[name] if name else None])
            assert torch.equal(mixed.model(input_ids=ids[row : row + 1]).logits[0], found[row]), "and bit for bit alone"
            mixed.set_rows([adapters[name] if name else None for name in ROUTES.values()])


@pytest.mark.parametrize(
    "shape",
    [
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"r": 2, "target_modules": ["v_proj", "o_proj"], "rank_pattern": {"o_proj": 5}, "alpha_pattern": {"v_proj": 3}},
        {"r": 3, "target_modules": r"model\.layers\.[02]\..*_proj", "lora_dropout": 0.5},
        {"r": 2, "target_modules": ["up_proj"], "layers_to_transform": [1], "init_lora_weights": "gaussian"},
        {"r": 2, "target_modules": ["k_proj", "q_proj"], "exclude_modules": ["layers.0.self_attn.k_proj"]},
    ],
)
def test_every_plain_shape_means_what_peft_takes_it_for(
    model: LocalModel, tmp_path: Path, shape: dict[str, Any]
) -> None:
    made = get_peft_model(model.trainable_copy(), LoraConfig(**shape))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    made.eval().save_pretrained(str(tmp_path))
    ids = torch.from_numpy(prompts_of(model)[1].astype(np.int64))[None]
    ours = AdaptedModel(model._base)
    ours.set_rows([model._adapters.load({"x": tmp_path})["x"]])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(input_ids=ids).logits, made(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_a_pass_that_fails_for_all_rows_is_made_again_for_each(
    model: LocalModel, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.swap("v1", routed(model, folders))
    wanted = answers(model)
    rows = model._scheduler._rows
    assert isinstance(rows, Packed)
    whole = Packed.forward

    def fail(self: Packed, seats: Sequence[Seat], feeds: Sequence[Sequence[int]]) -> torch.Tensor:
        found = whole(self, seats, feeds)
        if len(seats) > 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Packed, "forward", fail)
    assert answers(model) == wanted


def test_a_model_whose_layers_lose_the_rows_answers_adapter_by_adapter(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.save_pretrained(tmp_path / "opt")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 2}
    config = OPTConfig(vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=64, **sizes)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    model = LocalModel(tmp_path / "opt", ServeConfig(device="cpu", threads=1))
    folders = {name: write_noisy_adapter(model, tmp_path / name, seed) for seed, name in enumerate("abc")}
    wanted = alone(model, folders)
    model.swap("v1", routed(model, folders))
    mixed = AdaptedModel(model._base)
    adapters = model._adapters.load(folders)
    mixed.set_rows(list(adapters.values()))
    with pytest.raises(RowsLostError):
        mixed.model(input_ids=torch.ones((len(adapters), 3), dtype=torch.long))
    assert answers(model) == wanted == answers(model)
    assert not model._scheduler._mixes


# ------------------------------------------------------------------------------------------------ what is in memory


def test_unchanged_adapters_are_not_loaded_again(
    model: LocalModel, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_loads(monkeypatch) as loads:
        model.swap("v1", routed(model, folders))
        wanted = answers(model)
        copies = {name: Path(shutil.copytree(folders[name], tmp_path / "v2" / name)) for name in "abc"}
        model.swap("v2", routed(model, copies | {"c": folders["d"]}))
        assert sorted(loads) == ["a", "b", "c", "d"]
        assert answers(model)[:4] == wanted[:4]
        assert answers(model)[4] != wanted[4]
        model.swap("v3", Served({"x": folders["a"], "y": copies["a"]}, router_of(model)))
        model.swap("v1", routed(model, folders))
        model.swap("v4", one(folders["d"]))
    assert loads.count("a") == 1


def test_an_adapter_leaves_memory_when_no_version_names_it(model: LocalModel, folders: dict[str, Path]) -> None:
    def held() -> str:
        return "".join(name for name, folder in folders.items() if content_key(folder) in model._adapters)

    def swap(version: str, names: str) -> None:
        model.swap(version, Served({name: folders[name] for name in names}, Always("a")))

    swap("v1", "abc")
    swap("v2", "abd")
    assert held() == "abcd"  # c, for v1 may come back
    swap("v3", "ab")
    assert held() == "abd"
    swap("v2", "abd")
    assert (held(), model.version) == ("abd", "v2")
    swap("v4", "ae")
    assert held() == "abde"
    swap("v5", "f")
    assert held() == "aef"
    model.swap("v6", one(None))
    swap("v5", "f")  # it was there all the time
    swap("v7", "a")
    assert held() == "af"


def test_the_version_before_comes_back_without_its_files(
    model: LocalModel, folders: dict[str, Path], tmp_path: Path
) -> None:
    copies = {name: Path(shutil.copytree(folders[name], tmp_path / name)) for name in "abc"}
    first = routed(model, copies)
    model.swap("v1", first)
    wanted = answers(model)
    model.swap("v2", one(folders["e"]))
    for folder in copies.values():
        shutil.rmtree(folder)
    model.swap("v1", first)
    assert answers(model) == wanted


def test_a_swap_during_a_request_keeps_its_adapters(model: LocalModel, folders: dict[str, Path]) -> None:
    model.swap("v1", Served({name: folders[name] for name in "ab"}, Always("b")))
    prompt = prompts_of(model)[0]
    wanted = model.generate(prompt, max_new_tokens=8)

    def swap_about() -> None:
        for number, name in enumerate("cdef"):
            model.swap(f"later-{number}", one(folders[name]))

    model.swap("v1", Served({name: folders[name] for name in "ab"}, Always("b", first=swap_about)))
    assert model.generate(prompt, max_new_tokens=8) == wanted
    assert model.version == "later-3"
    assert model.generate(prompt, max_new_tokens=8).adapter == "skill"
    model.swap("last", one(folders["c"]))
    assert len(model._adapters) == 2


def test_a_file_that_changes_later_changes_no_answer(
    model: LocalModel, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["a"], tmp_path / "a"))
    model.swap("v1", one(folder))
    wanted = answers(model)
    weights = folder / "adapter_model.safetensors"
    with open(weights, "r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\0" * (weights.stat().st_size // 2))
    assert answers(model) == wanted


def test_a_swap_leaves_the_host_s_random_state_alone(model: LocalModel, folders: dict[str, Path]) -> None:
    before = torch.get_rng_state()
    model.swap("v1", routed(model, folders))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------ what is refused


def cut(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    tensors = {name: value.clone() for name, value in load_file(folder / "adapter_model.safetensors").items()}
    tensors.popitem()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def widen(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    wider = {name: torch.cat([value, value]) for name, value in tensors.items()}
    save_file(wider, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def set_in_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | fields))

    return change


def write_config(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(text)

    return change


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no config": lambda folder: (folder / "adapter_config.json").unlink(),
    "no folder": shutil.rmtree,
    "no json": write_config("{"),
    "a list": write_config("[]"),
    "a tensor less": lose_a_tensor,
    "other shapes": widen,
    "other layers": set_in_config(target_modules=["nowhere"]),
    "no lora": set_in_config(peft_type="IA3"),
    "bias": set_in_config(bias="lora_only"),
    "dora": set_in_config(use_dora=True),
    "whole modules": set_in_config(modules_to_save=["lm_head"]),
    "a setting of a later PEFT": set_in_config(bends_everything=2),
    "another base": set_in_config(init_lora_weights="pissa_niter_4"),
    "another rank": set_in_config(r=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
@pytest.mark.parametrize("before", ["base", "routed"])
def test_a_damaged_folder_among_several_leaves_everything_as_it_was(
    model: LocalModel, folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], before: str
) -> None:
    model.swap("v1", routed(model, folders) if before == "routed" else one(None))
    wanted, held = answers(model), set(model._adapters._known)
    damaged = Path(shutil.copytree(folders["d"], tmp_path / "d"))
    damage(damaged)
    with pytest.raises(SwapError, match="can't be loaded"):
        model.swap("v2", Served({"e": folders["e"], "d": damaged, "f": folders["f"]}, Always("e")))
    assert model.version == "v1"
    assert set(model._adapters._known) == held
    assert answers(model) == wanted
    model.swap("v3", Served({"e": folders["e"], "d": folders["d"]}, Always(*["d"] * len(ROUTES))))
    assert {adapter for adapter, _ in answers(model)} == {"d"}


def test_several_adapters_without_a_router_are_refused(model: LocalModel, folders: dict[str, Path]) -> None:
    with pytest.raises(SwapError, match="router"):
        model.swap("v1", Served({name: folders[name] for name in "ab"}))
    with pytest.raises(SwapError, match="adapter name"):
        model.swap("v1", Served({"": folders["a"]}))
    assert model.version == "v0"
