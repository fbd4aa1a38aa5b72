"""A stand-in for `benchmarks.gpu_worker`: processes that answer, die and hang, without importing torch."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any


def serve(connection: Connection, log: str, room: Any, nice: int) -> None:
    while True:
        name, arguments = connection.recv()
        if name == "die":
            os._exit(3)
        if name == "hang":
            time.sleep(600)
        connection.send({"error": "ValueError: no"} if name == "fail" else {"result": arguments["value"]})
