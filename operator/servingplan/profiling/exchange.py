"""Whom to measure, and what one request showed."""

from __future__ import annotations

from dataclasses import dataclass, field

from yarl import URL


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which server to measure, and as whom.

    Attributes:
        url: Root of the server, with or without ``/v1``.
        model: What requests ask for.
        api_key: Empty for none.
        api_key_env: Name of the environment variable it came from; empty where none was named.
        silence_s: How long the server may send nothing before a request counts as lost.
    """

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    api_key_env: str = ""
    silence_s: float = 120.0

    @property
    def root(self) -> URL:
        """The address without ``/v1``."""
        url = URL(self.url)
        return url.with_path(url.path.rstrip("/").removesuffix("/v1") + "/").with_query(None).with_fragment(None)

    @property
    def shown(self) -> str:
        """The address as it may be printed, without a password."""
        return str(self.root.with_user(None)).rstrip("/")


@dataclass(frozen=True, slots=True)
class Sample:
    """One completed request; times are of the monotonic clock, in seconds.

    Attributes:
        prompt_tokens, output_tokens: As the server counted them.
        cached_tokens: Prompt tokens the server found in its prefix cache.
        token_s: When each token came; fewer than the tokens where the server sends several at once.
    """

    sent_s: float
    first_s: float
    last_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    token_s: tuple[float, ...] = ()

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time between output tokens."""
        return (self.last_s - self.first_s) / max(1, self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Time to the last token."""
        return self.last_s - self.sent_s


@dataclass(frozen=True, slots=True)
class Card:
    """What ``/v1/models`` says of the model.

    Attributes:
        max_model_len: Longest prompt and output together; None where the server does not say.
    """

    name: str
    max_model_len: int | None
