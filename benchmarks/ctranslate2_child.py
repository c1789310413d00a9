"""Greedy decoding by ctranslate2, in an environment of its own: a line of JSON in, a line of JSON out.

    PYTHON ctranslate2_child.py MODEL COMPUTE_TYPE THREADS
    {"prompts": [[id, …], …], "count": n} → {"tokens": [[id, …], …], "times": [[seconds, …], …], "began": seconds}

MODEL is what `ct2-transformers-converter --model DIR --output_dir MODEL --quantization TYPE` wrote.
"""

import json
import sys
import time
from pathlib import Path

import ctranslate2


def main() -> None:
    place, kind, threads = sys.argv[1:]
    words = json.loads((Path(place) / "vocabulary.json").read_text(encoding="utf-8"))
    generator = ctranslate2.Generator(place, compute_type=kind, inter_threads=1, intra_threads=int(threads))
    for line in sys.stdin:
        asked = json.loads(line)
        times = [[] for _ in asked["prompts"]]
        began = time.perf_counter()
        found = generator.generate_batch(
            [[words[token] for token in prompt] for prompt in asked["prompts"]],
            max_length=asked["count"],
            end_token=[len(words) - 1],  # the default one would end texts early; this one stands for nothing in use
            include_prompt_in_result=False,
            callback=lambda step, times=times: times[step.batch_id].append(time.perf_counter()),
        )
        tokens = [one.sequences_ids[0] for one in found]
        print(json.dumps({"tokens": tokens, "times": times, "began": began}), flush=True)


if __name__ == "__main__":
    main()
