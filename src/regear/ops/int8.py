"""Products with int8 weights on a CPU: a quarter of the bytes to read, and integer multiplication.

A weight has a scale for each output, a row of x one of its own: x Wᵀ ≈ s_m s_o Σ_i X_mi W_oi with X, W whole numbers of
at most ±127 (per-token and per-channel scales, as in LLM.int8(), Dettmers et al., arXiv 2208.07339). A row's result is
therefore the same whatever is computed beside it, which dynamic quantisation of a whole tensor cannot promise. Inputs
that are always large would leave a row's others few codes: the weight takes their size over (`gain_I`, after
SmoothQuant, Xiao et al., arXiv 2211.10438, eq. 4).

FBGEMM, which torch brings, multiplies: it rounds rows as it reads them, given one scale for all of them, so each row is
divided by its own largest number first. Torch's other operators (oneDNN's, `_int_mm`) want rounded rows, a pass more.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from regear.core.errors import IncompatibleModel

LARGEST = 127
SMALLEST = 1e-30  # of a row's largest number; a row of zeros stays zero
ENGINES = ("x86", "fbgemm")
EXACT = 20  # bits at least

_apply: Any = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)


def levels() -> int:
    """Largest code of a row: 127, or 63 where the processor adds products of two codes in 16 bits (no VNNI)."""
    return LARGEST if torch.cpu._is_vnni_supported() else LARGEST // 2


def check() -> None:
    """Refuse where FBGEMM is missing.

    Raises:
        IncompatibleModel: the processor is not x86-64, or torch has no such operator.
    """
    if _apply is None or not set(ENGINES) & set(torch.backends.quantized.supported_engines):
        raise IncompatibleModel(
            f"int8 weights need an x86-64 processor and a torch built with FBGEMM; torch {torch.__version__} offers "
            f"{torch.backends.quantized.supported_engines} here; take dtype float32"
        )


def quantise(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [O, I] and scales float32 [O], the largest number of an output at ±127."""
    weight_OI = weight_OI.detach().float()
    scale_O = weight_OI.abs().amax(1).clamp_(min=SMALLEST) / LARGEST
    return (weight_OI / scale_O[:, None]).round_().to(torch.int8), scale_O


def root_mean_square(x_MI: torch.Tensor) -> torch.Tensor:
    """Of each column, float32 [I]."""
    return x_MI.detach().float().square().mean(0).sqrt_()


def gain(size_I: torch.Tensor, weights_OI: list[torch.Tensor]) -> torch.Tensor:
    """What the inputs of these maps are multiplied by, [I], so that rows and weights are as hard to round.

    √(rms W / rms x), SmoothQuant at its strength of ½ with root mean squares for maxima; around 1, and 1 for an input
    that is never used. `size_I` is rms x.
    """
    columns = root_mean_square(torch.cat(weights_OI))
    used = (size_I > 0) & (columns > 0)
    found = torch.where(used, columns / size_I, torch.ones_like(columns)).sqrt_()
    return torch.where(used, found / found[used].log().mean().exp(), torch.ones_like(columns))


def naive(
    x: torch.Tensor,
    codes_OI: torch.Tensor,
    scale_O: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    gain_I: torch.Tensor | None = None,
    most: int = LARGEST,
) -> torch.Tensor:
    """What `Int8Linear` computes, in whole numbers; x [..., I], result [..., O] in float32."""
    x = x if gain_I is None else x * gain_I
    scale = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    codes = (x / scale * most).round().double()
    found = (codes @ codes_OI.double().T) * scale_O.double() * (scale.double() / most)
    return (found if bias_O is None else found + bias_O.double()).float()


class Rounding:
    """How the maps of one model round, those joined of them too; see `exact`."""

    exact = False


