"""A llama-server without a model: answers /completion as one does, with tokens told beforehand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_MS = 0.25


class FakeLlama:
    """On a free port of 127.0.0.1. ``asked`` has the bodies of the requests.

    Each chunk of its answers holds ``chunk_bytes`` bytes, so that events begin and end anywhere.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer = [11, 12, 13]
        self.chunk_bytes = 7
        self.status = 200
        self.closes = False
        """After each answer."""
        self.drops = False
        """The next request that comes on a connection which has had one, without an answer."""
        self.connections = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.answers = 0
                fake.connections += 1

            def do_POST(self) -> None:
                if fake.drops and self.answers > 0:
                    fake.drops = False
                    self.close_connection = True
                    return
                self.answers += 1
                length = int(self.headers["Content-Length"])
                fake.asked.append(json.loads(self.rfile.read(length)))
                if fake.status != 200:
                    self._refuse()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                if fake.closes:
                    self.send_header("Connection", "close")
                self.end_headers()
                body = b"".join(fake._events())
                for at in range(0, len(body), fake.chunk_bytes):
                    part = body[at : at + fake.chunk_bytes]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")

            def _refuse(self) -> None:
                body = b'{"error":{"message":"too long"}}'
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _events(self) -> Iterator[bytes]:
        for token in self.answer:
            text = f'word "{token}" \\ {{'  # what a reader that only looks for brackets gets wrong
            yield self._event({"content": text, "tokens": [token], "stop": False})
        timings = {"cache_n": 5, "prompt_n": 3, "prompt_ms": PROMPT_MS}
        yield self._event({"stop": True, "tokens_evaluated": 8, "timings": timings})

    @staticmethod
    def _event(data: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(data)}\n\n".encode()

    def __enter__(self) -> FakeLlama:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
