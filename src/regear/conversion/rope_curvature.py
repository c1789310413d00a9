"""What a layer's keys lose without RoPE, and the loss's curvature in what is left; gathered on the pass down.

With γ_ts the gradient of the loss in q_t·k_s (targets drawn from the model, as in `ops.fisher`), a component c of the
keys (`ops.rope`) moves the loss at query t by Σ_s γ_ts Re[conj(q) D_c z_c e^{iω(s-t)}], to first order. Without
rotation it moves it by Re[ρ n_c], n_c = conj(q) D_c Σ_s γ_ts z_c; ρ, one number a query head and component, is fitted
by least squares and costs nothing in the up-projection. The second moments of what is left between the two say which
components must go on turning. Keys that a norm makes nonlinear are first replaced by their best linear prediction.

Shape letters: H query heads, G key/value heads, P pairs, C = G P components, T tokens of a window, D hidden width,
K keys' floats, V values' floats.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from regear.conversion.collect import Attended, Collector, Seen
from regear.models.families import SourceSpec
from regear.ops.fisher import kronecker_fisher
from regear.ops.rope import Components, components, score_gradient, to_pairs, turned

# Damping of the metric within a frequency, and of ρ towards 1 (no rotation at all), as shares of the mean.
PAIR_DAMP = 0.1
SHRINK = 0.01
# Ridge of the linear prediction of normed keys, as a share of the inputs' mean energy.
INPUT_RIDGE = 1e-3


class RopeCurvature(Collector):
    """Keeps one layer's windows until `state` has been asked for."""

    gradient = True
    attended = True

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self.windows: list[Attended] = []

    def add(self, seen: Seen) -> None:
        self.windows += seen.windows

    def state(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        if self.spec.qk_norm:
            key_map = self._linear_keys()
            found = {"key_map": key_map, "query_gain": query_gain(self.windows)}
            self.windows = [replace(w, keys=w.layer_inputs() @ key_map.T.float()) for w in self.windows]
        basis = self._components()
        rho = fit_rotations(self.windows, basis)
        residual, gram, metric = curvature(self.windows, basis, rho)
        return found | {
            "rope_encode": torch.view_as_real(basis.encode).contiguous(),
            "rope_decode": torch.view_as_real(basis.decode).contiguous(),
            "rope_pair": basis.pair,
            "rope_rho": torch.view_as_real(rho).contiguous(),
            "rope_residual": residual,
            "rope_gram": gram,
            "rope_metric": metric,
        }

    def _components(self) -> Components:
        outputs = torch.cat([torch.cat([w.keys, w.values], -1) for w in self.windows])
        gradients = torch.cat([torch.cat(output_gradients(w), -1) for w in self.windows])
        gram, metric = kronecker_fisher(outputs, gradients, torch.cat([w.weight for w in self.windows]))
        width = self.spec.branch_width
        return components(gram[:width, :width], metric[:width, :width], self.spec.kv_heads, damp=PAIR_DAMP)

    def _linear_keys(self) -> torch.Tensor:
        """The least-squares map of the layer's inputs to its normed keys, [K, D]; tokens weigh as their gradients."""
        pulls = [output_gradients(w)[0].square().sum(-1) for w in self.windows]
        mean = torch.cat(pulls).mean().clamp_min(1e-30)
        gram = torch.zeros(self.spec.hidden, self.spec.hidden, dtype=torch.float64)
        cross = torch.zeros(self.spec.hidden, self.spec.branch_width, dtype=torch.float64)
        for window, force in zip(self.windows, pulls, strict=True):
            inputs = window.layer_inputs()
            rows = inputs * (window.weight * (1 + force / mean))[:, None]
            gram += (rows.T @ inputs).double()
            cross += (rows.T @ window.key.transpose(0, 1).flatten(1)).double()
        gram.diagonal().add_(INPUT_RIDGE * gram.diagonal().mean())
        return torch.linalg.solve(gram, cross).T.contiguous()


def output_gradients(window: Attended) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the loss in the keys before RoPE [T, K] and in the values [T, V]."""
    keys, values = torch.zeros_like(window.key), torch.zeros_like(window.value)
    back = window.phase.conj()
    for head in range(len(window.query)):
        scores, weights = score_gradient(window, head)
        group = window.group(head)
        keys[group] += turned(scores.T @ turned(window.query[head], window.phase), back)
        values[group] += weights.T @ window.gradient[head]
    return keys.transpose(0, 1).flatten(1), values.transpose(0, 1).flatten(1)


def query_gain(windows: list[Attended]) -> torch.Tensor:
    """The number that comes nearest to what a query norm did to each coordinate of each head, [H, d]."""
    raw, normed = (torch.cat(parts, 1).double() for parts in zip(*((w.raw(), w.query) for w in windows), strict=True))
    return (normed * raw).sum(1) / raw.square().sum(1).clamp_min(1e-30)


def terms(
    window: Attended, basis: Components
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per head: what each component contributes turning [T, C], what unturned ones would before ρ [T, C] (complex),
    the coefficient conj(q) D of each [T, C] (complex), and γ [T, T]."""
    heads, pair = len(window.key), basis.pair
    encode = basis.encode.T.to(torch.complex64)
    phase = window.phase[:, pair]
    still = to_pairs(window.keys, heads).flatten(1) @ encode
    turning = to_pairs(window.key.transpose(0, 1).flatten(1), heads).flatten(1) @ encode
    both = torch.view_as_real(torch.cat([still, turning * phase], -1)).flatten(1)
    for head in range(len(window.query)):
        own = window.group(head) * window.phase.shape[1] + pair
        decode = basis.decode[own, torch.arange(len(pair))].to(torch.complex64)
        reads = to_pairs(window.query[head], 1)[:, 0, pair].conj() * decode
        scores, _ = score_gradient(window, head)
        unturned, rotated = torch.view_as_complex((scores @ both).unflatten(-1, (-1, 2))).chunk(2, -1)
        yield (reads * phase.conj() * rotated).real, reads * unturned, reads, scores


def fit_rotations(windows: list[Attended], basis: Components) -> torch.Tensor:
    """ρ [H, C], complex128: the least-squares number between a component's still and turning contributions."""
    shape = (len(windows[0].query), len(basis.pair))
    aa, bb, ab, ay, by = (torch.zeros(shape, dtype=torch.float64) for _ in range(5))
    for window in windows:
        for head, (turning, still, _, _) in enumerate(terms(window, basis)):
            y, a, b = turning.double(), still.real.double(), -still.imag.double()
            for total, product in ((aa, a * a), (bb, b * b), (ab, a * b), (ay, a * y), (by, b * y)):
                total[head] += window.weight.double() @ product
    shrink = SHRINK * (aa + bb) / 2 + 1e-300
    aa, bb, ay = aa + shrink, bb + shrink, ay + shrink
    determinant = aa * bb - ab * ab
    return torch.complex((bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant)


def curvature(
    windows: list[Attended], basis: Components, rho_HC: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Second moments of what components lose unturned [C, C]; Gram and metric of [Re z, Im z, v] if none turns."""
    count = len(basis.pair)
    residual = torch.zeros(count, count, dtype=torch.float64)
    outputs, gradients = [], []
    encode = basis.encode.T.to(torch.complex64)
    for window in windows:
        pull = torch.zeros(len(window.keys), 2 * count)
        for head, (turning, still, reads, scores) in enumerate(terms(window, basis)):
            rho = rho_HC[head].to(torch.complex64)
            left = (turning - (still * rho).real).double() * window.weight.double()[:, None].sqrt()
            residual += left.T @ left
            read = reads * rho
            pull += scores.T @ torch.cat([read.real, -read.imag], -1)
        z = to_pairs(window.keys, len(window.key)).flatten(1) @ encode
        outputs.append(torch.cat([z.real, z.imag, window.values], -1))
        gradients.append(torch.cat([pull, output_gradients(window)[1]], -1))
    weight = torch.cat([w.weight for w in windows])
    gram, metric = kronecker_fisher(torch.cat(outputs), torch.cat(gradients), weight)
    return residual, gram, metric
