"""What becomes of a call to a server: it may be lost, refused, cut off from another thread, or run out of time."""

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

from regear.core.errors import RecipeError


class Lost(Exception):
    """A failure that another attempt may mend; `after` is how many seconds the server asks for."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Unreachable(Lost):
    """Nothing answers at the address."""


class Ended(Exception):
    """The call was cancelled, or its time is up."""


class Refused(RecipeError):
    """The server understood and declined; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Call:
    """One request of ours, over all its attempts; `seconds` are all it may take."""

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._cancelled = threading.Event()
        self._socket: socket.socket | None = None

    @property
    def ended(self) -> Literal["cancelled", "timeout"] | None:
        """Why it is over, if it is."""
        if self._cancelled.is_set():
            return "cancelled"
        return "timeout" if self.deadline is not None and time.monotonic() >= self.deadline else None

    def cancel(self) -> None:
        """End it, from any thread; whoever reads from the server is woken."""
        self._cancelled.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def hold(self, connected: socket.socket) -> None:
        """This is the connection to close on `cancel`."""
        self._socket = connected
        if self._cancelled.is_set():
            self.cancel()

    def limit(self, seconds: float) -> None:
        """Let the next read from the server take so many seconds."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.settimeout(self.within(seconds))

    def within(self, seconds: float) -> float:
        """So many seconds, or what is left of the call's own."""
        return seconds if self.deadline is None else max(0.001, min(seconds, self.deadline - time.monotonic()))

    def pause(self, seconds: float) -> None:
        """Wait, unless the call ends first."""
        self._cancelled.wait(self.within(seconds))
