"""SmolLM2 converted on little text: what engines serve in these tests. Its quality is measured elsewhere."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import regear

NAME = "smollm2-135m-instruct"
LITTLE = ["calibration.tokens=4096", "selection.tokens=1000", "evaluation.tokens=1000"]
HALF = ["convert.kv_ratio=1/2", "convert.rope_dim=64", "convert.latent_pad=512"]
QUESTIONS = (
    "What is the capital of France?",
    "Write a short story about a fox that finds a lantern in the woods.",
    "Explain, step by step, why the sky is blue at noon and red in the evening, and what the air has to do with it.",
)


def converted(place: Path, *words: str) -> Path:
    """Half the floats, 64 of them turning, and the latent padded to the width vLLM's CPU kernel takes."""
    # In so little memory no decode step is timed, which takes minutes with latents this wide.
    regear.convert(NAME, place, *HALF, *LITTLE, *words, max_memory=1.2)
    return place


def questions(place: Path) -> list[list[int]]:
    """Token ids of three chats of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    chats = [[{"role": "user", "content": text}] for text in QUESTIONS]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]


@torch.no_grad()
def assert_same_tokens(place: Path, prompts: list[list[int]], found: list, wanted: list, *, remote: bool) -> None:
    """Equal greedy tokens; where a prompt's first differ, only if rounding alone could have chosen.

    Rounding is what float32 changes in the logits of that step, against float64; the gap between the two tokens may
    be twice as large for each side.
    """
    for prompt, left, right in zip(prompts, found, wanted, strict=True):
        if left == right:
            continue
        step = next(i for i, pair in enumerate(zip(left, right, strict=True)) if len(set(pair)) > 1)
        model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=remote, dtype=torch.float32).eval()
        ids = torch.tensor([prompt + right[:step]])
        single = model(ids, logits_to_keep=1).logits[0, -1]
        double = model.double()(ids, logits_to_keep=1).logits[0, -1]
        gap = abs(float(double[left[step]] - double[right[step]]))
        noise = float((single - double).abs().max())
        assert gap <= 4 * noise, (
            f"token {step}: {left[step]} for {right[step]}, {gap:.2e} apart; rounding is {noise:.2e}"
        )
