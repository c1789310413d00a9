"""JSON over HTTP with one server: attempts, time limits, server-sent events.

The standard library only. A connection carries one exchange; redirects are not followed, since they would carry the key
elsewhere.
"""

import http.client
import json
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from regear.core.errors import BackendError, RecipeError, one_line
from regear.engine.calls import Call, Ended, Lost, Refused, Unreachable

KEY = "REGEAR_API_KEY"
CONNECT = 20.0  # seconds
FIRST, LONGEST, PATIENCE = 0.5, 30.0, 300.0  # seconds between attempts; the last is the most a server may ask for
_NONE = http.client.HTTPMessage()
TRANSIENT = {408, 429, 500, 502, 503, 504, 529}

Json = dict[str, Any]
Result = TypeVar("Result")


def is_url(model: object) -> bool:
    """Whether a model is named by the address of a server."""
    return isinstance(model, str) and re.match(r"https?://", model, re.IGNORECASE) is not None


class Server:
    """One server, by the address before `/v1`.

    Args:
        url: `http://host:port`, with or without a path and `/v1`.
        key: sent as a bearer token; by default what REGEAR_API_KEY holds, if anything. It is shown nowhere.
        timeout: seconds of silence after which an exchange has failed.
        retries: further attempts after lost connections, 429 and passing 5xx, ever longer apart, or as the server asks.

    Raises:
        RecipeError: an address or a key that cannot be one.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 600.0, retries: int = 4) -> None:
        if timeout <= 0 or retries < 0:
            raise RecipeError(f"found timeout={timeout}, retries={retries}; wanted above 0 seconds, at least 0 retries")
        self.timeout, self.retries = timeout, retries
        self.secure, self.host, self.port, self.path = _address(url)
        place = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        self.url = f"{'https' if self.secure else 'http'}://{place}{port}{self.path}"
        self._key = (os.environ.get(KEY, "") if key is None else key).strip()
        if not re.fullmatch(r"[\x21-\x7e]*", self._key):
            raise RecipeError(f"the API key holds a space or a letter that no HTTP header can carry; mend {KEY}")

    def get(self, path: str, call: Call) -> Json:
        """The JSON object at a path; one attempt."""
        with self._exchange("GET", path, None, call) as response:
            return self._object(response.read())

    def post(self, path: str, body: Json, call: Call) -> Json:
        """The JSON object that answers another; one attempt."""
        with self._exchange("POST", path, body, call) as response:
            return self._object(response.read())

    def events(self, path: str, body: Json, call: Call) -> Generator[Json]:
        """The JSON objects of a stream of server-sent events, as they come; one attempt."""
        with self._exchange("POST", path, body, call) as response:
            for line in response:
                name, _, data = line.decode(errors="replace").strip().partition(":")
                if name not in ("", "data", "event", "id", "retry"):
                    raise BackendError(f"{self.url} answered what is not a stream of events: {self._shown(line)}")
                if name != "data":
                    continue
                if data.strip() == "[DONE]":
                    return
                yield self._event(data)
                call.limit(self.timeout)

    def attempts(self, work: Callable[[], Result], call: Call) -> Result:
        """The first result of `work` that is not lost.

        Raises:
            Ended: the call was cancelled, or its time is up.
            BackendError: all attempts were lost.
        """
        attempt = 0
        while True:
            if call.ended:
                raise Ended
            try:
                return work()
            except Lost as lost:
                if attempt == self.retries:
                    raise BackendError(f"{lost}; gave up after {attempt + 1} attempts") from None
                if lost.after is not None and lost.after > PATIENCE:
                    raise BackendError(f"{lost}; it asks to wait {lost.after:.0f} s; try again later") from None
                wait = min(LONGEST, FIRST * 2**attempt) * random.uniform(0.5, 1)
                call.pause(wait if lost.after is None else lost.after)
                attempt += 1

    @contextmanager
    def _exchange(self, method: str, path: str, body: Json | None, call: Call) -> Iterator[http.client.HTTPResponse]:
        connection = self._connected(call)
        try:
            headers = {"Accept": "application/json, text/event-stream", "Connection": "close"}
            headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
            headers |= {"Content-Type": "application/json"} if body is not None else {}
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self.path + path, data, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response.status, response.headers, response.read(1 << 16))
            yield response
        except TimeoutError:
            if call.ended:
                raise Ended from None
            raise BackendError(f"{self.url} was silent for {self.timeout:g} s; allow more, or ask for less") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if call.ended:
                raise Ended from None
            raise Lost(f"the connection with {self.url} was lost ({type(error).__name__})") from None
        finally:
            connection.close()

    def _connected(self, call: Call) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=call.within(CONNECT))
        try:
            connection.connect()
        except ssl.SSLError as error:
            raise BackendError(f"no secure connection with {self.url}: {one_line(error)}") from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Unreachable(f"nothing listens at {self.url} ({why}); start the server, or mend the address") from None
        call.hold(connection.sock)
        call.limit(self.timeout)
        return connection

    def _refusal(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> Exception:
        """What to raise for a status other than 200."""
        said = self._shown(_message(body))
        if status in (401, 403):
            held = f"refuses the API key in {KEY}" if self._key else f"wants an API key; set {KEY}"
            return Refused(f"{self.url} {held} ({status}): {said}", status)
        if status in TRANSIENT:
            return Lost(f"{self.url} answered {status}: {said}", _seconds(headers.get("Retry-After")))
        if status >= 500:
            return BackendError(f"{self.url} answered {status}: {said}")
        if 300 <= status < 400:
            return Refused(
                f"{self.url} is elsewhere ({status}); give the address it names: {headers.get('Location')}", status
            )
        return Refused(f"{self.url} refused the request ({status}): {said}", status)

    def _object(self, body: bytes | str) -> Json:
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BackendError(f"{self.url} answered what is not a JSON object: {self._shown(body)}")
        return found

    def _event(self, data: str) -> Json:
        found = self._object(data)
        if found.get("error"):
            error = found["error"]
            code = error.get("code") if isinstance(error, dict) else None
            raise self._refusal(code if isinstance(code, int) and code >= 400 else 500, _NONE, data.encode())
        return found

    def _shown(self, said: bytes | str) -> str:
        """The beginning of what the server said, on one line and without the key."""
        text = one_line(said.decode(errors="replace") if isinstance(said, bytes) else said)
        return (text.replace(self._key, "…") if self._key else text)[:300] or "nothing"


def _address(url: str) -> tuple[bool, str, int | None, str]:
    """Whether it is secure, the host, the port and the path before `/v1`."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise RecipeError("the server's address cannot be read; wanted http://host:port") from None
    if "@" in parts.netloc:
        raise RecipeError(f"the server's address holds a name or a password; give the key in {KEY}")
    plain = parts.hostname and not parts.query and not parts.fragment and re.fullmatch(r"[\x21-\x7e]*", parts.path)
    if parts.scheme.lower() not in ("http", "https") or not plain:
        raise RecipeError(f"found the address {url!r}; wanted http://host:port or https://host/path")
    return parts.scheme.lower() == "https", str(parts.hostname), port, re.sub(r"(/v1)?/*$", "", parts.path)


def _message(body: bytes) -> str:
    """What went wrong, from the forms that servers use."""
    try:
        found = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _seconds(wanted: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if wanted is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(wanted))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(wanted).timestamp() - time.time())
    return None
