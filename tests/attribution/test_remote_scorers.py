"""Scoring by servers that speak as vLLM, SGLang and sona do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sona.attribution.context import Context, Drop, Segment
from sona.attribution.known import Known
from sona.attribution.memories import score_memories
from sona.attribution.remote import RemoteScorer
from sona.attribution.score_service import MOST_RANGES, ScoreService
from sona.attribution.scorer import Passage
from sona.attribution.sglang import SGLang
from sona.attribution.tokens import encode
from sona.attribution.totals import total_log_probs
from sona.attribution.vllm import VLLMChat, VLLMCompletions
from sona.errors import InvalidInputError, ScoringError, UnknownTokenError
from tests.attribution.servers import SGLANG, SONA, VLLM, Body, RefusedError, Server, codec, own, served, text_of

KINDS = ("completions", "chat", "sglang", "sona")
ANSWERS = {"completions": VLLM, "chat": VLLM, "sglang": SGLANG, "sona": SONA}
CONTEXT = Context(
    (
        Segment("memory", "the colour is blue", key="colour"),
        Segment("memory", "the stone is grey", key="stone"),
        Segment("user", "echo blue river stone"),
        Segment("assistant", "blue river stone"),
        Segment("user", "echo one two"),
        Segment("assistant", "one two"),
    )
)


EACH = [Drop(keys=(key,)) for key in CONTEXT.keys]


def scorer_of(kind: str, server: Server, known: Known | None = None, **more: Any) -> RemoteScorer:
    known = known or Known.of(codec())
    options: dict[str, Any] = {"tries": 1, "timeout_s": 10.0, **more}
    if kind == "completions":
        return VLLMCompletions(server.url, known, **options)
    if kind == "chat":
        return VLLMChat(server.url, known, text_of, **options)
    if kind == "sglang":
        return SGLang(server.url, known, **options)
    return ScoreService(server.url, known, **{"max_tokens": 512, **options})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str) -> Iterator[Server]:
    with served(ANSWERS[kind]) as opened:
        yield opened


def passage() -> Passage:
    ids = codec().spell_out("<|user|>echo blue river stone<|assistant|>blue river stone", ()).ids
    return Passage(ids, ((2, 4), (len(ids) - 3, len(ids))))


def test_scores_are_the_models_own(kind: str, server: Server) -> None:
    one = passage()
    found = scorer_of(kind, server).score(one.ids, one.ranges)
    wanted = own().score(one.ids, one.ranges)
    assert [part.dtype for part in found] == [np.float32] * 2
    for part, right in zip(found, wanted, strict=True):
        assert np.allclose(part, right, atol=1e-4)


def test_all_variants_of_a_context_are_the_models_own(kind: str, server: Server) -> None:
    drops = EACH
    found = total_log_probs(CONTEXT, codec(), scorer_of(kind, server), drops)
    wanted = total_log_probs(CONTEXT, codec(), own(), drops)
    assert np.allclose(found.dropped, wanted.dropped, atol=1e-3)
    assert not found.failures


def test_server_is_tried_once(kind: str, server: Server) -> None:
    scorer = scorer_of(kind, server)
    one = passage()
    scorer.score(one.ids, one.ranges)
    before = len(server.asked)
    scorer.score(one.ids, one.ranges)
    assert len(server.asked) == before + 1


def test_noise_floor_is_measured_against_a_reference_and_else_taken_as_bf16s(kind: str, server: Server) -> None:
    assert scorer_of(kind, server).noise_floor == 0.27
    assert scorer_of(kind, server, Known.of(codec(), own())).noise_floor == pytest.approx(1e-3)
    assert scorer_of(kind, server, noise_floor=0.05).noise_floor == 0.05


def test_noise_of_the_server_raises_its_floor() -> None:
    with served(SONA) as server:
        server.changes = shifted(-0.05)
        assert scorer_of("sona", server, Known.of(codec(), own())).noise_floor > 1.0


def shifted(nats: float) -> Callable[[Any], Any]:
    def change(said: Any) -> Any:
        return {**said, "scores": [{"total_logprob": one["total_logprob"] + nats} for one in said["scores"]]}

    return change


def test_server_of_another_model_is_refused() -> None:
    with served(SONA) as server:
        server.changes = shifted(-0.5)
        with pytest.raises(ScoringError, match=r"disagrees on the known string.*known to be right"):
            scorer_of("sona", server, Known.of(codec(), own())).probe()


def test_server_that_disagrees_with_itself_is_refused() -> None:
    with served(SONA) as server:

        def drift(said: Any) -> Any:
            return shifted(-0.2 * len(server.asked))(said)

        server.changes = drift
        with pytest.raises(ScoringError, match=r"itself, asked otherwise"):
            scorer_of("sona", server).probe()


@pytest.mark.parametrize("kind", ["completions", "chat", "sglang"], indirect=True)
def test_server_with_another_tokenizer_is_refused(kind: str, server: Server) -> None:
    ids = Known.of(codec()).ids.copy()
    ids[5] += 1
    with pytest.raises(ScoringError, match=r"tokenizer mismatch.*from token 5 on"):
        scorer_of(kind, server, Known("One day, a girl went to the park.", ids)).probe()


@pytest.mark.parametrize("kind", ["completions"], indirect=True)
def test_start_token_that_the_server_adds_is_no_mismatch(server: Server) -> None:
    known = Known.of(codec())
    known.check_ids([1, *known.ids.tolist()], "it")
    known.check_ids(known.ids[1:].tolist(), "it")


@pytest.mark.parametrize("kind", ["completions"], indirect=True)
def test_vllm_is_asked_as_documented_and_its_likelier_tokens_are_not_taken(server: Server) -> None:
    one = passage()
    scorer_of("completions", server).score(one.ids, one.ranges)
    asked = server.asked[-1]
    assert asked["prompt"] == one.ids.tolist()
    assert (asked["max_tokens"], asked["prompt_logprobs"], asked["return_token_ids"]) == (1, 0, True)
    assert asked["model"] == "tiny"


@pytest.mark.parametrize("kind", ["sglang"], indirect=True)
def test_sglang_is_asked_from_the_token_before_the_first_scored_one(server: Server) -> None:
    one = passage()
    scorer_of("sglang", server).score(one.ids, one.ranges)
    asked = server.asked[-1]
    assert (asked["return_logprob"], asked["logprob_start_len"]) == (True, 1)
    assert asked["priority"] == -5  # there the larger come first


@pytest.mark.parametrize("kind", ["sona", "chat"], indirect=True)
def test_scoring_is_asked_for_with_a_late_priority(kind: str, server: Server) -> None:
    scorer_of(kind, server).probe()
    assert server.asked[-1]["priority"] == 5


@pytest.mark.parametrize("kind", ["completions"], indirect=True)
def test_priority_is_left_out_where_the_server_refuses_it(server: Server) -> None:
    one = passage()
    scorer_of("completions", server).score(one.ids, one.ranges)
    assert sum("priority" in asked for asked in server.asked) == 1
    assert "priority" not in server.asked[-1]


def test_longest_passage_is_the_servers(kind: str, server: Server) -> None:
    scorer = scorer_of(kind, server)
    assert scorer.max_tokens == (512 if kind == "sona" else 511)
    ids = np.ones(600, dtype=np.int32)
    with pytest.raises(InvalidInputError, match=r"600 tokens.*chunks"):
        scorer.score(ids, [(1, 5)])


def test_backend_that_dies_keeps_what_was_done(kind: str, server: Server) -> None:
    scorer = scorer_of(kind, server, at_once=1)
    scorer.probe()
    server.dies_after = len(server.asked) + 2  # the whole, and one variant
    found = total_log_probs(CONTEXT, codec(), scorer, EACH * 2)
    assert np.isfinite(found.dropped[0]).all()
    assert set(found.failures) == {1, 2, 3}
    assert np.isnan(found.dropped[1:]).all()
    assert all("no answer" in why for why in found.failures.values())
    assert len(server.asked) <= server.dies_after + 3  # it is not asked for all the rest


def test_server_that_is_not_there_is_told_as_that(kind: str) -> None:
    gone = Server({}, url="http://127.0.0.1:9")
    with pytest.raises(ScoringError, match=r"at http://127.0.0.1:9: .*gave no answer"):
        scorer_of(kind, gone).probe()


@pytest.mark.parametrize("bad", [float("nan"), None, -9999.0, 0.5])
def test_value_that_is_no_log_probability_fails_its_passage_alone(bad: float | None) -> None:
    with served(VLLM) as server:
        scorer = scorer_of("completions", server, at_once=1)
        scorer.probe()
        server.changes = spoiled(server, bad)
        found = total_log_probs(CONTEXT, codec(), scorer, EACH)
    assert set(found.failures) == {0}
    assert np.isfinite(found.dropped[1]).all()


@pytest.mark.parametrize(("status", "failed"), [(500, {0}), (429, {0}), (400, {0}), (503, {0, 1}), (502, {0, 1})])
def test_refusal_of_one_passage_is_told_apart_from_a_server_that_is_gone(status: int, failed: set[int]) -> None:
    with served(SONA) as server:
        scorer = scorer_of("sona", server, at_once=1)
        scorer.probe()
        second = len(server.asked) + 2

        def refuse(said: Any) -> Any:
            if len(server.asked) == second:
                raise RefusedError(status, "no")
            return said

        server.changes = refuse
        found = total_log_probs(CONTEXT, codec(), scorer, EACH)
    assert set(found.failures) == failed


def spoiled(server: Server, bad: float | None) -> Callable[[Any], Any]:
    """The second passage from now on has one bad value."""
    second = len(server.asked) + 2

    def change(said: Any) -> Any:
        if len(server.asked) == second:
            for entry in said["choices"][0]["prompt_logprobs"][1:]:
                for one in entry.values():
                    one["logprob"] = bad
        return said

    return change


@pytest.mark.parametrize("kind", ["completions", "sglang"], indirect=True)
def test_values_of_another_text_are_refused(kind: str, server: Server) -> None:
    scorer = scorer_of(kind, server)
    scorer.probe()
    server.changes = cut
    one = passage()
    with pytest.raises(ScoringError, match="other than the"):
        scorer.score(one.ids, one.ranges)


def cut(said: Body) -> Body:
    """As a server does that shortens long prompts."""
    if "choices" in said:
        said["choices"][0]["prompt_token_ids"].pop(0)
    else:
        said["meta_info"]["input_token_logprobs"].pop()
    return said


@pytest.mark.parametrize("kind", ["sglang"], indirect=True)
def test_ids_outside_the_servers_vocabulary_are_a_mismatch(server: Server) -> None:
    ids = passage().ids.copy()
    ids[2] = 20_000
    with pytest.raises(UnknownTokenError, match="tokenizer mismatch"):
        scorer_of("sglang", server).score(ids, [(3, 5)])


def test_chat_that_takes_no_template_is_refused_with_its_words() -> None:
    def refuse(_: Body) -> object:
        raise RefusedError(400, "Chat template is passed with request, but --trust-request-chat-template is not set.")

    with (
        served({**VLLM, "/v1/chat/completions": refuse}) as server,
        pytest.raises(ScoringError, match="trust-request-chat-template"),
    ):
        scorer_of("chat", server).probe()


def test_vllm_model_that_is_not_served_is_refused() -> None:
    with (
        served(VLLM) as server,
        pytest.raises(ScoringError, match="serves tiny, and not other"),
    ):
        scorer_of("completions", server, model="other").probe()


def test_versions_that_differ_are_not_compared() -> None:
    with served(SONA) as server:
        scorer = scorer_of("sona", server, at_once=1)
        scorer.probe()
        second = len(server.asked) + 2
        server.changes = lambda said: {**said, "digest": "e" * 64} if len(server.asked) >= second else said
        found = total_log_probs(CONTEXT, codec(), scorer, EACH)
    assert set(found.failures) == {0, 1}
    assert "the version changed while it scored" in found.failures[0]


def test_a_version_that_changes_between_two_chunks_fails_the_second() -> None:
    with served(SONA) as server:
        scorer = scorer_of("sona", server, at_once=1)
        scorer.probe()
        tokens = len(encode(CONTEXT, codec()).ids)
        second = len(server.asked) + 1 + len(EACH) + 1  # the first chunk, whole and without each, then the next one
        server.changes = lambda said: {**said, "digest": "e" * 64} if len(server.asked) >= second else said
        found = score_memories(CONTEXT, codec(), scorer, chunk_tokens=tokens - 1)
    assert found.version == "v0"
    assert all("the version changed while it scored" in why for why in found.failed.values())
    assert np.isfinite(found.signed[:, 0]).all()
    assert np.isnan(found.signed[:, 1]).all(), "no number of another version stands beside those of the first"


def test_many_tokens_go_in_several_requests_with_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.attribution.score_service.MOST_RANGES", 4)
    one = passage()
    with served(SONA) as server:
        scorer = scorer_of("sona", server)
        scorer.probe()
        before = len(server.asked)
        found = scorer.score(one.ids, [(2, len(one.ids))])
        sent = server.asked[before:]
    assert MOST_RANGES == 4096
    assert len(sent) > 1
    assert all(len(body["score_ranges"]) <= 4 and body["score_ranges"][0] == [2, 3] for body in sent)
    assert np.allclose(found[0], own().score(one.ids, [(2, len(one.ids))])[0], atol=1e-4)


def test_passage_without_ranges_asks_nobody() -> None:
    with served(SONA) as server:
        scorer = scorer_of("sona", server)
        scorer.probe()
        before = len(server.asked)
        assert scorer.score(passage().ids, []) == []
        assert len(server.asked) == before


def test_closing_the_iterator_ends_the_work() -> None:
    with served(SONA) as server:
        scorer = scorer_of("sona", server, at_once=1)
        answers = scorer.score_all([passage()] * 40)
        next(answers)
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert len(server.asked) < 20


def test_failure_of_the_whole_context_is_told_and_nothing_more_is_asked(kind: str, server: Server) -> None:
    scorer = scorer_of(kind, server)
    scorer.probe()
    server.dies_after = before = len(server.asked)
    found = total_log_probs(CONTEXT, codec(), scorer, EACH)
    assert all("no answer" in why for why in found.failures.values())
    assert len(server.asked) == before + 1


def test_variant_without_responses_is_no_other_version() -> None:
    one = passage()
    with served(SONA) as server:
        found = dict(scorer_of("sona", server).score_all([one, Passage(one.ids, ())]))
    assert found[1] == []
