"""The index and the oracle side by side: every operation goes to both, and both must answer alike."""

import numpy as np

from regear._native import Index
from tests.native.oracle import Oracle


def ints(values, kind=np.int32):
    return np.array(values, kind)


def start(index, number, group, prompt, seed=None, temperature=1.0):
    index.start(number, group, ints(prompt), seed, temperature)


def packed(thoughts):
    """What the model thought, ([(token, level), …], sketch) or None a token, as the index takes it."""
    rows = [
        [*(token << 8 | level for token, level in one[0]), one[1] & 0xFFFFFFFF, one[1] >> 32]
        if one
        else [0xFFFFFFFF] * 5
        for one in thoughts
    ]
    return np.array(rows, np.uint32).reshape(-1, 5)


def thoughts(random, count, symbols=6):
    """What a model might have thought before so many tokens; of a third it is not known."""
    return [_thought(random, symbols) if random.random() < 0.7 else None for _ in range(count)]


def _thought(random, symbols):
    tokens, levels = random.permutation(symbols)[:3].tolist(), sorted(random.integers(0, 256, 3).tolist())
    return [*zip(tokens, levels, strict=True)], int(random.integers(0, 2**64, dtype=np.uint64)) * (
        random.random() < 0.8
    )


def propose(index, number, most=8, least=0.0):
    """Tokens and chances for one text."""
    offsets, tokens, chances = index.propose(ints([number], np.int64), ints([most], np.int64), np.array([least]))
    assert offsets.tolist() == [0, len(tokens)]
    assert len(tokens) == len(chances) <= most
    return tokens.tolist(), chances.tolist()


class Pair:
    """`tells`: whether texts come with what a model might have thought at each of their places."""

    def __init__(self, tells=False, **settings):
        self.index, self.oracle = Index(**settings), Oracle(**settings)
        self.random, self.tells = np.random.default_rng(0), tells

    def thought(self, tokens):
        return thoughts(self.random, len(tokens)) if self.tells else [None] * len(tokens)

    def check(self, numbers):
        assert (self.index.tokens, self.index.groups) == (self.oracle.tokens(), self.oracle.groups())
        for number in numbers:
            assert self.index.matched(number) == self.oracle.matched(number)

    def start(self, number, group, prompt, seed):
        temperature = float(self.random.choice([1e-3, 0.3, 1.0, 7.0])) if self.tells else 1.0
        start(self.index, number, group, prompt, seed, temperature)
        self.oracle.start(number, group, prompt, seed, temperature)

    def append(self, number, token):
        self.index.append(number, token)
        self.oracle.extend(number, [token])

    def extend(self, number, tokens):
        told = self.thought(tokens)
        self.index.extend(number, ints(tokens), packed(told) if self.tells else None)
        self.oracle.extend(number, tokens, told)

    def many(self, numbers, tokens):
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        told = [self.thought(part) for part in tokens]
        flat = packed([one for part in told for one in part]) if self.tells else None
        self.index.extend_many(ints(numbers, np.int64), offsets, ints([t for part in tokens for t in part]), flat)
        for number, part, thought in zip(numbers, tokens, told, strict=True):
            self.oracle.extend(number, part, thought)

    def propose(self, numbers, most, least):
        offsets, tokens, chances = self.index.propose(
            ints(numbers, np.int64), ints(most, np.int64), np.array(least, np.float64)
        )
        for i, number in enumerate(numbers):
            wanted, sure = self.oracle.propose(number, most[i], least[i])
            part = slice(offsets[i], offsets[i + 1])
            assert tokens[part].tolist() == wanted
            np.testing.assert_allclose(chances[part], sure, rtol=1e-5)

    def observe(self, numbers, guessed, kept):
        self.index.observe(*(ints(part, np.int64) for part in (numbers, guessed, kept)))
        for one in zip(numbers, guessed, kept, strict=True):
            self.oracle.observe(*one)

    def finish(self, number):
        self.index.finish(number)
        self.oracle.finish(number)

    def advance(self):
        self.index.advance()
        self.oracle.advance()

    def learn(self, group, prompt, tokens):
        told = self.thought(tokens)
        self.index.learn(group, ints(prompt), ints(tokens), packed(told) if self.tells else None)
        self.oracle.start(-1, group, prompt)
        self.oracle.extend(-1, tokens, told)
        self.oracle.finish(-1)

    def share(self):
        """Go on with another index that shares this one's past."""
        fresh = Index(generations=1)
        fresh.share(self.index)
        self.index = fresh
        self.oracle.share()

    def reload(self):
        self.index = Index.load(self.index.save())
        self.oracle.reload()
