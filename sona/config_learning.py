"""The settings of what learns: adapters, bank, lessons, skills, training, gate, cycles, candidates, full weights."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from sona.errors import ConfigError
from sona.settings import Settings


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
