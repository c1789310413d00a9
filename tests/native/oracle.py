"""The suffix index in its plainest form: texts are strings, and every question is a search through all of them."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from regear.ops.noise import ROUNDS, key

FOREIGN, FAINT, WIDE = 0.05, 1e-100, 64
ENDS, CHAIN, OWN, ELSEWHERE, ALIKE, UNKNOWN, COUNTED, SHARP = 4, 12, 6, 2, 20, 35, 0.15, 1.4


def written(tokens):
    """Tokens as a string, one character each."""
    return "".join(map(chr, tokens))


def found(string, text, first=0):
    """How often `string` ends in `text` behind its first `first` characters."""
    at, count = text.find(string, max(0, first - len(string) + 1)), 0
    while at >= 0:
        count += 1
        at = text.find(string, at + 1)
    return count


def gumbel(seed, position, token):
    """`regear.ops.noise.gumbel` in double precision, one value."""
    low, high = (key(seed, position) >> shift & 0xFFFFFFFF for shift in (0, 32))
    x = token ^ low
    for part in (high, 0):
        for shift, factor in ROUNDS:
            x ^= x >> shift
            x = x * (factor or 1) & 0xFFFFFFFF
        x = (x + part) & 0xFFFFFFFF
    return -math.log(-math.log1p(-min(((x & 0x7FFFFFFF) + 0.5) / 2**31, 1 - 2**-24)))


@dataclass(eq=False)
class Generation:
    epoch: int
    prompts: set = field(default_factory=set)
    texts: list = field(default_factory=list)  # [prompt, what came after it]
    told: list = field(default_factory=list)

    def places(self, string):
        """Where a string ends; a place in a prompt counts once, whatever the number of its texts."""
        return sum(found(string, prompt) for prompt in self.prompts) + sum(
            found(string, prompt + text, len(prompt)) for prompt, text in self.texts
        )

    def after(self, string):
        """What follows a string, and how often."""
        tokens = {token for prompt, text in self.texts for token in prompt + text}.union(*self.prompts)
        counts = {token: self.places(string + token) for token in tokens}
        return {token: count for token, count in counts.items() if count}

    def latest(self, string):
        """The number of the last place behind a string that the model's thought is known of."""
        return next((i for i in reversed(range(len(self.told))) if self.told[i].text.endswith(string)), None)

    def recalled(self, text, length):
        """Places like the end of a text, and the ends they share with it: the last behind each end, then the newest
        behind its last token, of which no more is known."""
        found, last = {}, None
        for size in range(length, 0, -1):
            place = self.latest(text[len(text) - size :])
            if place is not None and place != last and len(found) < ENDS:
                found[place] = size
            last = place
        if length:
            behind = [i for i, one in enumerate(self.told) if one.text.endswith(text[-1])]
            for place in behind[::-1][:CHAIN]:
                found.setdefault(place, 1)
        return found

    def ends(self, text):
        """The length of the longest end of a text that something follows."""
        length = 0
        while length < len(text) and self.after(text[len(text) - length - 1 :]):
            length += 1
        return length

    def shorter(self, text, length):
        """The longest end shorter than this one that stands at more places."""
        here = self.places(text[len(text) - length :])
        return next((n for n in range(length - 1, 0, -1) if self.places(text[len(text) - n :]) > here), 0)

    def tokens(self):
        return sum(map(len, self.prompts)) + sum(len(text) for _, text in self.texts)


@dataclass
class Told:
    """A place: what stood before it, what the model thought, the sketch of its state before, who wrote, where last."""

    text: str
    likely: list
    sketch: int
    writer: int
    before: int | None


@dataclass
class Row:
    keys: list
    text: str
    seed: int | None
    since: dict = field(default_factory=dict)  # generation → where the text began for it
    writes: dict = field(default_factory=dict)  # key of a group → (generation, the list in its texts)
    cells: list = field(default_factory=list)
    temperature: float = 1.0
    writer: int = 0
    sketch: int = 0  # of the model's state before the newest token
    places: dict = field(default_factory=dict)  # generation → the text's last place in it


