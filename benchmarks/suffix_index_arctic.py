"""arctic-inference's suffix cache as a side of the suffix index's benchmark; runs in an environment that holds it.

Its wheel is built against one version of torch, which the suffix cache does not use, so this part is built alone, of
the sdist of arctic-inference 0.3.0, by its own CMakeLists.txt (Release: -O3 -DNDEBUG, C++20) and with the nanobind that
its pyproject.toml names:

    python -m venv ENV && ENV/bin/pip install numpy nanobind==2.9.2 cmake
    pip download --no-deps --no-binary :all: arctic-inference==0.3.0 && tar xf arctic_inference-0.3.0.tar.gz
    ENV/bin/cmake -S arctic_inference-0.3.0/csrc/suffix_decoding -B BUILD -DPython_EXECUTABLE=$PWD/ENV/bin/python
    ENV/bin/cmake --build BUILD
    mkdir -p SITE/arctic_inference/suffix_decoding      # SITE: ENV/lib/python3.X/site-packages
    cp arctic_inference-0.3.0/arctic_inference/suffix_decoding/{__init__,cache}.py BUILD/_C*.so \
        SITE/arctic_inference/suffix_decoding/

It is called as vLLM's `suffix` method calls it (vllm/v1/spec_decode/suffix_decoding.py): tokens are appended as they
come, a guess is asked for with the last `depth` tokens of the text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arctic_inference.suffix_decoding import SuffixDecodingCache
from suffix_history import Texts
from suffix_measure import main
from suffix_side import Call, fill


class Arctic:
    """One cache a group, as DAS has it, or one for all.

    Args:
        depth: of its trees. `alone`: the tree of responses without the one a request has for itself, so less than it
            needs to guess.
    """

    def __init__(self, depth: int = 24, shared: bool = False, alone: bool = False) -> None:
        self.depth, self.shared, self.alone = depth, shared, alone
        self.caches: dict[bytes, SuffixDecodingCache] = {}
        self.of: dict[int, SuffixDecodingCache] = {}
        self.ask()

    def ask(self, factor: float = 1.0, offset: float = 0.0, least: float = 0.1) -> None:
        """At most `factor` times the match's length and `offset` tokens, none of a share below `least`."""
        self.limits = {"max_spec_factor": factor, "max_spec_offset": offset, "min_token_prob": least}

    def start(self, number: int, group: bytes, prompt: np.ndarray, seed: int = -1) -> None:
        key = b"" if self.shared else group
        if key not in self.caches:
            self.caches[key] = SuffixDecodingCache(max_tree_depth=self.depth)
        self.of[number] = self.caches[key]
        if not self.alone:
            self.of[number].start_request(number, prompt)

    def call(self, number: int, tokens: np.ndarray) -> Call:
        if self.alone:
            return self.of[number]._global_tree.extend, number, tokens.tolist()
        return self.of[number].add_active_response, number, tokens.tolist()

    def propose(self, numbers: Sequence[int], known: Sequence[np.ndarray], most: np.ndarray) -> list:
        return [
            self.of[number].speculate(number, tokens[-self.depth :], limit, **self.limits)
            for number, tokens, limit in zip(numbers, known, most.tolist(), strict=True)
        ]

    def guesses(self, proposed: list) -> list[Sequence[int]]:
        return [one.token_ids for one in proposed]

    def observe(self, numbers: Sequence[int], guessed: Sequence[int], kept: Sequence[int]) -> None:
        pass

    def finish(self, number: int) -> None:
        found = self.of.pop(number)
        if not self.alone:
            found.stop_request(number)

    def advance(self) -> None:
        pass

    def held(self) -> dict[str, int]:
        return {"by_its_own_account": sum(one._global_tree.estimate_memory() for one in self.caches.values())}


def longest(make: type[Arctic], job: dict) -> list[int]:
    """Lengths of the longest matches: asked for no tokens, all drafts score 0 and that of the longest one stands."""
    side, texts = make(**job["side"]), Texts.load(Path(job["texts"]))
    fill(side, Texts.load(Path(job["history"])), 1)
    found = []
    for i, end in job["places"]:
        context = np.concatenate([texts.prompts[i], texts.tokens[i]])[:end][-side.depth :]
        tree = side.caches[b"" if side.shared else texts.groups[i]]._global_tree
        found.append(tree.speculate_ndarray(context, 0, 1.0, 0.0, 0.0, False).match_len)
    return found


if __name__ == "__main__":
    main(Arctic, {"longest": longest})
