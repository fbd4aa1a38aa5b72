"""Connections: an address to listen at, clients that are slow or never finish, signals that end it all in good order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bigtransfer.errors import ConfigError
from bigtransfer.serve import log
from bigtransfer.serve.metrics import Metrics
from bigtransfer.serve.refusals import Refusal


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: at a port that is free. ConfigError if that is not to be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.create_server(address[:2], family=family, backlog=512, dualstack_ipv6=False)
    except OSError as error:
        advice = (
            "Choose another with --port, or stop what uses it."
            if error.errno == errno.EADDRINUSE
            else "See --host and --port."
        )
        raise ConfigError(f"Cannot listen at {host}, port {port}: {error.strerror or error}. {advice}") from error
    bound.setblocking(False)
    # Connections inherit it, which asyncio sets only for sockets that it has made itself: an answer's second segment would otherwise wait
    # for the acknowledgement of its first, which clients delay by 40 ms on a connection that stays open.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def address(bound: socket.socket) -> str:
    """Where a browser on this machine finds what listens at that socket."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server:
    """An application at a socket.

    timeout: seconds that a request may take to come and again to be answered; a connection on which none is under way is closed after
    a sixth of it. connections: more than so many are closed at once. metrics: the application's, which count what never reaches it too.
    """

    def __init__(self, app: Any, *, timeout: float, connections: int, metrics: Metrics) -> None:
        idle = timeout / 6

        class Protocol(_Protocol):
            limits = (idle, 3 * timeout, connections)
            counted = metrics

        self._server = _Server(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=int(timeout) + 1,
            )
        )

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self._server.started

    def stop(self) -> None:
        """Take no more connections, answer what is under way, and return from `run`; from any thread."""
        self._server.should_exit = True

    def run(self, bound: socket.socket) -> None:
        """Until `stop`, SIGTERM or SIGINT; a second SIGINT does not wait for what is under way."""
        self._server.run(sockets=[bound])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, except that a signal that has been obeyed does not end the process once more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:
            os._exit(130)  # threads that compute would be waited for


class _Protocol(H11Protocol):
    """uvicorn's, which waits for ever for a request's first lines, for the rest of a body after its answer, and for clients who do not
    read what they are sent."""

    limits: tuple[float, float, int]
    """Seconds without a request under way, seconds of one request, connections."""
    counted: Metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since, self._working = self.loop.time(), False
        if len(self.connections) > self.limits[2]:
            transport.abort()
            return
        self._check()

    def send_400_response(self, msg: str) -> None:
        """As every other refusal is told, though no request is there that the application could refuse."""
        if self.cycle is not None:  # a body that breaks off: nothing that the application still says can be sent
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun, and cannot be taken back
            self.transport.abort()
            return
        refusal, request_id = Refusal(400, "http", f"This is no request of HTTP/1.1: {msg}"), secrets.token_hex(8)
        log.event("request", request_id=request_id, status=refusal.status, refused=refusal.code)
        self.counted.requests.labels("none", str(refusal.status)).inc()
        self.counted.refusals.labels(refusal.code).inc()
        body = json.dumps(refusal.problem(request_id)).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-ID", request_id),
            ("Connection", "close"),
        ]
        for event in (
            h11.Response(status_code=refusal.status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        self._since, self._working = self.loop.time(), False
        super().on_response_complete()

    def _check(self) -> None:
        if self.transport.is_closing():
            return
        idle, longest, _ = self.limits
        working = self.cycle is not None and not self.cycle.response_complete
        if working and not self._working:
            self._since, self._working = self.loop.time(), True
        if self.loop.time() - self._since >= (longest if working else idle):
            self.transport.abort()
        else:
            self.loop.call_later(min(1.0, idle / 4), self._check)
