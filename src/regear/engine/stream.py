"""Many requests through an engine, a few hundred of them in it at a time."""

from collections import deque
from collections.abc import Iterable, Iterator

from regear.engine.local import LocalEngine
from regear.engine.types import Completion, Request

AHEAD = 256  # requests in the engine


def in_order(engine: LocalEngine, requests: Iterable[Request], ahead: int = AHEAD) -> Iterator[Completion]:
    """Answers in the order of the requests, each as soon as it and all before it are there.

    Requests are taken as there is room for them. Closing the iterator early cancels what is under way.
    """
    source, waiting = iter(requests), deque[int]()
    try:
        while True:
            while len(waiting) < ahead and (request := next(source, None)) is not None:
                waiting.append(engine.submit(request))
            if not waiting:
                return
            while waiting[0] not in engine.done:
                engine.step()
            yield engine.done.pop(waiting.popleft())
    finally:
        for number in waiting:
            engine.cancel(number)
            engine.done.pop(number, None)
