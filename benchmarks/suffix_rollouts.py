"""Rollouts of the same prompts, epoch after epoch: does what was written before make the next epoch shorter?

Every prompt several times an epoch with fresh noise. The first epochs are written plainly, once; the suffix drafter
then learns them. Acceptance lengths of every epoch are counted by replay: guesses change no text, so what would have
stood is known from the plain texts. The last epoch is timed for each number of slots: plain, n-grams, the suffix index
with as many guesses as it has, and with the budget. Correctness gate: every timed run writes the plain texts but for
near-ties. Floor: the seconds that the products of the plain texts' tokens alone take at the rate measured here.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish
from engine_common import Run, engine_parser, load_stock, numbers, partings, verdict
from engine_floor import floor, rates
from engine_prompts import problems, questions, renamings

from regear.cli.output import grid
from regear.engine.budget.policy import Budget
from regear.engine.drafters.base import NOTHING, Drafter, Outcome, Text
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.drafters.payoff import Payoff
from regear.engine.drafters.suffix import SuffixDrafter
from regear.engine.local import Limits, LocalEngine
from regear.engine.text import stop_tokens
from regear.engine.types import Request
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer
from regear.ops.noise import key

GUESSES = 16  # of a text and step, for every drafter


@dataclass
class Epoch:
    """The texts of an epoch, and what the model thought before each of their tokens."""

    tokens: list[list[int]]
    thoughts: list[Any]


class Listener:
    """Guesses nothing, and keeps what the model thought."""

    wants_thoughts = True

    def __init__(self) -> None:
        self.told: dict[int, list[Any]] = defaultdict(list)

    def propose(self, texts: Any, most: Any) -> list[Any]:
        return [NOTHING] * len(texts)

    def observe(self, outcomes: Any) -> None:
        for outcome in outcomes:
            self.told[outcome.number].append(outcome.thoughts)

    def finish(self, number: int, tokens: Any, prompt: int, group: Any) -> None:
        self.told[number] = [np.concatenate(self.told[number])]


class Rollouts:
    """Requests of one epoch: text i is sample i % samples of prompt i // samples."""

    def __init__(self, arguments: Any, tokenizer: Any, stock: Any) -> None:
        make = {"questions": questions, "problems": problems, "renamings": renamings}[arguments.prompts_of]
        self.prompts = [ids for ids in make(tokenizer, arguments.prompts) for _ in range(arguments.samples)]
        self.samples, self.cap, self.temperature = arguments.samples, arguments.tokens, arguments.temperature
        self.seed, self.stops = arguments.seed, stop_tokens(stock)

    def requests(self, epoch: int) -> list[Request]:
        return [
            Request(prompt, self.cap, self.temperature, seed=key(key(self.seed, epoch), i), stop_tokens=self.stops,
                    group=i // self.samples)
            for i, prompt in enumerate(self.prompts)
        ]  # fmt: skip

    def run(self, model: Any, epoch: int, slots: int, drafter: Drafter | None) -> Run:
        engine = LocalEngine(model, drafter=drafter, draft=GUESSES, limits=Limits(rows=slots))
        times: list[list[float]] = [[] for _ in self.prompts]
        began = time.perf_counter()
        done = engine.generate(self.requests(epoch), lambda i, new: times[i].extend([time.perf_counter()] * len(new)))
        forwards = sum(len(one.token_ids) / one.acceptance_length for one in done)
        return Run([one.token_ids for one in done], times, began, forwards)


def written(rollouts: Rollouts, model: Any, epochs: int, kept: Path | None) -> list[Epoch]:
    """The texts of every epoch, plainly; from a file if an earlier run left them there."""
    if kept is not None and kept.exists():
        with np.load(kept, allow_pickle=True) as held:
            return [Epoch(list(tokens), list(thoughts)) for tokens, thoughts in held["epochs"]]
    found = []
    for epoch in range(epochs):
        print(f"epoch {epoch + 1}, plainly", file=sys.stderr)
        listener = Listener()
        run = rollouts.run(model, epoch, len(rollouts.prompts), listener)
        found.append(Epoch(run.tokens, [listener.told[i][0] for i in range(len(run.tokens))]))
    if kept is not None:
        held = np.empty((epochs, 2, len(rollouts.prompts)), object)
        for row, epoch in zip(held, found, strict=True):
            row[0, :], row[1, :] = _objects(epoch.tokens), _objects(epoch.thoughts)
        np.savez(kept, epochs=held)
    return found


def _objects(values: list[Any]) -> Any:
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found


def learned(rollouts: Rollouts, epochs: list[Epoch], told: bool = True) -> SuffixDrafter:
    """A drafter that has seen these epochs; `told`: and what the model thought."""
    drafter = SuffixDrafter()
    for epoch in epochs:
        drafter.advance()
        rows = zip(rollouts.prompts, epoch.tokens, epoch.thoughts, strict=True)
        for i, (prompt, tokens, thoughts) in enumerate(rows):
            drafter.learn(
                np.array(prompt, np.int32),
                np.array(tokens, np.int32),
                i // rollouts.samples,
                thoughts if told else None,
            )
    drafter.advance()
    return drafter


def replayed(
    rollouts: Rollouts, number: int, epoch: Epoch, slots: int, drafter: Any, told: bool = True
) -> dict[str, float]:
    """Tokens a pass, and the share of guesses that stand, were these texts written with this drafter."""
    texts = epoch.tokens
    requests, queue = rollouts.requests(number), list(range(len(texts)))
    live: dict[int, int] = {}  # known tokens
    passes = guessed = stood = emitted = 0
    whole = [np.array([*r.prompt, *t], np.int32) for r, t in zip(requests, texts, strict=True)]
    while queue or live:
        while queue and len(live) < slots:
            i = queue.pop(0)
            live[i] = len(requests[i].prompt) + 1  # the first token is drawn as the prompt is read
            drafter.observe(
                [Outcome(i, 0, 0, whole[i][live[i] - 1 : live[i]], epoch.thoughts[i][:1] if told else None)]
            )
        rows = [i for i in live if live[i] < len(whole[i])]
        views = [Text(i, whole[i][: live[i]], len(requests[i].prompt), requests[i]) for i in rows]
        most = np.array([min(GUESSES, len(whole[i]) - live[i] - 1) for i in rows])
        outcomes = []
        for i, guess in zip(rows, drafter.propose(views, most), strict=True):
            true = whole[i][live[i] : live[i] + len(guess)]
            kept = int(np.logical_and.accumulate(guess == true).sum())
            at = live[i] - len(requests[i].prompt)
            thoughts = epoch.thoughts[i][at : at + kept + 1] if told else None
            outcomes.append(Outcome(i, len(guess), kept, whole[i][live[i] : live[i] + kept + 1], thoughts))
            live[i] += kept + 1
            passes, guessed, stood, emitted = passes + 1, guessed + len(guess), stood + kept, emitted + kept + 1
        drafter.observe(outcomes)
        for i in [i for i in live if live[i] >= len(whole[i])]:
            drafter.finish(i, whole[i], len(requests[i].prompt), requests[i].group)
            del live[i]
    return {"acceptance_length": emitted / passes, "guesses": guessed / passes, "stood": stood / max(1, guessed)}


def contenders(rollouts: Rollouts, past: list[Epoch], rows: int) -> dict[str, Callable[[], Drafter | None]]:
    """By name, each as it begins the last epoch; with the makespan budget where all texts run at once."""
    found: dict[str, Callable[[], Drafter | None]] = {
        "plain": lambda: None,
        "n-grams, as far as it pays": lambda: Payoff(NgramDrafter()),
        "suffix, all guesses": lambda: learned(rollouts, past),
        "suffix, budget": lambda: Budget(learned(rollouts, past), mode="throughput"),
    }
    if rows >= len(rollouts.prompts):
        found["suffix, budget for the last"] = lambda: Budget(learned(rollouts, past), mode="makespan")
    return found


def tail(run: Run, share: float = 0.1) -> float:
    """Seconds of the last tokens: from when all others are there to the end."""
    times = sorted(at for one in run.times for at in one)
    return times[-1] - times[int(len(times) * (1 - share)) - 1]


def described(run: Run, plain: Run) -> dict[str, float]:
    seconds = run.seconds()
    return {
        "seconds": seconds, "of_plain": seconds / plain.seconds(), "last_tenth_seconds": tail(run),
        "last_tenth_of_plain": tail(run) / tail(plain), "acceptance_length": run.count() / run.forwards,
        "tokens": run.count(),
    }  # fmt: skip


def variety(epochs: list[Epoch], samples: int) -> dict[str, float]:
    """How different the texts are: whole ones of a prompt, and runs of four tokens within each."""
    last = epochs[-1].tokens
    groups = [last[i : i + samples] for i in range(0, len(last), samples)]
    fours = [[tuple(text[i : i + 4]) for i in range(len(text) - 3)] for text in last]
    lengths = [len(text) for text in last]
    return {
        "distinct_texts": statistics.mean(len({tuple(text) for text in group}) / samples for group in groups),
        "distinct_runs_of_four": statistics.mean(len(set(runs)) / len(runs) for runs in fours if runs),
        "tokens": sum(lengths), "median_length": statistics.median(lengths), "longest": max(lengths),
    }  # fmt: skip


def main() -> None:
    options = engine_parser(__doc__, rounds=1)
    options.add_argument("--prompts", type=int, default=16)
    options.add_argument("--prompts-of", choices=["questions", "problems", "renamings"], default="questions")
    options.add_argument("--samples", type=int, default=8)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--tokens", type=int, default=320, help="at most, of each text")
    options.add_argument("--temperature", type=float, default=0.7)
    options.add_argument("--slots", default="4,16,128", help="texts in flight, with commas between")
    options.add_argument("--only", help="contenders, by name, with semicolons between (plain always runs)")
    options.add_argument("--keep", type=Path, help="where the plain texts are kept for another run")
    options.add_argument("--quick", action="store_true", help="a rehearsal: 2 prompts, 2 samples, 24 tokens, 2 epochs")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.prompts, arguments.samples, arguments.tokens, arguments.epochs = 2, 2, 24, 2
        arguments.slots = "2"
    torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    tokenizer, stock, model = load_tokenizer(path), load_stock(path), load_model(path, "cpu")
    rollouts = Rollouts(arguments, tokenizer, stock)
    epochs = written(rollouts, model, arguments.epochs, arguments.keep)
    past, last = epochs[:-1], len(epochs) - 1
    lines, replays = [], {}
    for number, texts in enumerate(epochs):
        for slots in (4, len(rollouts.prompts)):
            found = replayed(rollouts, number, texts, slots, learned(rollouts, epochs[:number]))
            replays[f"epoch {number + 1}, {slots} slots"] = found
    untold = replayed(rollouts, last, epochs[last], 4, learned(rollouts, past, told=False), told=False)
    replays["last epoch, 4 slots, by counts alone"] = untold
    ngram = replayed(rollouts, last, epochs[last], 4, NgramDrafter())
    timed: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    measured = [rates()]
    for slots in numbers(arguments.slots):
        runs: dict[str, list[Run]] = {}
        for _ in range(arguments.rounds):
            for name, make in contenders(rollouts, past, slots).items():
                if name != "plain" and arguments.only and name not in arguments.only.split(";"):
                    continue
                print(f"{slots} slots: {name}", file=sys.stderr)
                runs.setdefault(name, []).append(rollouts.run(model, last, slots, make()))
                measured.append(rates())
        plain = min(runs["plain"], key=Run.seconds)
        timed[str(slots)] = {}
        for name, found in runs.items():
            fastest = min(found, key=Run.seconds)  # of as many runs each: a neighbour only ever adds
            timed[str(slots)][name] = {
                **described(fastest, plain), "all_seconds": [run.seconds() for run in found],
                "ratio_by_round": [a.seconds() / b.seconds() for a, b in zip(found, runs["plain"], strict=True)],
            }  # fmt: skip
            parted = partings(
                stock,
                rollouts.prompts,
                plain,
                fastest,
                temperature=arguments.temperature,
                seed=key(arguments.seed, last),
            )
            gates[f"{slots} slots: {name}"] = gate = verdict(parted, len(rollouts.prompts))
            if not gate["near_ties_only"]:
                sys.exit(f"{name} with {slots} slots changed a text where no tie is: {parted}")
            row = timed[str(slots)][name]
            lines.append([str(slots), name, f"{row['seconds']:.1f}", f"{row['of_plain']:.2f}",
                          f"{row['last_tenth_of_plain']:.2f}", f"{row['acceptance_length']:.2f}"])  # fmt: skip
    work = floor(stock, 1, arguments.tokens // 2)["operations"] * sum(map(len, epochs[last].tokens))
    results = {
        "threads": arguments.threads, "temperature": arguments.temperature, "cap": arguments.tokens,
        "rollouts": len(rollouts.prompts), "prompts_of": arguments.prompts_of, "guesses": GUESSES,
        "replays": replays, "ngram_replay": ngram, "timed": timed, "gates": gates,
        "variety": variety(epochs, arguments.samples),
        "floor_seconds": work / max(one["operations_per_second"] for one in measured), "rates": measured,
    }  # fmt: skip
    shown = [[name, f"{row['acceptance_length']:.2f}", f"{row['guesses']:.1f}", f"{row['stood']:.2f}"]
             for name, row in [*replays.items(), ("n-grams, last epoch", ngram)]]  # fmt: skip
    header = ["slots", "", "seconds", "of plain", "its last tenth", "tokens a pass"]
    text = f"{grid(['by replay', 'tokens a pass', 'guesses', 'stood'], shown)}\n\n{grid(header, lines)}"
    finish("suffix_rollouts", arguments, results, text)


if __name__ == "__main__":
    main()
