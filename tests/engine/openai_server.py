"""A small server of OpenAI's completions on a local engine, with faults that a test asks for, one a POST, in order."""

import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from regear.engine.local import LocalEngine
from regear.engine.types import Request

FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "presence_penalty"}
FIELDS |= {"frequency_penalty", "stream", "messages"}  # what OpenAI's own servers know


class SharedEngine(LocalEngine):
    """A local engine that threads take turns with."""

    def __init__(self, *words):
        super().__init__(*words)
        self.turn = threading.Lock()

    def generate(self, requests, listener=None):
        with self.turn:
            return super().generate(requests, listener)


class Endpoint(ThreadingHTTPServer):
    """`faults` holds (name, argument) pairs; `seen` the bodies that came; `most` how many were in flight at once."""

    daemon_threads = True

    def __init__(self, engine, tokenizer, owner="regear", names=("tiny",), key=None, ids=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.tokenizer, self.owner, self.names, self.key, self.ids = (
            engine, tokenizer, owner, names, key, ids,
        )  # fmt: skip
        self.faults, self.seen, self.times = deque(), [], []
        self.flight, self.now, self.most, self.left = threading.Lock(), 0, 0, 0
        self.pause = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that hangs up is no error here."""
        self.left += 1


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def send(self, status, body, kind="application/json", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        said = self.headers.get("Authorization", "")
        if self.server.key is None or said == f"Bearer {self.server.key}":
            return True
        self.send(401, {"error": {"message": f"Incorrect API key provided: {said.removeprefix('Bearer ')}"}})
        return False

    def do_GET(self):
        if self.allowed():
            listed = [{"id": name, "object": "model", "owned_by": self.server.owner} for name in self.server.names]
            self.send(200, {"object": "list", "data": listed})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return None
        server = self.server
        with server.flight:
            server.seen.append(body)
            server.times.append(time.monotonic())
            fault, argument = server.faults.popleft() if server.faults else (None, None)
        if fault == "status":
            status, headers, message = argument
            return self.send(status, {"error": {"message": message, "code": status}}, **headers)
        if fault == "garbage":
            return self.send(200, argument)
        if fault == "slow":
            time.sleep(argument)
        if server.owner == "openai" and (unknown := set(body) - FIELDS):
            return self.send(400, {"error": {"message": f"Unrecognized request arguments: {sorted(unknown)}"}})
        request = as_request(body, server.tokenizer)
        if not body.get("stream"):
            return self.send(200, self.whole(request, body))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        return self.stream(request, body, fault, argument)

    def choice(self, tokens, body, logprobs=None, reason=None):
        text = self.server.tokenizer.decode(tokens, skip_special_tokens=True)
        found = {"index": 0, "finish_reason": reason}
        found |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        if body.get("return_token_ids") and self.server.ids:
            found["token_ids"] = tokens
        if logprobs is not None:
            found["logprobs"] = {"token_logprobs": logprobs}
        return found

    def whole(self, request, body):
        server = self.server
        with server.flight:
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(server.pause)
        (done,) = server.engine.generate([request])
        with server.flight:
            server.now -= 1
        choice = self.choice(done.token_ids, body, done.logprobs, done.finish_reason)
        return {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": len(done.token_ids)}}

    def event(self, body):
        self.wfile.write(f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode())

    def stream(self, request, body, fault, argument):
        """The tokens one by one; `drop` hangs up after so many, `stall` falls silent after (so many, for seconds)."""
        if fault == "change":
            request = as_request(body | {"seed": argument, "temperature": 5.0}, self.server.tokenizer)
        (done,) = self.server.engine.generate([request])
        self.wfile.write(b": hello\n\n")
        for place, token in enumerate(done.token_ids):
            if fault == "drop" and place == argument:
                return
            if fault == "stall" and place == argument[0]:
                time.sleep(argument[1])
            if fault == "error" and place == argument:
                self.event({"error": {"message": "the engine died", "code": 500}})
                return
            if fault == "noise" and place == argument:
                self.event("{not json")
                return
            time.sleep(self.server.pause)
            logprobs = None if done.logprobs is None else [done.logprobs[place]]
            self.event({"choices": [self.choice([token], body, logprobs)]})
        self.event({"choices": [self.choice([], body, [] if request.logprobs else None, done.finish_reason)]})
        self.event({"choices": [], "usage": {"completion_tokens": len(done.token_ids)}})
        self.event("[DONE]")


def as_request(body, tokenizer):
    """The request that a body stands for; a server of its own ends every text at its end token."""
    prompt = body.get("prompt")
    if "messages" in body:
        prompt = "".join(f"[{message['content']}]" for message in body["messages"])
    stops = list(body.get("stop_token_ids", [])) + ([] if body.get("ignore_eos") else [tokenizer.eos_token_id])
    return Request(
        tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt,
        body["max_tokens"],
        body["temperature"],
        body["top_p"],
        body.get("seed", 0),
        stops,
        max(0, body.get("top_k", 0)),
        body.get("min_p", 0.0),
        body.get("stop", ()),
        body.get("repetition_penalty", 1.0),
        body["presence_penalty"],
        body["frequency_penalty"],
        "logprobs" in body,
    )


@contextmanager
def serving(engine, tokenizer, **settings):
    """An `Endpoint` that answers until the block ends."""
    server = Endpoint(engine, tokenizer, **settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
