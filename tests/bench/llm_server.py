"""A tiny server with OpenAI's API for tests: it streams words with known pauses, and can be made to misbehave."""

import http.server
import json
import threading
import time


class FakeLlmServer:
    """Streams `max_tokens` words `gap_s` apart, the first after `first_s`. As a context manager it runs.

    `bodies`: every request's JSON. `refuse`: fields it answers with 400. `fail`: request number → what goes wrong
    ("500", "error" inside the stream, "cut", "silence", "junk"). `usage` False: it counts nothing.
    """

    def __init__(
        self, first_s=0.002, gap_s=0.0005, refuse=(), fail=None, usage=True, chat_only=False, models=("tiny",)
    ):
        self.first_s, self.gap_s, self.usage, self.chat_only = first_s, gap_s, usage, chat_only
        self.refuse, self.fail, self.models = set(refuse), fail or {}, models
        self.tokens_per_word, self.template_tokens = 2, 7
        self.bodies, self.headers, self.lock = [], [], threading.Lock()

    def __enter__(self):
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads, self._server.owner = True, self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def prompt_tokens(self, body):
        if "prompt" in body:
            return len(body["prompt"].split()) * self.tokens_per_word
        words = sum(len(message["content"].split()) for message in body["messages"])
        return words * self.tokens_per_word + self.template_tokens


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        data = [{"id": name, "object": "model"} for name in self.server.owner.models]
        self.answer(200 if self.path == "/v1/models" else 404, {"data": data})

    def do_POST(self):
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with owner.lock:
            number = len(owner.bodies)
            owner.bodies.append(body)
            owner.headers.append(dict(self.headers))
        chat = self.path.endswith("/chat/completions")
        if not chat and (owner.chat_only or self.path != "/v1/completions"):
            return self.answer(404, {"error": {"message": "no such path"}})
        if unknown := sorted(owner.refuse & set(body)):
            return self.answer(400, {"error": {"message": f"unknown field {unknown[0]}"}})
        fault = owner.fail.get(number)
        if fault == "500":
            return self.answer(500, {"error": {"message": "broken"}})
        self.stream(owner, body, chat, fault)
        return None

    def stream(self, owner, body, chat, fault):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        count = body.get("max_tokens", body.get("max_completion_tokens"))
        if chat:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for n in range(count if fault != "silence" else 0):
            time.sleep(owner.gap_s if n else owner.first_s)
            if n == 1 and fault in ("error", "cut", "junk"):
                if fault != "cut":
                    self.event({"error": {"message": "out of memory"}} if fault == "error" else None)
                return self.chunk(b"")
            text = {"delta": {"content": "word "}} if chat else {"text": "word "}
            self.event({"choices": [{"index": 0, "finish_reason": None, **text}]})
        self.event({"choices": [{"index": 0, "finish_reason": "length", **({"delta": {}} if chat else {"text": ""})}]})
        if owner.usage and body.get("stream_options"):
            asked = owner.prompt_tokens(body)
            details = {"cached_tokens": asked // 2}
            self.event(
                {
                    "choices": [],
                    "usage": {"prompt_tokens": asked, "completion_tokens": count, "prompt_tokens_details": details},
                }
            )
        self.chunk(b"data: [DONE]\n\n")
        return self.chunk(b"")

    def event(self, value):
        self.chunk(b"data: " + (json.dumps(value).encode() if value is not None else b"{]") + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass
