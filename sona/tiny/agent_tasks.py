"""What only one particular agent's traffic teaches: three tasks that the shipped model cannot do.

The tables behind them are random and differ from world to world, so no amount of general skill answers them; a
learner has to take them from recorded interactions. Everything else that they need (the words, copying a word into a
call) the model can do already, so that a few hundred examples suffice.
"""

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

from sona.tiny.example import Example, Split, split_of
from sona.tiny.lexicon import CLASSES, DIGITS

ESCALATE_FROM_RETRIES: Final = 3
"""The policy: so many retries, or more, go to a person."""

_DEVICES: Final = ("heat", "lamp", "alarm", "fan")
_LEVEL_NAMES: Final = ("level", "speed", "size", "count", "limit")
_ROOM_NAMES: Final = ("room", "place", "zone", "area")
_REQUESTS: Final = (
    "please set the {device} in the {room} to {level}",
    "{room} {device} to {level} now",
    "turn the {device} to {level} in the {room}",
)

_ACCOUNTS: Final = 20
# The name comes last in each: with names in the middle, a hundred steps on 200 examples were hardly enough.
_QUESTIONS: Final = (
    "look up account {}",
    "please show me account {}",
    "what plan and region has {}",
    "account details for {}",
    "which plan is given to {}",
)

_TICKETS: Final = (
    "error {fault} in {service} after {retries} retries",
    "{service} reports {fault} , tried {retries} times",
)


class AgentWorld:
    """The tables of one agent's world, drawn from a seed, and questions about them."""

    def __init__(self, seed: int) -> None:
        rng = Random(f"agent world {seed}")
        self.level_name: Final[Mapping[str, str]] = MappingProxyType(
            {device: rng.choice(_LEVEL_NAMES) for device in _DEVICES}
        )
        """Device -> what its level is called in a call."""
        self.room_name: Final[str] = rng.choice(_ROOM_NAMES)
        """What the room is called in a call."""
        names = rng.sample(CLASSES["surname"], _ACCOUNTS)
        self.account: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
            {name: (rng.choice(CLASSES["metal"]), rng.choice(CLASSES["country"])) for name in names}
        )
        """Account -> (plan, region)."""
        self.team: Final[Mapping[str, str]] = MappingProxyType(
            {fault: rng.choice(CLASSES["colour"]) for fault in CLASSES["fault"]}
        )
        """Error code -> the team that answers for it."""
        self._seed = seed
        self._account_place = {name: place for place, name in enumerate(names)}
        self._draw: Final[Mapping[str, Callable[[Random], tuple[str, str, Split]]]] = MappingProxyType(
            {"tool_call": self._tool_call, "account_facts": self._account_facts, "routing_policy": self._routing_policy}
        )

    def _tool_call(self, rng: Random) -> tuple[str, str, Split]:
        device, room, level = rng.choice(_DEVICES), rng.choice(CLASSES["room"]), rng.choice(DIGITS)
        prompt = rng.choice(_REQUESTS).format(device=device, room=room, level=level)
        return prompt, f"{device}{{{self.level_name[device]}:{level}|{self.room_name}:{room}}}", split_of(prompt)

    def _account_facts(self, rng: Random) -> tuple[str, str, Split]:
        name, phrasing = rng.choice(tuple(self.account)), rng.randrange(len(_QUESTIONS))
        plan, region = self.account[name]
        # Each account lacks exactly one phrasing in training, each phrasing lacks a fifth of the accounts.
        held_out = (self._account_place[name] + phrasing) % len(_QUESTIONS) == 0
        return _QUESTIONS[phrasing].format(name), f"plan {plan} region {region}", "held_out" if held_out else "train"

    def _routing_policy(self, rng: Random) -> tuple[str, str, Split]:
        fault, service, retries = rng.choice(tuple(self.team)), rng.choice(CLASSES["service"]), rng.randrange(7)
        prompt = rng.choice(_TICKETS).format(fault=fault, service=service, retries=retries)
        verb = "escalate" if retries >= ESCALATE_FROM_RETRIES else "retry"
        return prompt, f"{verb} {service} team {self.team[fault]}", split_of(prompt)

    def sample(self, task: str, n: int, seed: int, split: Split = "train") -> list[Example]:
        """Return `n` examples of one of `AGENT_TASKS`, the same ones for the same arguments and the same world.

        No prompt of one split ever occurs in the other. `account_facts` has only a hundred prompts, so that they
        repeat; its held-out ones ask about a known account in a phrasing that was never used for it.

        Raises:
            KeyError: no task has that name.
        """
        draw = self._draw[task]
        rng = Random(f"{task}/{self._seed}/{seed}/{split}")
        examples: list[Example] = []
        while len(examples) < n:
            prompt, response, belongs_to = draw(rng)
            if belongs_to == split:
                examples.append(Example(prompt, response, task))
        return examples


AGENT_TASKS: Final = ("tool_call", "account_facts", "routing_policy")
"""The names that `AgentWorld.sample` knows."""
