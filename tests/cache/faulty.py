"""A proxy before an S3 server that answers some requests with 503, some late, and breaks some connections."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("503", "slow", "reset")


@contextmanager
def faulty_proxy(server: str, share: float, seed: int = 0) -> Iterator[tuple[str, Counter[str]]]:
    """Yield the URL of the proxy and the count of the faults that it made."""
    upstream = urlsplit(server).netloc
    rng, made, lock = random.Random(seed), Counter[str](), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                fault = rng.choice(FAULTS) if rng.random() < share else "none"
                made[fault] += 1
            if fault == "reset":
                self.close_connection = True
                return
            if fault == "slow":
                time.sleep(0.5)
            if fault == "503":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
                return
            link = http.client.HTTPConnection(upstream)
            link.request(self.command, self.path, body, dict(self.headers))
            answer = link.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
            link.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", made
    finally:
        proxy.shutdown()
        proxy.server_close()
