"""A small HTTP server on loopback that answers as the Hugging Face hub does, for the real client to talk
to."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server does, changed by the tests: `answer` is found, changed, cut, silent or an HTTP
    status."""

    def __init__(self):
        self.answer = "found"
        self.error_code = None
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.released = threading.Event()


@contextmanager
def serving():
    """Start the server; yields (Hub, its address)."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            return

        def do_HEAD(self):
            self.reply(with_body=False)

        def do_GET(self):
            self.reply(with_body=True)

        def reply(self, with_body):
            hub.requests.append((self.command, self.path))
            hub.tokens.add(self.headers.get("Authorization", ""))
            if hub.answer == "silent":
                hub.released.wait(30)
                self.close_connection = True
                return
            if isinstance(hub.answer, int):
                self.send_response(hub.answer)
                if hub.error_code:
                    self.send_header("X-Error-Code", hub.error_code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            if self.headers.get("Range", "").startswith("bytes="):
                start = int(self.headers["Range"][6:].split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(CONTENT) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            if with_body:
                body = CONTENT[start:]
                if hub.answer == "changed":
                    body = bytes(len(body))
                if hub.answer == "cut":
                    body = body[: len(body) // 2]
                self.wfile.write(body)
                if hub.answer == "cut":
                    self.wfile.flush()
                    self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
