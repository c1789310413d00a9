"""The engine of another process: requests to a server that speaks OpenAI's completions, token ids in and out."""

import math
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from regear.core.errors import BackendError, RecipeError
from regear.engine.calls import Call, Ended, Lost
from regear.engine.dialects import PLAIN, WIDE, Answer, completion, served
from regear.engine.http import Json, Server
from regear.engine.types import Completion, FinishReason, Listener, Request

Said = SimpleQueue[tuple[int, list[int] | None]]

PATH = "/v1/completions"


@dataclass
class Job:
    """A request on its way: what has been heard of its answer, and who else hears."""

    request: Request
    call: Call
    hear: Callable[[list[int]], None] | None = None
    answer: Answer | None = None
    heard: list[int] = field(default_factory=list)

    def take(self, start: int, new: list[int]) -> None:
        """Tokens at a place of the answer, which an earlier attempt may have brought already.

        Raises:
            BackendError: they are not what the earlier attempt brought, and a listener has heard it.
        """
        if self.hear is None:
            return
        known = self.heard[start : start + len(new)]
        if new[: len(known)] != known:
            raise BackendError("the server lost the connection, and when asked again answered differently")
        if fresh := new[len(known) :]:
            self.heard += fresh
            self.hear(fresh)


class RemoteEngine:
    """Requests to a server, several at a time.

    Each request is one POST to `/v1/completions`. Answers are streamed where there is a listener or the request has a
    timeout; a cancelled request that was not streamed has no tokens. `acceptance_length` is not known: NaN.

    Args:
        url: `http://host:port`, with or without `/v1`.
        model: the name it is served by; not needed where the server has one model.
        tokenizer: for servers that return no token ids: their text is encoded again, which may give other tokens of
            the same text, without the end token.
        key: of the API; by default what REGEAR_API_KEY holds.
        connections: requests in flight at most.
        timeout: seconds of silence after which a request has failed.
        retries: further attempts after lost connections, 429 and passing 5xx.
        dialect: `vllm`, `sglang`, `regear` or `openai`, which fields are sent by; by default what `/v1/models` tells.

    Raises:
        RecipeError: nothing listens there, the key is refused, or the model is not served.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        tokenizer: Any = None,
        *,
        key: str | None = None,
        connections: int = 32,
        timeout: float = 600.0,
        retries: int = 4,
        dialect: str | None = None,
    ) -> None:
        if connections < 1:
            raise RecipeError(f"found connections={connections}; wanted at least 1")
        if dialect not in (None, PLAIN, *WIDE):
            raise RecipeError(f"found dialect={dialect!r}; wanted one of {', '.join((*WIDE, PLAIN))}")
        self.server, self.tokenizer = Server(url, key, timeout=timeout, retries=retries), tokenizer
        self.model, found = served(self.server, model)
        self.dialect = dialect or found
        self._pool = futures.ThreadPoolExecutor(connections, thread_name_prefix="regear-remote")
        self._jobs: dict[int, tuple[Job, futures.Future[Completion]]] = {}
        self._submitted = 0

    def submit(self, request: Request, hear: Callable[[list[int]], None] | None = None) -> int:
        """Send a request, as soon as a connection is free; its number. `hear` is called in another thread.

        Raises:
            RecipeError: a parameter out of range, or one that the server has no equal of.
        """
        request.check()
        body = completion(request, self.dialect, ids=self.tokenizer is None) | {"model": self.model}
        job = Job(request, Call(request.timeout), hear)
        number = self._submitted
        self._submitted += 1
        self._jobs[number] = job, self._pool.submit(self._complete, job, body)
        return number

    def cancel(self, number: int) -> None:
        """End a request with what has come of it; nothing happens to one that has ended."""
        if number in self._jobs:
            self._jobs[number][0].call.cancel()

    def wait(self, number: int) -> Completion:
        """The answer to a request, once.

        Raises:
            RecipeError: the server refused it. BackendError: the server failed, or could not be reached any more.
        """
        try:
            return self._jobs[number][1].result()
        finally:
            del self._jobs[number]

    def generate(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Completion]:
        """Complete every request; answers in their order. `listener` hears, in this thread, of tokens as they come.

        Raises:
            RecipeError: the server refused a request. BackendError: it failed, or could not be reached any more.
                Either ends all other requests.
        """
        for request in requests:
            completion(request, self.dialect, ids=False)
            request.check()
        said: Said = SimpleQueue()
        numbers: list[int] = []
        try:
            for place, request in enumerate(requests):
                say = partial(_say, said, place)
                numbers.append(self.submit(request, None if listener is None else say))
                self._jobs[numbers[-1]][1].add_done_callback(lambda _, say=say: say(None))  # type: ignore[misc]
            left = len(numbers)
            while left:
                place, new = said.get()
                if new is not None and listener is not None:
                    listener(place, new)
                elif new is None:
                    self._jobs[numbers[place]][1].result()
                    left -= 1
            return [self.wait(number) for number in numbers]
        except BaseException:
            for number in numbers:
                self.cancel(number)
            futures.wait([self._jobs.pop(number)[1] for number in numbers if number in self._jobs])
            raise

    def _complete(self, job: Job, body: Json) -> Completion:
        streamed = job.hear is not None or job.request.timeout is not None
        work = self._streamed if streamed else self._whole
        try:
            answer = self.server.attempts(lambda: work(job, body), job.call)
            reason: FinishReason = "length" if answer.reason == "length" else "stop"
        except Ended:
            reason, answer = job.call.ended or "cancelled", job.answer or Answer(job.request, self.server.url)
        tokens = answer.tokens if answer.has_ids or not answer.text else self._encoded(job, answer)
        return Completion(tokens, reason, math.nan, answer.logprobs if job.request.logprobs else None)

    def _whole(self, job: Job, body: Json) -> Answer:
        answer = Answer(job.request, self.server.url)
        answer.add(self.server.post(PATH, body, job.call))
        if answer.reason is None:
            raise BackendError(f"{self.server.url} answered without saying why the text ended")
        return self._known(answer)

    def _streamed(self, job: Job, body: Json) -> Answer:
        job.answer = answer = Answer(job.request, self.server.url)
        with closing(self.server.events(PATH, body | {"stream": True}, job.call)) as events:
            for event in events:
                start = len(answer.tokens)
                job.take(start, answer.add(event))
                if answer.reason is not None:
                    return self._known(answer)
                if job.call.ended:
                    raise Ended
        raise Lost(f"{self.server.url} broke off its answer")

    def _known(self, answer: Answer) -> Answer:
        """The answer, if its token ids are known or can be had.

        Raises:
            BackendError: the server gave text only, and that is not enough.
        """
        if not answer.has_ids and (self.tokenizer is None or answer.request.logprobs):
            raise BackendError(
                f"{self.server.url} returns no token ids: serve with vLLM, or a new SGLang, or "
                + ("ask for no log-probabilities" if self.tokenizer else "give the engine a tokenizer")
            )
        return answer

    def _encoded(self, job: Job, answer: Answer) -> list[int]:
        tokens = list(self.tokenizer(answer.text, add_special_tokens=False)["input_ids"]) if self.tokenizer else []
        job.take(0, tokens)
        return tokens


def _say(said: Said, place: int, new: list[int] | None) -> None:
    """Tokens of a request, or None: it has ended."""
    said.put((place, new))