class Oracle:
    def __init__(self, generations=8, decay=0.9, shared=False, levels=2, discount=0.5):
        self.most, self.decay, self.shared, self.levels, self.discount = generations, decay, shared, levels, discount
        self.epoch, self.held, self.rows = 0, defaultdict(list), {}
        self.stood, self.tried = defaultdict(float), defaultdict(float)

    def start(self, number, group, prompt, seed=None, temperature=1.0):
        self.finish(number)
        row = self.rows[number] = Row([group] + [None] * self.shared, written(prompt), seed)
        row.temperature, row.writer = temperature, 0 if number < 0 else 1 + number % 255
        for name in row.keys:
            generations = self.held[name]
            if not generations or generations[-1].epoch < self.epoch:
                self._renew(name)
            for one in generations:
                row.since[one] = 0
            newest = generations[-1]
            newest.prompts.add(row.text)
            newest.texts.append([row.text, ""])
            row.writes[name] = newest, newest.texts[-1]

    def _renew(self, name):
        self.held[name].append(Generation(self.epoch))
        del self.held[name][: -self.most]
        for row in self.rows.values():
            row.since[self.held[name][-1]] = len(row.text)

    def extend(self, number, tokens, thoughts=None):
        if number not in self.rows:
            return
        row = self.rows[number]
        for name in row.keys:
            newest = self.held[name][-1]
            if row.writes[name][0] is not newest:
                newest.texts.append(["", ""])
                row.writes[name] = newest, newest.texts[-1]
            entry = row.writes[name][1]
            sketch = row.sketch
            for token, thought in zip(tokens, thoughts or [None] * len(tokens), strict=True):
                if thought is not None and (before := "".join(entry)):
                    newest.told.append(Told(before, thought[0], sketch, row.writer, row.places.get(newest)))
                    row.places[newest] = len(newest.told) - 1
                sketch = thought[1] if thought else 0
                entry[1] += chr(token)
        if tokens:
            row.sketch = sketch
        row.text += written(tokens)

    def finish(self, number):
        self.rows.pop(number, None)

    def advance(self):
        self.epoch += 1

    def reload(self):
        self.rows.clear()

    def share(self):
        self.rows.clear()
        self.stood.clear()
        self.tried.clear()

    def tokens(self):
        return sum(one.tokens() for generations in self.held.values() for one in generations)

    def groups(self):
        return len(self.held)

    def _read(self, row, more=""):
        """Every generation that a text reads, with its weight, the text as that one knows it, and its own match."""
        for place, name in enumerate(row.keys):
            for one in self.held[name]:
                text = row.text[row.since[one] :] + more
                weight = (FOREIGN if place else 1) * max(self.decay ** (self.epoch - one.epoch), FAINT)
                yield one, weight, text, one.ends(text), place == 0

    def matched(self, number):
        if number not in self.rows:
            return 0
        return self._longest(list(self._read(self.rows[number])))

    @staticmethod
    def _longest(reads):
        own = max((length for *_, length, mine in reads if mine), default=0)
        return own if own > 1 else max(length for *_, length, _ in reads)

    def propose(self, number, most, least):
        if number not in self.rows:
            return [], []
        row, tokens, chances, path = self.rows[number], "", [], 1.0
        row.cells, self.alike = [], {}
        while len(tokens) < most:
            guess = self._guess(row, tokens)
            if guess is None:
                break
            token, sureness, length, told = guess
            cell = told, min(max(length.bit_length() - 1, 0), 8), min(int(sureness * 10), 9)
            path *= (self.stood[cell] + 8 * (cell[2] + 0.5) / 10) / (self.tried[cell] + 8)
            if path < least:
                break
            row.cells.append(cell)
            tokens += token
            chances.append(path)
        return [ord(token) for token in tokens], chances

    def observe(self, number, guessed, kept):
        if number not in self.rows or guessed <= 0 or kept < 0:
            return
        for i, cell in enumerate(self.rows[number].cells[: min(guessed, kept + 1)]):
            self.stood[cell] = 0.999 * self.stood[cell] + (i < kept)
            self.tried[cell] = 0.999 * self.tried[cell] + 1

    def _guess(self, row, more):
        reads = list(self._read(row, more))
        length = longest = self._longest(reads)
        lengths, levels = [length for *_, length, _ in reads], []
        while length and len(levels) < self.levels:
            counts = defaultdict(float)
            for (one, weight, text, *_), known in zip(reads, lengths, strict=True):
                if known >= length:
                    for token, count in one.after(text[len(text) - length :]).items():
                        counts[token] += weight * count
            if len(counts) > WIDE:
                break
            levels.append(counts)
            lengths = [min(length, known) for known in lengths]
            length = max(
                known if known < length else one.shorter(text, known) if known else 0
                for (one, _, text, *_), known in zip(reads, lengths, strict=True)
            )
        shares = self._shares(levels) if levels else {}
        told = self._recall(shares, reads, row, more, COUNTED if levels else 0)
        if not shares:
            return None
        power = SHARP if told else 1
        return *self._choose(shares, row, len(row.text) + len(more), power), longest, told

    def _recall(self, shares, reads, row, more, counted):
        """Mixes in what the model thought at places like this one; whether any is known."""
        found, every, alike = defaultdict(float), 0.0, {}
        for one, weight, text, known, mine in reads:
            for place, length in one.recalled(text, known).items():
                told = one.told[place]
                if more:
                    same = self.alike.get((id(one), told.before), UNKNOWN)
                else:
                    same = 64 - (told.sketch ^ row.sketch).bit_count() if told.sketch and row.sketch else UNKNOWN
                alike[id(one), place] = same
                whose = OWN if told.writer and told.writer == row.writer else 1 if mine else ELSEWHERE
                worth = weight * whose * length**2 * math.exp(ALIKE * same / 64)
                every += worth
                for token, probability in at_temperature(told.likely, row.temperature).items():
                    found[token] += worth * probability
        self.alike = alike
        if not every:
            return False
        for token in [*shares, *found]:
            shares.setdefault(token, 0.0)
        for token in shares:
            shares[token] = (1 - counted) * found[token] / every + counted * shares[token]
        return True

    def _shares(self, levels):
        """Absolute discounting: what every count gives up goes to the next shorter context; the last one's is left."""
        shares = dict.fromkeys(levels[-1], 0.0)
        for counts in reversed(levels):
            total = sum(counts.values())
            given = self.discount * sum(min(1, count) for count in counts.values()) / total
            for token in shares:
                own = counts.get(token, 0)
                shares[token] = given * shares[token] + (own - self.discount * min(1, own)) / total
        return shares

    @staticmethod
    def _choose(shares, row, position, power):
        if row.seed is None:
            best = max(sorted(shares), key=shares.get)
            return best, shares[best]
        noise = {token: gumbel(row.seed, position, ord(token)) for token in shares}
        scores = {
            token: (power * math.log(share) if share else -math.inf) + noise[token] for token, share in shares.items()
        }
        best, *others = sorted(scores, key=lambda token: (-scores[token], token))
        second = scores[others[0]] if others else -math.inf
        left = max(1 - sum(shares.values()), 1e-3)
        unknown = math.exp(-left * math.exp(-math.log(shares[best]) - noise[best]))
        return best, unknown / (1 + math.exp((second - scores[best]) / 0.5))


def at_temperature(thought, temperature):
    """Probabilities of the likeliest tokens [(token, −16 ln p at temperature 1)], none below the last beside them."""
    top = thought[0][1]
    kept = {chr(token): math.exp(-max(level - top, 0) / 16 / temperature) for token, level in thought}
    left = max(0.0, 1 - sum(math.exp(-level / 16) for _, level in thought))
    whole = sum(kept.values()) + left * kept[chr(thought[-1][0])] / math.exp(-thought[-1][1] / 16)
    return {token: value / whole for token, value in kept.items()}
