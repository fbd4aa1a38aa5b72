"""Who may ask: by which names the server is called, pages of which origins may use it, and who has a token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from bigtransfer.serve.refusals import Refusal


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`, a name or an address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Access:
    """tokens: any of them opens the door; none: it is open. origins: of other pages that may use it from a browser; "*": any.

    hosts: by which names, beside those of this machine, a server bound to `bound` may be called. One that only this machine can reach
    answers to no others even if none are given: a page from elsewhere whose name points here must not read what is for this machine.
    """

    def __init__(
        self, bound: str, *, hosts: Sequence[str] = (), origins: Sequence[str] = (), tokens: Sequence[str] = ()
    ) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._origins = {origin.rstrip("/") for origin in origins}
        self._hosts = {host.lower().rstrip(".") for host in hosts}
        self._any_host = not hosts and not is_local(bound)
        self._guarded = is_local(bound) and not tokens

    @property
    def needs_token(self) -> bool:
        """Whether who asks must have one."""
        return bool(self._tokens)

    def check_host(self, host: str) -> None:
        """Refusal if the server is not to be called `host`, a request's header."""
        name = (_split(f"//{host}").hostname or "").rstrip(".")
        if not self._any_host and name not in self._hosts and not is_local(name):
            raise Refusal(
                421,
                "host",
                f"This server does not go by the name {name[:80]!r}; whoever runs it can add names with --hosts.",
            )

    def check_origin(self, origin: str | None, host: str) -> None:
        """Refusal for a request that a page of another server makes in the browser of somebody who may ask."""
        if not self._guarded or origin is None or self._origins & {"*", origin.rstrip("/")}:
            return
        asking = _split(origin).netloc.lower()
        if not asking or asking != host.lower():
            raise Refusal(
                403,
                "origin",
                "Pages of other servers may not use this one; whoever runs it can allow them with --cors.",
            )

    def check_token(self, authorization: str | None) -> None:
        """Refusal unless the header is "Bearer TOKEN" with one of the tokens, or none is needed."""
        if not self._tokens:
            return
        scheme, _, given = (authorization or "").partition(" ")
        # All are compared, each in constant time: how long it takes says nothing about them.
        same = [hmac.compare_digest(given.strip().encode(), token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(same):
            raise Refusal(401, "token", "A token is needed: send the header `Authorization: Bearer TOKEN`.")


def _split(address: str) -> SplitResult:
    """The parts of an address; all empty if it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
