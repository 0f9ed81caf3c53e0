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
from typing import Annotated, Any, Literal, dataclass_transform, get_args, get_origin

import msgspec
from msgspec import Meta

from sona.checks import nearest, shown
from sona.errors import ConfigError


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # type checkers don't inherit ``frozen``
class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all groups of settings share: each value is checked against its annotation, built in code or read from a
    file.
    """

    def __post_init__(self) -> None:
        group = type(self).__name__.removesuffix("Config").lower()
        for field in msgspec.structs.fields(self):
            name = f"{group}.{field.name}" if group else field.name
            # What was converted is kept: an int where a float is declared becomes one, a list a tuple.
            msgspec.structs.force_setattr(self, field.name, _checked(getattr(self, field.name), field.type, name))


def _checked(value: object, kind: Any, name: str) -> object:
    """``value`` as the declared type of the setting ``name``."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        if not isinstance(value, kind):
            raise ConfigError(f"{name}: a {type(value).__name__}; a {kind.__name__} is allowed")
        return value
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:  # an int may be larger than any float
        why = f"{str(error)[0].lower()}{str(error)[1:]}"
        if choices := _choices(kind):
            why = f"one of {', '.join(choices)} is allowed"
        raise ConfigError(f"{name}: {shown(value)}; {why}") from None


