"""From a prompt to a reply: who answers it, under which version, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial

from sona.checks import Int32
from sona.ports import FastRow, FastWeights
from sona.serving.chat import ChatCodec
from sona.serving.features import PromptReader
from sona.serving.generation import Sampling
from sona.serving.request import Answering, OnToken, Request, Voice
from sona.serving.scheduler import Scheduler
from sona.serving.versions import ServedVersion, ServedVersions
from sona.types import Reply, Token


class Answers:
    """Has them written by a scheduler; safe to call from several threads. Prompts are checked by its owner."""

    def __init__(
        self,
        scheduler: Scheduler,
        versions: ServedVersions,
        reader: PromptReader,
        codec: ChatCodec,
        stop_ids: Sequence[int],
    ) -> None:
        self._scheduler, self._versions, self._reader, self._codec = scheduler, versions, reader, codec
        self.stop_ids = tuple(stop_ids)
        self.fast_weights: FastWeights | None = None

    def begin(
        self,
        prompt: Int32,
        sampling: Sampling,
        room: int,
        *,
        logprobs: int | None = None,
        on_token: OnToken | None = None,
        version: ServedVersion | None = None,
        voice: Voice | None = None,
        question: Int32 | None = None,
        wait: bool = False,
    ) -> Answering:
        """Have one answer written, of ``room`` tokens at most, by ``version`` (None: the one in force) and ``voice``
        (None: found when it is its turn, by ``question`` or else the prompt). Raises as :meth:`Scheduler.submit`.
        """
        version = self._versions.take(version)
        asked = prompt if question is None else question
        request = Request(
            prompt=prompt,
            sampling=replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room)),
            logprobs=logprobs,
            stop_ids=frozenset(self.stop_ids),
            find_voice=lambda: voice or self._voices(version, [asked])[0],
            make_reply=partial(self._reply, prompt, version.id),
            release=partial(self._versions.release, version),
            on_token=on_token,
            version=version.id,
        )
        try:
            return self._scheduler.submit(request, wait=wait)
        except BaseException:
            request.forget()
            raise

    def write_all(self, prompts: Sequence[Int32], sampling: Sampling, rooms: Sequence[int]) -> list[Reply]:
        """All by one version; their voices are found together."""
        if not prompts:
            return []
        with self._versions.held() as version:
            voices = self._voices(version, prompts)
            return awaited(
                self.begin(prompt, sampling, room, version=version, voice=voice, wait=True)
                for prompt, room, voice in zip(prompts, rooms, voices, strict=True)
            )

    def _voices(self, version: ServedVersion, prompts: Sequence[Int32]) -> list[Voice]:
        """Who answers each prompt."""
        read = cache(lambda: self._reader.read(prompts))
        names = version.route(len(prompts), lambda: read().features)
        adapters = [None if name is None else version.adapters[name] for name in names]
        fast: list[FastRow | None] = [None] * len(prompts)
        if self.fast_weights:
            keys = [None if adapter is None else adapter.key for adapter in adapters]
            fast = self.fast_weights.rows(version.id, keys, read().embeddings)
        return [Voice(*one) for one in zip(names, adapters, fast, strict=True)]

    def _reply(self, prompt: Int32, version: str, voice: Voice, tokens: Sequence[Token]) -> Reply:
        ids = [token.id for token in tokens]
        stopped = bool(ids) and ids[-1] in self.stop_ids
        return Reply(
            text=self._codec.decode(ids[:-1] if stopped else ids),
            token_ids=tuple(ids),
            prompt_ids=tuple(prompt.tolist()),
            version=version,
            adapter=voice.name,
            micro=None if voice.fast is None else voice.fast.pattern,
            finish_reason="stop" if stopped else "length",
            tokens=tuple(tokens) if tokens and tokens[0].logprob is not None else (),
        )


def awaited(answers: Iterable[Answering]) -> list[Reply]:
    """All of them, in their order; whatever keeps one of them, or the caller, ends those that are still written."""
    begun: list[Answering] = []
    try:
        begun.extend(answers)
        return [answer.result() for answer in begun]
    except BaseException:
        for answer in begun:
            answer.cancel()
        raise
