"""Who scores for ``sona score``: the model in this process, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from sona.checks import Int32
from sona.config import ServeConfig
from sona.errors import ConfigError, InvalidInputError, ModelError
from sona.http_client import Secret, check_url
from sona.service.bearer import secret_for

if TYPE_CHECKING:
    from sona.attribution.context import Context
    from sona.attribution.scorer import Scorer
    from sona.attribution.tokens import Codec


@dataclass(frozen=True)
class ServerOptions:
    """Where to ask, as options of a command."""

    url: Annotated[
        str | None,
        Parameter(
            name="--server", help="Address of a server that scores; of --model only the tokenizer is loaded then."
        ),
    ] = None
    """None: nowhere."""
    kind: Annotated[
        Literal["sona", "sglang", "vllm", "vllm-chat"], Parameter(name="--kind", help="What the server is.")
    ] = "sona"
    model: Annotated[
        str | None, Parameter(name="--server-model", help="The model's or adapter's name on a vLLM server.")
    ] = None
    """None: the first that it serves."""
    max_tokens: Annotated[
        int | None, Parameter(name="--max-tokens", help="Longest text that the server takes, where it doesn't say.")
    ] = None
    token_file: Annotated[
        Path | None,
        Parameter(
            name="--token-file",
            help="File with the server's token; else, of a sona server on this machine, the store's.",
        ),
    ] = None

    def check(self) -> None:
        """Raises InvalidInputError or ConfigError where they do not go together."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInputError(f"--max-tokens {self.max_tokens}; 1 or more is allowed")
        given = {"--server-model": self.model, "--max-tokens": self.max_tokens, "--token-file": self.token_file}
        for name, value in given.items():
            if self.url is None and value is not None:
                raise ConfigError(f"{name} without --server: name the server that it is for")
        if self.model is not None and not self.kind.startswith("vllm"):
            raise ConfigError(f"--server-model with --kind {self.kind}: only a vLLM server is asked for a model")


NO_SERVER = ServerOptions()


class Opened(NamedTuple):
    """Who scores."""

    codec: Codec
    scorer: Scorer
    name: str
    """For a person."""


@contextmanager
def local_scorer(model: str, settings: ServeConfig, store: Path | None, context: Context) -> Iterator[Opened]:
    """The model in this process; with a store, as its version in force answers the
    context's question. The store is only read.
    """
    from sona.loops.version_files import read_served
    from sona.serving.resolve import resolve
    from sona.storage.store import Store
    from sona.storage.versions import Versions

    resolve(model)  # a wrong name is said at once, before transformers takes its seconds to import
    from sona.asked_model import AskedModel
    from sona.attribution.leave_one_out import LeaveOneOut
    from sona.serving.local import LocalModel

    served = LocalModel(model, settings)
    try:
        by = model
        if store is not None:
            with Store.open(store, read_only=True) as opened:
                version, known = opened.current(), opened.read_state("model")
            if known is not None and known.decode() != served.fingerprint:
                raise ModelError(f"{store} was recorded with another base model than {model!r}; score with that one")
            served.swap(version.id, read_served(Versions(store), version.id))
            by = f"{model}, version {version.id}"
        asked = AskedModel(served)
        with asked.asked(context):
            yield Opened(served, LeaveOneOut(asked), by)
    finally:
        served.close()


def server_scorer(model: str, settings: ServeConfig, server: ServerOptions, store: Path | None) -> Opened:
    """A server elsewhere; its first use tries it on a known string.

    Raises:
        ConfigError: of the address or the token.
        ModelError: the model's tokenizer can't be loaded.
    """
    from sona.attribution.known import Known
    from sona.attribution.score_service import ScoreService
    from sona.attribution.sglang import SGLang
    from sona.attribution.vllm import VLLMChat, VLLMCompletions

    assert server.url is not None
    check_url(server.url)
    common: dict[str, Any] = {"secret": _secret(server, store), "max_tokens": server.max_tokens}
    from sona.serving.chat import ChatCodec
    from sona.serving.loading import load_tokenizer

    tokenizer, own = load_tokenizer(model)
    codec = ChatCodec(tokenizer, None)
    known = Known.of(codec)
    scorer: Scorer
    if server.kind == "sona":  # it does not say how long a text it takes
        most = settings.max_context_tokens
        scorer = ScoreService(
            server.url, known, **{**common, "max_tokens": server.max_tokens or min(own or most, most)}
        )
    elif server.kind == "sglang":
        scorer = SGLang(server.url, known, **common)
    elif server.kind == "vllm":
        scorer = VLLMCompletions(server.url, known, model=server.model, **common)
    else:

        def text_of(ids: Int32) -> str:
            return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))

        scorer = VLLMChat(server.url, known, text_of, model=server.model, **common)
    return Opened(codec, scorer, scorer.name)


def _secret(server: ServerOptions, store: Path | None) -> Secret | None:
    """The token to show; of servers that are no sona the store's is none of their business."""
    assert server.url is not None
    return secret_for(server.url, store if server.kind == "sona" else None, server.token_file)