def _choices(kind: Any) -> list[str]:
    """The texts that a setting of this kind may be; [] where it may be other things."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    parts = [part for part in get_args(kind) if part is not type(None)]  # of `... | None`
    return _choices(parts[0]) if len(parts) == 1 else []


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


class LoraConfig(Settings, kw_only=True):
    """The shape of the adapter (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Annotated[int, Meta(ge=1, le=1024)] = 8
    alpha: Annotated[float, Meta(ge=1e-6, le=1e6)] = 16.0
    """The adapter's product is scaled by ``alpha / rank``."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get one; empty: all linear layers but the output head."""


class BankConfig(Settings, kw_only=True):
    """The reasoning bank."""

    grain: Annotated[float, Meta(ge=0.05, le=10.0)] = 0.5
    """What evidence two groups of queries need to be two patterns, as a share of the Bayesian information criterion's
    price of a group (:mod:`sona.bank.ward`): smaller makes more and finer patterns."""
    max_patterns: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    """The fuller the bank the more evidence a new one needs; beyond it those of the least weight go."""
    half_life: Annotated[float, Meta(ge=1.0, le=1e9)] = 336.0
    """Cycles (two weeks of hours) after which a trajectory counts half in a pattern's weight and in what is recent."""
    min_weight: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.5
    """A pattern of less weight is dropped: of one trajectory after a half-life, of 64 after seven."""
    cells: Annotated[int, Meta(ge=2, le=256)] = 12
    """Parts that are kept of each pattern, so that it can be cut in two later; each takes 4 bytes for each number of an
    embedding."""
    exemplars: Annotated[int, Meta(ge=0, le=1000)] = 5
    """Shown of each pattern."""
    lessons: Annotated[int, Meta(ge=0, le=100)] = 3
    """Kept of each pattern."""
    families_every: Annotated[int, Meta(ge=1, le=1_000_000)] = 24
    """Cycles after which patterns are put into families anew."""


class LessonsConfig(Settings, kw_only=True):
    """Lessons: what a pattern's best and worst trajectories teach, in words (:mod:`sona.bank.lessons`). How many of
    them a pattern keeps is ``bank.lessons``.
    """

    by_model: bool = False
    """The served model writes them. Off: a small model writes none that are worth having. A function that is given to
    ``sona.open(..., distill=...)`` writes them whatever this says."""
    per_cycle: Annotated[int, Meta(ge=0, le=10_000)] = 4
    """Patterns that a cycle has lessons written for, at most; those that have grown most come first."""
    min_rated: Annotated[int, Meta(ge=1, le=1_000_000)] = 8
    """Trajectories with a quality that a pattern needs before."""
    max_tokens: Annotated[int, Meta(ge=16, le=100_000)] = 256
    """Length of what the served model writes of one pattern, at most."""


class SkillsConfig(Settings, kw_only=True):
    """How many adapters there are, and what each answers for."""

    mode: Literal["auto", "routed", "shared"] = "auto"
    """``shared``: one adapter answers everything. ``routed``: each skill that is discovered has an adapter of its own,
    and a router sends each query to one of them, or to the untouched base. ``auto``: routed as far as the evidence
    goes: queries that a router could not bring to an adapter of their own join the skill that they are like, and skills
    whose answers one adapter gives as well share it."""
    max_adapters: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Beyond it a new skill shares the adapter that answers for the fewest."""
    min_queries: Annotated[int, Meta(ge=4, le=1_000_000)] = 16
    """New queries of one cycle that make a skill; fewer go to the known skill most like them. In ``auto`` mode it takes
    about twice as many once there is a skill: both halves of the cycle must see that they are new."""
    retire_cycles: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    """A skill without a query for so many cycles is dropped; its queries go to the base again."""


class MicroConfig(Settings, kw_only=True):
    """Micro-LoRA: fast weights that a single feedback moves (:mod:`sona.learn.micro`)."""

    enabled: bool = False
    """Off: an answer then changes only by what the gate let pass."""
    rank: Annotated[int, Meta(ge=1, le=2)] = 1
    step_nats: Annotated[float, Meta(ge=1e-6, le=100.0)] = 1.0
    """By so many nats a feedback of advantage 1 makes its response likelier."""
    vector_step: Annotated[float, Meta(ge=1e-6, le=1.0)] = 0.1
    """By this share of its length a feedback of advantage 1 moves a plain vector."""
    bound: Annotated[float, Meta(ge=1e-6, le=10.0)] = 0.5
    """No hidden state is moved by more than this share of its length."""
    decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.02
    """Share that a pattern's weights lose with each feedback for it."""
    push_margin: Annotated[float, Meta(ge=0.01, le=1e3)] = 2.0
    """An answer that was turned down is pushed by a factor of e less for each so many nats that it is less likely
    already than without fast weights."""
    min_similarity: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.75
    """A query has the weights of its nearest pattern's family where its cosine to the pattern's centroid is at least
    this share of what is usual there; else none."""
    max_patterns: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Families with weights; beyond it the least recently used one's go."""
    max_waiting: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Feedbacks that wait for their step; beyond it they are recorded, but move nothing at once."""


class TrainConfig(Settings, kw_only=True):
    """The LoRA steps of a cycle."""

    learning_rate: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Peak rate of AdamW; 0 chooses it from the model's width (see :func:`sona.learn.trainer.auto_learning_rate`)."""
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 16
    """Sequences a step: the new ones, the replayed ones and the probes together."""
    replay_share: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.5
    """Share of each batch drawn from earlier cycles' trajectories, once there are any."""
    probe_share: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.3
    """Share of each batch drawn from the base model's own answers to its own prompts (what it must not forget)."""
    passes: Annotated[float, Meta(ge=0.0, le=1000.0)] = 8.0
    """How often each new trajectory is seen: a quarter as often where its answer is given already, one and a half times
    where it is not."""
    min_steps: Annotated[int, Meta(ge=0, le=10_000_000)] = 1
    max_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 2000
    warmup_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 5
    max_grad_norm: Annotated[float, Meta(ge=1e-6, le=1e6)] = 0.5
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    ema_decay: Annotated[float, Meta(ge=0.0, le=0.9999)] = 0.95
    """The challenger is this running average of the stepped weights; 0 takes the last step's."""
    ewc_lambda: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.001
    """Strength of the EWC++ penalty on weights normalised to a mean importance of 1; 0 switches it off.

    At .01 real text had .41 of the answers right, at .001 .57. Where a router keeps skills apart, 0 differs by no more
    than the noise; a shared adapter needs it (docs/adr/0005-what-real-text-changed.md).
    """
    ewc_form: Literal["penalty", "proximal"] = "penalty"
    """``penalty`` adds its gradient to the task's; ``proximal`` lets the weights settle after the optimizer's step,
    which is stable at any ``ewc_lambda``. There a step's pull is scaled by the learning rate alone, and not by AdamW,
    so the same strength takes another, larger ``ewc_lambda``."""
    ewc_on: Literal["weights", "delta"] = "weights"
    """Hold the entries of A and B, or those of their product: more to the point, but memory and time like the base
    model's own weights."""
    ewc_anchors: Annotated[int, Meta(ge=1, le=64)] = 1
    """Tasks whose weights and importance are held apart; with 1 a single anchor moves on from cycle to cycle."""
    ewc_target_forgetting: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Share of what was known that a cycle may forget: where the last one forgot more, ``ewc_lambda`` is raised for the
    next, and where less, lowered; 0 leaves it as it is."""
    ewc_lambda_span: Annotated[float, Meta(ge=1.0, le=1e6)] = 10.0
    """It then stays between ``ewc_lambda`` divided and multiplied by this."""
    fisher_decay: Annotated[float, Meta(ge=0.0, le=0.99999)] = 0.9
    """EWC++'s running average: F <- decay F + (1 - decay) F of the batch."""
    fisher_every: Annotated[int, Meta(ge=1, le=1_000_000)] = 4
    """The batch's Fisher information is taken at every n-th step."""
    advantage_beta: Annotated[float, Meta(ge=1e-3, le=1e6)] = 0.2
    """Temperature of the weight exp(advantage / beta) (Peng et al. 2019, arXiv:1910.00177)."""
    max_weight: Annotated[float, Meta(ge=1.0, le=1e6)] = 5.0
    """Bound on that weight."""
    min_quality: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    """Answers below it are not imitated; they still lower their pattern's mean."""
    max_source_share: Annotated[float, Meta(ge=0.1, le=0.99)] = 0.8
    """Of what is new to an adapter, where it comes from several sources, one that has more of the lesson than this is
    held back, to half of its passes at most."""
    push_weight: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.1
    """Weight, against one that is imitated, of an answer below ``min_quality`` that is worse than its pattern's mean by
    1: it is made less likely. 0 leaves such answers alone."""
    push_margin: Annotated[float, Meta(ge=0.0, le=1e3)] = 2.0
    """... until it has become this many nats less likely than before the cycle, and no further."""
    max_tokens: Annotated[int, Meta(ge=8, le=10_000_000)] = 1024
    """Longer trajectories are left out of training, and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_steps > self.max_steps:
            raise ConfigError(f"train: min_steps {self.min_steps} is above max_steps {self.max_steps}; lower it")
        if self.replay_share + self.probe_share > 0.9:
            raise ConfigError(
                f"train: replay_share {self.replay_share} + probe_share {self.probe_share} leave under 10 % of a batch "
                "for what is new; lower one of them"
            )
        if self.ewc_form == "proximal" and self.ewc_on == "delta":  # has no closed form in A and B
            raise ConfigError("train: ewc_form 'proximal' with ewc_on 'delta'; take 'penalty', or hold the 'weights'")


class GateConfig(Settings, kw_only=True):
    """When a challenger may be published."""

    enabled: bool = True
    confidence: Annotated[float, Meta(ge=0.5, le=0.9999)] = 0.9
    """Of the two-sided bootstrap interval that the gain on held-out trajectories must keep above ``min_gain``: at 0.9 a
    challenger that gains nothing passes one time in twenty."""
    min_gain: Annotated[float, Meta(ge=-1.0, le=1.0)] = 0.0
    """What the challenger must gain on held-out answers, in the probability of a token (the geometric mean over an
    answer's tokens), at the interval's lower end."""
    min_held_out: Annotated[int, Meta(ge=1, le=1_000_000)] = 8
    """Fewer held-out trajectories than this are no evidence."""
    min_retention: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.9
    """Share of the tokens of the base model's own answers to its probes that the challenger still predicts, weighted by
    how sure the base was of them."""
    max_forgetting: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    """Share of the tokens of earlier cycles' held-out answers that may be lost against the version in force."""
    max_kl: Annotated[float, Meta(ge=0.0, le=1e3)] = 0.5
    """KL divergence from the base model on the same answers, nats a token, that a challenger may have on average."""
    held_out_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Held-out trajectories of this cycle that are scored at most."""
    earlier_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 128
    """... and of the earlier ones, drawn from all skills alike."""
    bootstrap_samples: Annotated[int, Meta(ge=100, le=1_000_000)] = 2000


class CycleConfig(Settings, kw_only=True):
    """The background loop."""

    interval_s: Annotated[float, Meta(ge=0.01, le=1e9)] = 3600.0
    """Between the starts of two cycles of ``engine.run()``."""
    min_trajectories: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    """With fewer new ones the cycle waits; nothing is dropped."""
    max_trajectories: Annotated[int, Meta(ge=1, le=100_000_000)] = 20_000
    """A cycle takes at most this many, the oldest first; the next takes the rest."""
    held_out_share: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.2
    """Share of the new trajectories that is never trained on, chosen by a hash of the prompt."""
    probes: Annotated[int, Meta(ge=0, le=100_000)] = 512
    """Prompts that the base model makes and answers once, to show later what was forgotten."""
    probe_tokens: Annotated[int, Meta(ge=4, le=4096)] = 48
    """Length of a probe's prompt, and of its answer, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_trajectories > self.max_trajectories:
            raise ConfigError(
                f"cycle: min_trajectories {self.min_trajectories} is above max_trajectories {self.max_trajectories}; "
                "lower it"
            )


class CandidatesConfig(Settings, kw_only=True):
    """Answers that depend on memory: how they are found, and how approved ones get into the weights."""

    watch: bool = False
    """Score each recorded turn that marks its memories, in the background, by the served model: it takes passes of the
    model, so it is off until it is wanted."""
    max_age_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 3600.0
    """A memory whose weight is younger is not weighed again."""
    weighed_a_turn: Annotated[int, Meta(ge=0, le=1_000_000)] = 4
    """With each turn so many of its memories are weighed anew at most, two passes each, the oldest weights first."""
    live_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 512 * 1024 * 1024
    """Keys and values of growing conversations that stay in the model's memory between turns, so that a turn costs its
    own tokens alone; those of the conversation that was scored longest ago go first. 0: each turn is read from its
    beginning."""
    share: Annotated[float, Meta(ge=0.01, le=0.9)] = 0.25
    """Share of each batch that is drawn from approved answers, where a cycle has some; of a cycle that has nothing else
    that is new it is all but replay and probes."""
    min_approved: Annotated[int, Meta(ge=1, le=1_000_000)] = 16
    """So many approved answers make a cycle by themselves (as ``cycle.min_trajectories`` make one); fewer go along with
    one that is due."""
    max_approved: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    """A cycle takes at most so many, the oldest first."""
    train_on: Literal["without_memories", "with_memories"] = "without_memories"
    """The context that an approved answer is trained on. ``without_memories`` moves the memory's effect into the
    weights: the adapter gives the answer unaided. ``with_memories`` makes it more likely where the memories are shown,
    as a system does that stores the contexts as they were; the answer goes on depending on them
    (docs/adr/0014-review-of-answers.md)."""
    replayed: Annotated[int, Meta(ge=0, le=1_000_000)] = 256
    """Of the answers that earlier cycles moved into the weights, so many may be replayed in a cycle."""
    context_tail: Annotated[int, Meta(ge=0, le=1_000_000)] = 2000
    """Characters of the context's end that are kept for whoever reviews."""
    alternate_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Length, at most, of what the model answers without memories."""
    train_url: str = ""
    """Where a training service takes approved answers (``POST <url>/train``) when they are sent; empty: nowhere."""
    train_token_env: str = ""
    """The environment variable that holds its bearer token; empty: none."""
    train_token_file: str = ""
    """... or the file that does."""
    max_waiting: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Turns that wait to be scored; beyond it they are recorded, but not scored, and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_token_env and self.train_token_file:
            raise ConfigError("candidates: train_token_env and train_token_file; one of them is allowed")


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
    """... or when no request came for so long, and something is new that can make one (``cycle.min_trajectories``); 0:
    it does not."""


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


class FullConfig(Settings, kw_only=True):
    """Full-weight training on call (``POST /train``), of a model small enough: see :mod:`sona.loops.full`."""

    enabled: bool = True
    """Off: ``POST /train`` is refused. No process is started before the first job comes."""
    max_parameters: Annotated[int, Meta(ge=1, le=2**50)] = 1_000_000_000
    """Of a larger model no job is taken."""
    max_queued_jobs: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Jobs that may wait; one more is refused."""
    max_samples: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    """Of one job."""
    max_tokens: Annotated[int, Meta(ge=2, le=10_000_000)] = 1024
    """Of one sample, context and continuation together; the model's own limit applies too."""
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 4
    """Samples a step."""
    passes: Annotated[int, Meta(ge=1, le=1000)] = 1
    """How often each sample is seen."""
    rounding: Literal["masters", "stochastic"] = "masters"
    """How weights of bfloat16 or float16 keep small steps: a float32 copy of each, or rounding by chance (bfloat16
    alone), which takes no memory."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 1
    """OpenMP threads of the process; 0 leaves torch's setting. With another number the last bits differ."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    """By so much its priority is lower than the server's."""
    device: Annotated[str, Meta(pattern=r"^(|auto|cpu|mps|cuda(:\d+)?)$")] = ""
    """Where it has the model: as ``serve.device``; empty: the same."""
    checkpoint_after_jobs: Annotated[int, Meta(ge=0, le=100_000)] = 32
    """After so many jobs that are in no checkpoint one is made without being asked for, so that not more are done again
    after a crash; 0: only when asked."""
    keep_checkpoints: Annotated[int, Meta(ge=1, le=100_000)] = 4
    """The newest so many stay, with what they need."""
    snapshot_every: Annotated[int, Meta(ge=0, le=1000)] = 8
    """Deltas between two checkpoints that are written whole."""


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
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"settings file {shown(path)} does not exist; give a TOML file or leave it out") from None
    except (OSError, TypeError) as error:
        raise ConfigError(f"settings file {shown(path)} can't be read: {error}; give a TOML file") from None
    except (ValueError, RecursionError) as error:  # no TOML, not UTF-8, a number or a nesting beyond Python's limits
        raise ConfigError(f"settings file {shown(path)} is no TOML: {error}") from None
    return config_from(raw)


def config_from(raw: dict[str, Any]) -> Config:
    """The settings in nested plain mappings; errors as :func:`load_config`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"settings: a {type(raw).__name__}; a mapping of settings is allowed")
    _check(raw, Config, "")
    try:
        return msgspec.convert(raw, Config)
    except (msgspec.ValidationError, OverflowError) as error:
        raise (
            error.__cause__ if isinstance(error.__cause__, ConfigError) else ConfigError(f"settings: {error}")
        ) from None


def _check(raw: dict[str, Any], group: type[Settings], where: str) -> None:
    """Each key is a setting, and each value one that it may have; errors name them as the file does."""
    fields = {field.name: field.type for field in msgspec.structs.fields(group)}
    for key, value in raw.items():
        if key not in fields:
            raise ConfigError(f"unknown setting {where}{key!r}; did you mean {where}{nearest(key, fields)!r}?")
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, Settings):
            if not isinstance(value, dict):
                raise ConfigError(f"settings: {where}{key} is a table of settings, not {shown(value)}")
            _check(value, kind, f"{where}{key}.")
        else:
            _checked(value, kind, f"{where}{key}")
