"""What engines that share a past are told: texts in one order, and what all texts before them left, as plain bytes."""

import json
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from regear.core.errors import DataError, RecipeError
from regear.engine.drafters.base import Tokens
from regear.engine.drafters.suffix import SuffixDrafter

MAGIC = b"regear past 1\n"
SUM = 4  # bytes of checksum
OVERHEAD = 512  # bytes of a delta beside its tokens, at most
LONGEST = 1 << 16  # characters of a group's name


@dataclass(frozen=True)
class Delta:
    """A text that has ended. `advance`: it is the first of its version, a new epoch begins before it."""

    number: int
    version: int
    advance: bool
    group: str | int | None
    prompt: Tokens
    ids: Tokens

    @property
    def cost(self) -> int:
        """Bytes that it takes, about."""
        return OVERHEAD + len(str(self.group)) + self.prompt.nbytes + self.ids.nbytes

    def apply(self, drafter: SuffixDrafter) -> None:
        """Learn it."""
        if self.advance:
            drafter.advance()
        drafter.learn(self.prompt, self.ids, self.group)

    def encode(self) -> bytes:
        """As bytes."""
        head = [self.number, self.version, self.advance, self.group, len(self.prompt)]
        tokens = np.concatenate([self.prompt, self.ids]).astype("<i4")
        return json.dumps(head).encode() + b"\n" + tokens.tobytes()

    @classmethod
    def decode(cls, content: bytes) -> "Delta":
        """From bytes whose sum was right."""
        head, _, body = content.partition(b"\n")
        number, version, advance, group, prompt = json.loads(head)
        tokens = np.frombuffer(body, "<i4").astype(np.int32)
        return cls(number, version, advance, group, tokens[:prompt], tokens[prompt:])


@dataclass(frozen=True)
class Snapshot:
    """What the texts up to `number` left in an index, and the versions last seen."""

    number: int
    versions: tuple[int, ...]
    drafter: SuffixDrafter

    def encode(self) -> bytes:
        """As bytes, with a checksum."""
        body = json.dumps([self.number, self.versions]).encode() + b"\n" + self.drafter.state()
        return MAGIC + zlib.crc32(body).to_bytes(SUM, "little") + body

    @classmethod
    def decode(cls, content: bytes) -> "Snapshot":
        """From bytes.

        Raises:
            DataError: they are damaged, or are no snapshot.
        """
        try:
            at = len(MAGIC) + SUM
            if content[: len(MAGIC)] != MAGIC:
                raise ValueError(f"it begins with {content[:16]!r}")
            if zlib.crc32(memoryview(content)[at:]).to_bytes(SUM, "little") != content[len(MAGIC) : at]:
                raise ValueError("its checksum is wrong")
            end = content.index(b"\n", at)
            number, versions = json.loads(content[at:end])
            return cls(number, tuple(versions), SuffixDrafter.of_state(content[end + 1 :]))
        except (ValueError, TypeError) as error:
            raise DataError(f"this is no snapshot of a past that can be read: {error}; take another") from None


def checked_version(version: int) -> int:
    """A version that can be written down.

    Raises:
        RecipeError: no whole number from 0 to 2⁶³ - 1.
    """
    if not isinstance(version, Integral) or isinstance(version, bool) or not 0 <= version < 1 << 63:
        raise RecipeError(f"version: found {version!r}; wanted a whole number from 0 on")
    return int(version)


def checked_group(group: Hashable) -> str | int | None:
    """A group that can be written down.

    Raises:
        RecipeError: it is something else, or too long.
    """
    if isinstance(group, Integral) and not isinstance(group, bool):
        if not -(1 << 63) <= group < 1 << 63:
            raise RecipeError("group: found a whole number beyond 64 bits; wanted one within, or text")
        return int(group)
    if group is not None and not isinstance(group, str | bool):
        raise RecipeError(f"group: found a {type(group).__name__}; wanted text, a whole number or None")
    if isinstance(group, str):
        if len(group) > LONGEST:
            raise RecipeError(f"group: found {len(group)} characters; wanted at most {LONGEST}")
        try:
            group.encode()
        except UnicodeEncodeError:
            raise RecipeError(f"group: found {group[:60]!a}; wanted text that UTF-8 can hold") from None
        return str.__str__(group)  # of whatever kind of text: written down and read again it is plain
    return group


def checked_tokens(name: str, tokens: Sequence[int] | Tokens) -> Tokens:
    """Token ids as an array of their own.

    Raises:
        RecipeError: not a list of whole numbers from 0 to 2³¹ - 1.
    """
    try:
        found = np.array(tokens)
    except (ValueError, OverflowError):
        found = np.array(None)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise RecipeError(f"{name}: wanted a list of token ids, found {str(tokens)[:60]}")
    if found.size and not 0 <= found.min() <= found.max() < 1 << 31:
        raise RecipeError(f"{name}: found ids from {found.min()} to {found.max()}; wanted 0 to {(1 << 31) - 1}")
    return found.astype(np.int32)
