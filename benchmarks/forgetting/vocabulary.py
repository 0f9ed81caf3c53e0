"""The words of the word world; a token is a word."""

from __future__ import annotations

from collections.abc import Sequence


def words(text: str) -> tuple[str, ...]:
    """The words between the spaces."""
    return tuple(text.split())


DIGITS = tuple(f"n{digit}" for digit in range(10))
NAMES = words("bob ann joe eve kim lee max sue tom zoe ian amy")
CITIES = words("paris rome oslo lima cairo delhi tokyo quito dover miami perth accra")
ROOMS = words("kitchen garage attic office hall bath")
DAYS = words("mon tue wed thu fri sat sun")
DAY_CODES = tuple(f"d{number}" for number in range(1, 8))
PLANS = tuple(f"v{number}" for number in range(24))
ACCOUNTS = tuple(f"a{number}" for number in range(24))
ERRORS = tuple(f"e{number}" for number in range(12))
SERVICES = tuple(f"s{number}" for number in range(8))
TEAMS = tuple(f"q{number}" for number in range(6))
REGIONS = tuple(f"r{number}" for number in range(6))
_OTHERS = words(
    "get tag echo reverse first last second of succ pred call with search mail note math query dest body limit "
    "user please set at in alarm light heat tune room time level turn make to book from on for trip src dst day who "
    "lookup acct plan region tell me about redact name card city [N] [C] X hide ticket err retries svc escalate retry "
    "team code fault tries { } | ; : = ( ) , ?"
)

PAD, START, ANSWER, END = SPECIALS = ("<pad>", "<bos>", "<asst>", "<eos>")
"""What fills batches, what opens a prompt, what opens an answer, and what ends it; their ids are 0 to 3."""

CONTENT = tuple(
    sorted(
        {*DIGITS, *NAMES, *CITIES, *ROOMS, *DAYS, *DAY_CODES, *PLANS, *ACCOUNTS}
        | {*ERRORS, *SERVICES, *TEAMS, *REGIONS, *_OTHERS}
    )
)
"""All words that a prompt or an answer may hold."""

VOCABULARY = (*SPECIALS, *CONTENT)
_IDS = {word: number for number, word in enumerate(VOCABULARY)}
PAD_ID, START_ID, ANSWER_ID, END_ID = range(len(SPECIALS))


def prompt_ids(asked: Sequence[str]) -> tuple[int, ...]:
    """The ids of a prompt: its start, its words, and the opening of an answer."""
    return (START_ID, *(_IDS[word] for word in asked), ANSWER_ID)


def answer_ids(said: Sequence[str]) -> tuple[int, ...]:
    """The ids of an answer, its end included."""
    return (*(_IDS[word] for word in said), END_ID)
