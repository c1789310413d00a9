"""How keys, values and latents are best stored in 4 bits: KL from the full-precision cache, on selection text.

Every block is packed at once, the newest too, so that schemes differ in nothing but the rounding. Correctness gate: a
scheme that rounds nothing must change nothing.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import finish, parser
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from regear.cli.output import grid
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer
from regear.ops.divergence import token_kl
from regear.ops.kvquant import dequantise, quantise, spread_out
from regear.tasks.text import digest_of, read_documents, spread, windows_of

Rounding = Callable[[torch.Tensor], torch.Tensor]


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def groups(x: torch.Tensor, clip: bool) -> torch.Tensor:
    """4-bit rounding along the last dimension; with `clip`, each group's range shrunk to the least squared error."""
    best = dequantise(quantise(x, 4), 4, x.shape[-1])
    for keep in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7) if clip else ():
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        cut = (high - low) * (1 - keep) / 2
        found = dequantise(quantise(x.clamp(low + cut, high - cut), 4), 4, x.shape[-1])
        closer = (found - x).square().sum(-1, keepdim=True) < (best - x).square().sum(-1, keepdim=True)
        best = torch.where(closer, found, best)
    return best


def along_token(size: int, rotate: bool = False, clip: bool = False, first: int = 0) -> Rounding:
    def rounding(x: torch.Tensor) -> torch.Tensor:
        if not x.shape[-1]:
            return x
        kept, x = x[:, :, :first], x[:, :, first:]
        missing = -x.shape[-1] % size
        wide = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], -1) if missing else x
        wide = wide.unflatten(-1, (-1, size))
        found = spread_out(groups(spread_out(wide), clip)) if rotate else groups(wide, clip)
        return torch.cat([kept, found.flatten(-2)[..., : x.shape[-1]]], 2)

    return rounding


def along_channel(size: int, clip: bool = False, first: int = 0) -> Rounding:
    turned = along_token(size, clip=clip)

    def rounding(x: torch.Tensor) -> torch.Tensor:
        if not x.shape[-1]:
            return x
        return torch.cat([x[:, :, :first], turned(x[:, :, first:].transpose(2, 3)).transpose(2, 3)], 2)

    return rounding


class Rounded(DynamicLayer):
    """A layer whose keys and values are rounded as they come in."""

    def __init__(self, keys: Rounding, values: Rounding) -> None:
        super().__init__()
        self.roundings = keys, values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = self.roundings
        return super().update(keys(key_states), values(value_states))


# Name, bits a number, what is done to keys (or latents), what to values.
SCHEMES: list[tuple[str, float, Rounding, Rounding]] = [
    ("nothing rounded", 32, same, same),
    ("keys along tokens, 32; values untouched", 5, along_token(32), same),
    ("values along tokens, 32; keys untouched", 5, same, along_token(32)),
    ("along tokens, 64", 4.5, along_token(64), along_token(64)),
    ("along tokens, 64, rotated", 4.5, along_token(64, rotate=True), along_token(64, rotate=True)),
    ("along tokens, 32", 5, along_token(32), along_token(32)),
    ("along tokens, 32, clipped", 5, along_token(32, clip=True), along_token(32, clip=True)),
    ("along tokens, 32, rotated", 5, along_token(32, rotate=True), along_token(32, rotate=True)),
    ("keys along channels, 32", 5, along_channel(32), along_token(32)),
    ("keys along channels, 64", 4.5, along_channel(64), along_token(64)),
    ("keys along channels, 64, first 4 tokens apart", 4.5, along_channel(64, first=4), along_token(64, first=4)),
    (
        "keys along channels, 64, clipped, first 4 tokens apart, values rotated",
        4.5,
        along_channel(64, clip=True, first=4),
        along_token(64, rotate=True, first=4),
    ),
    (
        "keys along channels, 64, first 4 tokens apart, values rotated (chosen)",
        4.5,
        along_channel(64, first=4),
        along_token(64, rotate=True, first=4),
    ),
]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--windows", type=int, default=4)
    arguments = options.parse_args()
    place = resolve(arguments.model)
    model, tokenizer = load_model(place), load_tokenizer(place)
    windows = spread(windows_of(read_documents(["builtin"], "selection")), arguments.windows)
    totals, tokens = [0.0] * len(SCHEMES), 0
    for window in windows:
        ids = torch.tensor([tokenizer(window.text)["input_ids"]])
        read = functools.partial(model, input_ids=ids)
        plain = read(use_cache=False).logits[0, :-1]
        tokens += len(plain)
        for i, (_, _, keys, values) in enumerate(SCHEMES):
            cache = Cache(layers=[Rounded(keys, values) for _ in range(model.config.num_hidden_layers)])
            found = read(past_key_values=cache, use_cache=True).logits[0, :-1]
            totals[i] += float(token_kl(plain, found).double().sum())
        if totals[0] / tokens > 1e-6:
            sys.exit(f"a cache that rounds nothing differs from none: KL {totals[0] / tokens}")
    rows = [
        {"scheme": name, "bits": bits, "kl": total / tokens}
        for (name, bits, _, _), total in zip(SCHEMES, totals, strict=True)
    ]
    results = {"windows": len(windows), "tokens": tokens, "text_sha256": digest_of(windows), "rows": rows}
    body = [[r["scheme"], f"{r['bits']:g}", f"{r['kl']:.4f}"] for r in rows]
    finish("kv_schemes", arguments, results, grid(["4-bit scheme", "bits a number", "KL"], body))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
