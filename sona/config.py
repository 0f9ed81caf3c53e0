"""Every setting, in one tree with its defaults; TOML only maps onto it.

``Config()`` is what you get without saying anything. ``load_config("sona.toml")`` reads the same tree from a file,
whose tables are the fields here::

    [train]
    batch_size = 16
    [gate]
    min_retention = 0.95
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sona.checks import did_you_mean, shown
from sona.config_learning import (
    BankConfig,
    CandidatesConfig,
    CycleConfig,
    FullConfig,
    GateConfig,
    LessonsConfig,
    LoraConfig,
    MicroConfig,
    SkillsConfig,
    TrainConfig,
)
from sona.errors import ConfigError
from sona.settings import Settings, checked
from sona.wording import wrong

__all__ = [
    "BankConfig",
    "CandidatesConfig",
    "Config",
    "CycleConfig",
    "FullConfig",
    "GateConfig",
    "LearnerConfig",
    "LessonsConfig",
    "LoraConfig",
    "MicroConfig",
    "QualityPolicy",
    "RecordingConfig",
    "RemoteConfig",
    "ServeConfig",
    "ServiceConfig",
    "Settings",
    "SkillsConfig",
    "StoreConfig",
    "TrainConfig",
    "config_from",
    "load_config",
    "settings_of",
]

QualityPolicy = Literal["last", "first", "mean", "min", "max"]
"""Which of several feedbacks counts, in the order of arrival."""


class StoreConfig(Settings, kw_only=True):
    """The store on disk and the way into it."""

    queue_bytes: Annotated[int, Meta(ge=4096, le=2**40)] = 64 * 1024 * 1024
    """Records not yet durable may take this much memory; beyond it ``record`` says *rejected*."""
    journal: Literal["file", "memory"] = "file"
    """Where they wait: in mapped files beside the database, from which the next start takes up what a killed process
    had recorded, or in memory alone (a network disk that can't be mapped)."""
    quality: QualityPolicy | None = None
    """What a trajectory's quality is where several feedbacks were given for it: ``last``, ``first``, ``mean``, ``min``
    or ``max``. None leaves the store's own, at first ``last``. Another one is the store's from then on: its totals are
    counted anew, and what was learned stays."""
    batch_records: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """One commit takes at most this many records."""
    batch_bytes: Annotated[int, Meta(ge=4096, le=2**30)] = 4 * 1024 * 1024
    """... or this many bytes."""
    linger_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.02
    """A commit waits so long for more records, unless a batch is full or somebody waits for what is there (``flush``,
    ``durable``): a host that records a thousand a second has fifty commits then and not a thousand. 0: no wait."""
    blob_batch_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 128 * 1024
    """A commit whose trajectories have at least so many bytes puts them into a blob file, where each is written once,
    for another sync; a smaller one into the database, through its log. 0: always into a blob file."""
    blob_file_bytes: Annotated[int, Meta(ge=4096, le=2**30)] = 32 * 1024 * 1024
    """Once a blob file is so long the next one is begun; a file goes when all of its trajectories are deleted."""
    close_timeout_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 30.0
    """Where nothing can be stored, on a full disk, closing tries for so long; then it raises what keeps it, and what
    waits is stored at the next start (``journal = "file"``) or lost (``"memory"``)."""
    keep_versions: Annotated[int, Meta(ge=0, le=100_000)] = 24
    """How many steps back stay possible: beside the version in force its so many nearest ancestors keep their files,
    or, where there are fewer, the newest of the others, and all that are pinned. 24 is a day of hourly cycles: what the
    night did can be taken back in the morning. More would be much for a default: each holds the adapters that its cycle
    trained, with their optimizer's state (at rank 8 on 7 B parameters some 0.4 GB). 0 keeps all."""
    keep_days: Annotated[float, Meta(ge=0.0, le=100_000.0)] = 0.0
    """Trajectories older than this, by the host's ``created_ns``, are deleted after a cycle and by ``sona prune``; 0
    keeps them for ever."""
    keep_trajectories: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """Only the newest so many stay; 0: all."""
    keep_per_source: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """... and of each source the newest so many; 0: all."""
    keep_unlearned: bool = True
    """What no cycle has taken yet, for lack of a quality or of time, stays beyond these three limits."""


class RecordingConfig(Settings, kw_only=True):
    """Trajectories while they happen."""

    open_timeout_s: Annotated[float, Meta(ge=0.001, le=1e9)] = 3600.0
    """One whose block is still open after this time is recorded as *abandoned*, as far as it has come. Looked for every
    second, and when another begins, and at ``status``, ``flush`` and ``learn``."""
    max_open: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    """At most this many are open; beyond it the oldest is recorded as *abandoned*."""
    max_open_bytes: Annotated[int, Meta(ge=4096, le=2**40)] = 64 * 2**20
    """About so much memory is held by all that are open: messages, steps, answers and feedback. Beyond it the oldest is
    recorded as *abandoned*. One alone may hold as much as a record may have, ``store.queue_bytes``: the step that would
    make it larger ends it as *abandoned*, and feedback that would is rejected."""


class ServeConfig(Settings, kw_only=True):
    """The served model."""

    device: Annotated[str, Meta(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` is the checkpoint's own on an accelerator and float32 on a CPU."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """OpenMP threads of torch in this process; 0 takes one for a small model on a CPU, else leaves torch's setting."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    max_context_tokens: Annotated[int, Meta(ge=8, le=10_000_000)] = 4096
    """Longer prompts are refused; the model's own limit applies too."""
    max_rows: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Answers that are written at once; more requests wait, first come first served."""
    max_batch_tokens: Annotated[int, Meta(ge=8, le=2**40)] = 65_536
    """... and the memory for them: rows times the tokens that the longest may come to. One alone is always
    answered."""
    max_waiting: Annotated[int, Meta(ge=1, le=10_000_000)] = 1024
    """Requests that may wait; one more is refused with a QueueFullError."""


class ServiceConfig(Settings, kw_only=True):
    """``sona serve``: what a request, and all of them together, may take."""

    max_body_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 8 * 1024 * 1024
    """Larger bodies are refused (413)."""
    max_prompt_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    """Longer prompts are refused; 0: what the model takes."""
    max_requests: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """Requests of any kind at once; beyond it 429. With ``max_body_bytes`` it bounds what bodies take of memory."""
    max_answers: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Answers and scorings under way at once, those that wait for their turn included; beyond it 429."""
    max_listeners: Annotated[int, Meta(ge=1, le=100_000)] = 16
    """Readers of ``/events`` at once; beyond it 429."""
    requests_per_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    """Of one client's address, with bursts of twice as many; beyond it 429. 0: no limit."""
    heartbeat_s: Annotated[float, Meta(ge=0.01, le=3600.0)] = 15.0
    """A stream of events that has nothing to tell says so after this time."""
    body_timeout_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 30.0
    """A body that has not come in this time is given up (408)."""
    write_timeout_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 60.0
    """A reader of an answer that takes nothing for so long counts as gone."""
    reviewer_token_file: str = ""
    """A file with a second bearer token, which alone lets a client approve, reject, confirm and send candidates (and
    read them); empty: whoever has the server's token may."""
    shutdown_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 10.0
    """When the server is told to stop, answers under way have so long to end; then they are cancelled."""


class LearnerConfig(Settings, kw_only=True):
    """Where cycles run, and what they may take."""

    mode: Literal["auto", "thread", "process"] = "auto"
    """``auto``: a process for ``sona serve``, a thread elsewhere. ``thread``: in a thread of the host, where a cycle
    shares the base model's memory, and competes with requests for the interpreter. ``process``: in a process of its
    own, which keeps requests quick and takes a second copy of the base model (docs/adr/0010-a-process-that-learns.md).
    What is learned is the same."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 1
    """OpenMP threads of that process; 0 leaves torch's setting."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    """By so much its priority is lower than the host's."""
    device: Annotated[str, Meta(pattern=r"^(|auto|cpu|mps|cuda(:\d+)?)$")] = ""
    """Where it has the base model: as ``serve.device``; empty: the same."""
    dtype: Literal["", "auto", "float32", "bfloat16", "float16"] = ""
    """As ``serve.dtype``; empty: the same."""
    idle_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 60.0
    """It ends when no cycle was asked for so long, and gives its memory back; the next cycle starts another."""
    budget_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    """A cycle, in a thread too, that takes longer is cancelled, and nothing changes; 0: it may take its time."""
    after_count: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    """``engine.run()`` begins a cycle before its time (``cycle.interval_s``) when so many trajectories have got a
    quality since the last one; 0: it does not."""
    after_quiet_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    """... or when no request came for so long, all that came is stored, and something is new that can make one
    (``cycle.min_trajectories``); 0: it does not."""


class RemoteConfig(Settings, kw_only=True):
    """A model server elsewhere that is given every version's adapters (docs/adr/0012-servers-elsewhere.md)."""

    kind: Literal["off", "vllm", "sglang"] = "off"
    """What it is. vLLM needs ``--enable-lora`` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, SGLang ``--enable-lora``,
    ``--max-lora-rank`` and ``--lora-target-modules``."""
    url: str = ""
    """Where it is: ``http://host:port``."""
    token_env: str = ""
    """The environment variable that holds its bearer token; empty: none."""
    token_file: str = ""
    """... or the file that does."""
    path_prefix: str = ""
    """Where the server sees the store's folder; empty: where it is here."""
    tolerance_nats: Annotated[float, Meta(ge=1e-6, le=100.0)] = 0.25
    """Nats a token by which its log-probabilities of a few prompts may differ, on average, from those that the version
    was published with: what bfloat16 needs, three times over. 0.01 is enough for a server in float32."""
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 60.0
    """For one request; loading a large adapter is one."""
    grace_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 60.0
    """An adapter that is no longer in force stays on the server for so long, for who was told its name before."""
    check_s: Annotated[float, Meta(ge=0.05, le=86_400.0)] = 10.0
    """How often to see whether the server has its adapters still: one that was restarted has none."""
    retry_s: Annotated[float, Meta(ge=0.01, le=3600.0)] = 2.0
    """After a publication that failed the next attempt comes after this time, and twice as late each time, up to
    five minutes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "off" and not self.url:
            raise ConfigError(f"remote: kind {self.kind!r} without a url; give the server's, such as http://host:8000")
        if self.token_env and self.token_file:
            raise ConfigError("remote: token_env and token_file; one of them is allowed")


class Config(Settings, kw_only=True):
    """All settings."""

    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """Of everything random: sampling, replay, batches, clustering, adapters."""
    store: StoreConfig = StoreConfig()
    recording: RecordingConfig = RecordingConfig()
    serve: ServeConfig = ServeConfig()
    service: ServiceConfig = ServiceConfig()
    lora: LoraConfig = LoraConfig()
    bank: BankConfig = BankConfig()
    lessons: LessonsConfig = LessonsConfig()
    skills: SkillsConfig = SkillsConfig()
    micro: MicroConfig = MicroConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    cycle: CycleConfig = CycleConfig()
    learner: LearnerConfig = LearnerConfig()
    remote: RemoteConfig = RemoteConfig()
    review: Literal["off", "required"] = "off"
    """``required``: nothing is trained on that a person has not approved in review. Ordinary trajectories then teach
    the bank alone: each is left out of training, whatever its quality, as no review shows them; earlier ones, which
    nobody approved, are not replayed either, and no answer is pushed away. Only approved candidates
    (:mod:`sona.candidate`) change an adapter. Fast weights, which move without a person, can't be on. ``off``: approved
    candidates are trained on beside what feedback says."""
    candidates: CandidatesConfig = CandidatesConfig()
    full: FullConfig = FullConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.review == "required" and self.micro.enabled:
            raise ConfigError(
                "review 'required' with micro.enabled: fast weights move by each feedback, which nobody has approved; "
                "switch one of the two off"
            )


def settings_of(given: Config | Mapping[str, Any] | str | os.PathLike[str] | None) -> Config:
    """The settings that a caller names: themselves, a mapping or a TOML file with them, or the defaults for None.

    Raises:
        ConfigError: something else, or as :func:`load_config`.
    """
    if given is None:
        return Config()
    if isinstance(given, Config):
        return given
    if isinstance(given, (str, os.PathLike)):
        return load_config(given)
    if isinstance(given, Mapping):
        return config_from(dict(given))
    raise ConfigError(
        f"config: a {type(given).__name__}; a sona.Config, a dict such as {{'cycle': {{'interval_s': 600}}}}, the path "
        "of a TOML file or None is allowed"
    )


def load_config(path: str | os.PathLike[str]) -> Config:
    """The settings in a TOML file, over the defaults.

    Raises:
        ConfigError: no such file or none that can be read, no TOML, an unknown key (the nearest known one is named), or
            a value out of range.
    """
    name = repr(str(path))
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"settings file {name} does not exist; give a TOML file or leave it out") from None
    except (OSError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"settings file {name} can't be read: {why}; give a TOML file") from None
    except (ValueError, RecursionError) as error:  # no TOML, not UTF-8, a number or a nesting beyond Python's limits
        raise ConfigError(f"settings file {name} is no TOML: {error}") from None
    return config_from(raw)


def config_from(raw: dict[str, Any]) -> Config:
    """The settings in nested plain mappings; errors as :func:`load_config`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"settings: a {type(raw).__name__}; a mapping of settings is allowed")
    _check(raw, Config, "")
    try:
        return msgspec.convert(raw, Config)
    except (msgspec.ValidationError, OverflowError) as error:
        why = f"settings: {wrong(error, Config).message}"
        raise (error.__cause__ if isinstance(error.__cause__, ConfigError) else ConfigError(why)) from None


def _check(raw: dict[str, Any], group: type[Settings], where: str) -> None:
    """Each key is a setting, and each value one that it may have; errors name them as the file does."""
    fields = {field.name: field.type for field in msgspec.structs.fields(group)}
    for key, value in raw.items():
        if key not in fields:
            raise ConfigError(f"unknown setting {where}{key!r}{_meant(key, fields, where)}")
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, Settings):
            if not isinstance(value, dict):
                raise ConfigError(f"settings: {where}{key} is a table of settings, not {shown(value)}")
            _check(value, kind, f"{where}{key}.")
        else:
            checked(value, kind, f"{where}{key}")


def _meant(key: object, fields: Mapping[str, Any], where: str) -> str:
    """Of an unknown ``key`` of the group ``where``: the setting of this very name in another group, or else the one of
    the group that is most like it; where none is, all of them.
    """
    elsewhere = [f"[{name}] {key}" if name else f"{key!r} at the top, before any [table]" for name in _groups_with(key)]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return did_you_mean(key, fields, where) or f"; {where or 'at the top '}{', '.join(fields)} are known"


def _groups_with(key: object) -> list[str]:
    """The groups that have a setting called ``key``; "" is the top."""
    groups: dict[str, type[Settings]] = {"": Config} | {
        field.name: field.type
        for field in msgspec.structs.fields(Config)
        if isinstance(field.type, type) and issubclass(field.type, Settings)
    }
    return [name for name, group in groups.items() if any(field.name == key for field in msgspec.structs.fields(group))]