class Int8Linear(nn.Module):
    """A linear map with int8 weights, float32 in and out, without gradients.

    Args:
        codes_OI, scale_O: of `quantise`, the weight over `gain_I` where there is one; laid out for FBGEMM, not kept.
        bias_O: float32.
        gain_I: what inputs are multiplied by.
        digits: of base `levels()` that numbers of a row are rounded to; each costs a row of the product.
        rounding: that of the model's other maps.
    """

    gain: torch.Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        codes_OI: torch.Tensor,
        scale_O: torch.Tensor,
        bias_O: torch.Tensor | None = None,
        gain_I: torch.Tensor | None = None,
        digits: int = 1,
        rounding: Rounding | None = None,
    ) -> None:
        super().__init__()
        check()
        self.out_features, self.in_features = codes_OI.shape
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach().float(), requires_grad=False)
        self.register_buffer("gain", gain_I, persistent=False)
        self.most, self.digits, self.rounding = levels(), digits, rounding or Rounding()
        self.layout = _layout(codes_OI, scale_O)

    @torch.no_grad()
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not input.numel():
            return input.new_zeros(*input.shape[:-1], self.out_features)
        x = input if self.gain is None else input * self.gain
        scale = x.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST)
        digits = math.ceil(EXACT / math.log2(self.most)) if self.rounding.exact else self.digits
        if digits == 1:
            found: torch.Tensor = _apply(x / scale, 1 / self.most, self.most + 1, self.layout)
        else:
            found = self._by_digits(x / scale.div_(self.most), digits)
        return found.mul_(scale) if self.bias is None else torch.addcmul(self.bias, found, scale)

    def _by_digits(self, rest: torch.Tensor, digits: int) -> torch.Tensor:
        """The product of numbers within ±`most`, every digit a row of the same call."""
        parts = []
        for _ in range(digits - 1):
            parts.append(rest.trunc())
            rest = (rest - parts[-1]).mul_(self.most)
        parts.append(rest.round())
        first, *others = _apply(torch.stack(parts), 1.0, self.most + 1, self.layout)
        for place, other in enumerate(others, 1):
            first.add_(other, alpha=self.most**-place)
        whole: torch.Tensor = first
        return whole

    @property
    def codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int8 [O, I] and scales float32 [O], made anew from the layout."""
        whole = torch.ops.quantized.linear_unpack(self.layout)[0]
        return whole.int_repr(), whole.q_per_channel_scales().float()

    @property
    def weight(self) -> torch.Tensor:
        """The rounded weight in float32 [O, I], made anew: for code that wants the matrix and not the product."""
        codes_OI, scale_O = self.codes
        weight_OI = codes_OI.float().mul_(scale_O[:, None])
        return weight_OI if self.gain is None else weight_OI.mul_(self.gain)

    def extra_repr(self) -> str:
        """For printing a model."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _layout(codes_OI: torch.Tensor, scale_O: torch.Tensor) -> Any:
    """FBGEMM's own order of the codes, an object that only its operators read."""
    zeros = torch.zeros(len(scale_O), dtype=torch.long)
    with warnings.catch_warnings():  # torch means to drop this way to name a scale; `check` then says so
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        whole = torch._make_per_channel_quantized_tensor(codes_OI.contiguous(), scale_O.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(whole, None)


def of_linear(
    layer: nn.Linear, gain_I: torch.Tensor | None = None, digits: int = 1, rounding: Rounding | None = None
) -> Int8Linear:
    """The same map with int8 weights."""
    weight_OI = layer.weight if gain_I is None else layer.weight / gain_I
    return Int8Linear(*quantise(weight_OI), layer.bias, gain_I, digits, rounding)


def joined(maps: list[Int8Linear]) -> Int8Linear | None:
    """Several maps of one input as one, each result as it was; None if they differ in gain or rounding."""
    gains = [part.gain for part in maps if part.gain is not None]
    biases: list[torch.Tensor] = [part.bias for part in maps if part.bias is not None]
    if len({(part.digits, part.rounding) for part in maps}) > 1:
        return None
    if {len(gains), len(biases)} - {0, len(maps)} or not all(torch.equal(one, gains[0]) for one in gains):
        return None
    codes, scales = zip(*(part.codes for part in maps), strict=True)
    return Int8Linear(
        torch.cat(codes),
        torch.cat(scales),
        torch.cat(biases) if biases else None,
        gains[0] if gains else None,
        maps[0].digits,
        maps[0].rounding,
    )


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Inside, the int8 maps of a model, and those joined of them, round rows to 20 bits and more.

    Two ways to compute the same differ in the last bit, and rounding to 8 bits makes a step of it; proofs that compare
    two ways need this.
    """
    held = {part.rounding for part in model.modules() if isinstance(part, Int8Linear)}
    before = {rounding: rounding.exact for rounding in held}
    for rounding in held:
        rounding.exact = True
    try:
        yield
    finally:
        for rounding, was in before.items():
            rounding.exact = was
