"""Fused losses against full logits and autograd; the defects that others' losses had, each caught by a test."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regear.ops import fused
from regear.ops.divergence import token_kl, token_nll
from regear.ops.fused import chunk_tokens, fused_loss, token_logprobs
from regear.ops.terms import DenseTeacher, TopTeacher

KINDS = ["kl", "reverse_kl"]


def naive(logits, teacher_logits, targets, terms):
    """Every term of every token from whole logits, {name: [N]}."""
    found = {}
    for name, _, temperature in terms:
        q = (logits / temperature).log_softmax(-1)
        p = (teacher_logits / temperature).log_softmax(-1)
        found[name] = {
            "ce": lambda q=q: -q.gather(1, targets[:, None]).squeeze(1),
            "kl": lambda q=q, p=p, t=temperature: t**2 * (p.exp() * (p - q)).sum(-1),
            "reverse_kl": lambda q=q, p=p, t=temperature: t**2 * (q.exp() * (q - p)).sum(-1),
        }[name]()
    return found


def problem(tokens=7, width=5, vocabulary=11, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(n, width, generator=make, dtype=dtype) for n in (tokens, vocabulary))
    theirs = DenseTeacher(
        torch.randn(tokens, width + 2, generator=make, dtype=dtype),
        torch.randn(vocabulary, width + 2, generator=make, dtype=dtype),
    )
    targets = torch.randint(0, vocabulary, (tokens,), generator=make)
    return hidden.requires_grad_(), head.requires_grad_(), theirs, targets


def top_of(teacher, kept):
    """The first `kept` outcomes of a dense teacher, as a cache holds them."""
    logs = (teacher.hidden_ND @ teacher.head_VD.T).log_softmax(-1)
    values, tokens = logs.topk(kept, dim=-1)
    return TopTeacher(values, tokens, logs.scatter(1, tokens, -torch.inf).logsumexp(-1))


def loss_of(kind, hidden, head, teacher, weights=None, temperature=1.0, **named):
    weights = torch.ones(len(hidden)) if weights is None else weights
    return fused_loss(hidden, head, weights, terms=[(kind, 1.0, temperature)], teacher=teacher, **named)[0]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 6), st.integers(2, 17), st.integers(1, 5), st.integers(0, 99),
    st.lists(st.sampled_from(["ce", "kl", "reverse_kl"]), min_size=1, max_size=3, unique=True),
    st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([1.0, 3.0]), st.booleans(),
)  # fmt: skip
def test_equals_whole_logits_and_autograd(tokens, width, vocabulary, chunk, seed, names, warm, warmer, masked):
    hidden, head, teacher, targets = problem(tokens, width, vocabulary, seed)
    weights = torch.rand(tokens, dtype=torch.float64) + 0.1
    if masked:
        weights[::2] = 0
    temperatures = {"ce": 1.0, "kl": warm, "reverse_kl": warmer}
    terms = [(name, 0.5 + i, temperatures[name]) for i, name in enumerate(names)]
    ours, sums = fused_loss(hidden, head, weights, terms=terms, targets_N=targets, teacher=teacher, chunk=chunk)
    expected = naive(hidden @ head.T, teacher.hidden_ND @ teacher.head_VD.T, targets, terms)
    total = sum(coefficient * weights @ expected[name] for name, coefficient, _ in terms)
    torch.testing.assert_close(ours, total, rtol=1e-10, atol=1e-10)
    for name in names:
        torch.testing.assert_close(sums[name], weights @ expected[name].detach(), rtol=1e-10, atol=1e-10)
    upstream = torch.tensor(-1.7, dtype=torch.float64)
    for mine, theirs in zip(*(torch.autograd.grad(x, (hidden, head), upstream) for x in (ours, total)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(3, 12), st.integers(1, 12), st.integers(1, 4), st.sampled_from(KINDS))
def test_top_teacher_is_a_divergence_over_the_kept_tokens_and_the_rest(tokens, vocabulary, kept, chunk, kind):
    kept = min(kept, vocabulary - 1)
    hidden, head, dense, _ = problem(tokens, 4, vocabulary, kept)
    teacher = top_of(dense, kept)
    q = (hidden @ head.T).log_softmax(-1)
    rest = q.scatter(1, teacher.tokens_NK, -torch.inf).logsumexp(-1, keepdim=True)
    q = torch.cat([q.gather(1, teacher.tokens_NK), rest], 1)
    p = torch.cat([teacher.logits_NK, teacher.log_tail_N[:, None]], 1)
    total = (p.exp() * (p - q) if kind == "kl" else q.exp() * (q - p)).sum()
    ours = loss_of(kind, hidden, head, teacher, chunk=chunk)
    torch.testing.assert_close(ours, total, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(*(torch.autograd.grad(x, (hidden, head)) for x in (ours, total)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_top_teacher_that_keeps_everything_is_the_dense_one():
    hidden, head, dense, _ = problem()
    top = top_of(dense, 11)
    assert top.log_tail_N.isinf().all()
    for kind in KINDS:
        torch.testing.assert_close(loss_of(kind, hidden, head, top), loss_of(kind, hidden, head, dense))
    # A tail without mass that is not empty: finite, and the forward divergence is that of the kept tokens alone.
    cut = TopTeacher(top.logits_NK[:, :3].log_softmax(-1), top.tokens_NK[:, :3], top.log_tail_N)
    for kind in KINDS:
        value = loss_of(kind, hidden, head, cut)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (hidden, head)))


def test_agrees_with_the_measures():
    hidden, head, teacher, targets = problem(dtype=torch.float32)
    logits, theirs = hidden @ head.T, teacher.hidden_ND @ teacher.head_VD.T
    assert loss_of("kl", hidden, head, teacher).item() == pytest.approx(token_kl(theirs, logits).sum().item(), rel=1e-5)
    found, _ = fused_loss(hidden, head, torch.ones(7), terms=[("ce", 1.0, 1.0)], targets_N=targets)
    assert found.item() == pytest.approx(token_nll(logits, targets).sum().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_logits_have_no_divergence_and_no_gradient(kind, temperature):
    """A cross-entropy under the name of a divergence keeps the teacher's entropy (M1's `forward_kl`)."""
    hidden, head, _, _ = problem()
    value = loss_of(kind, hidden, head, DenseTeacher(hidden.detach(), head.detach()), temperature=temperature)
    assert value == 0
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(value, (hidden, head)))


def test_directions_are_not_swapped():
    """A teacher that is nearly sure, a student that is not: p log p/q and q log q/p are far apart."""
    one = torch.eye(2, dtype=torch.float64)
    teacher = DenseTeacher(torch.tensor([[5.0, 0.0]], dtype=torch.float64), one)
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    p = torch.tensor([5.0, 0.0], dtype=torch.float64).softmax(-1)
    q = torch.full((2,), 0.5, dtype=torch.float64)
    forward, reverse = (loss_of(kind, student, one, teacher) for kind in KINDS)
    assert forward.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-12)
    assert reverse.item() == pytest.approx((q * (q / p).log()).sum().item(), rel=1e-12)
    assert reverse > 2 * forward
    # `kl_div` takes log q first, and p or log p after it by a flag: both confusions give something else.
    assert forward.item() == pytest.approx(kl_div(q.log(), p, reduction="sum").item())
    confused = [kl_div(q, p, log_target=True, reduction="sum"), kl_div(q.log(), p, log_target=True, reduction="sum")]
    assert all(abs(forward.item() - wrong.item()) > 0.1 for wrong in confused)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_keeps_its_size_as_the_temperature_grows(kind):
    """At high T both are half the squared distance of centred logits over V, whatever T; without T² they vanish."""
    hidden, head, teacher, _ = problem()
    distance = hidden @ head.T - teacher.hidden_ND @ teacher.head_VD.T
    limit = (distance - distance.mean(-1, keepdim=True)).square().sum() / (2 * 11)
    for temperature in (1e3, 1e4):
        value = loss_of(kind, hidden, head, teacher, temperature=temperature)
        assert value.item() == pytest.approx(limit.item(), rel=1e-2)
        ours, expected = (torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (value, limit))
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=1e-2 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["ce", *KINDS])
def test_mean_a_token_does_not_depend_on_length_split_or_padding(kind):
    """A sum over tokens divided by rows grows with the length; a mean over positions shrinks with padding."""
    hidden, head, teacher, targets = problem(8)
    hidden = hidden.detach()

    def mean(rows, weights):
        total, _ = fused_loss(
            hidden[rows], head, weights, terms=[(kind, 1.0, 1.0)], targets_N=targets[rows], teacher=teacher.rows(rows)
        )
        return (total / (weights != 0).sum()).item()

    every = torch.arange(8)
    once = mean(every, torch.ones(8))
    assert mean(every.repeat(3), torch.ones(24)) == pytest.approx(once, rel=1e-12)
    halves = [mean(every[:3], torch.ones(3)) * 3, mean(every[3:], torch.ones(5)) * 5]
    assert sum(halves) / 8 == pytest.approx(once, rel=1e-12)
    padded = torch.cat([every, torch.tensor([0, 3, 3])])
    assert mean(padded, (torch.arange(11) < 8).double()) == pytest.approx(once, rel=1e-12)


def test_what_has_no_weight_is_never_read():
    hidden, head, teacher, targets = problem()
    weights = torch.tensor([1, 0, 1, 1, 0, 1, 1.0])
    terms = [("ce", 1.0, 1.0), ("kl", 1.0, 2.0)]
    clean, _ = fused_loss(hidden, head, weights, terms=terms, targets_N=targets, teacher=teacher)
    spoilt = hidden.detach().clone()
    spoilt[weights == 0] = torch.nan
    other = DenseTeacher(teacher.hidden_ND.clone(), teacher.head_VD)
    other.hidden_ND[weights == 0] = torch.nan
    ignored = targets.masked_fill(weights == 0, -100)
    spoilt.requires_grad_()
    found, _ = fused_loss(spoilt, head, weights, terms=terms, targets_N=ignored, teacher=other)
    assert found == clean
    gradient = torch.autograd.grad(found, spoilt)[0]
    assert gradient[weights == 0].abs().max() == 0
    torch.testing.assert_close(gradient, torch.autograd.grad(clean, hidden)[0])
    nothing, _ = fused_loss(hidden, head, torch.zeros(7), terms=terms, targets_N=targets, teacher=teacher)
    assert nothing == 0
    assert torch.autograd.grad(nothing, hidden)[0].abs().max() == 0


class Recorder(TorchDispatchMode):
    """Sizes of the tensors that operations make, by the operation's name."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        output = operation(*arguments, **(named or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        self.products += any(name in str(operation) for name in ("aten.mm", "aten.addmm"))
        return output


def test_no_table_of_all_logits_is_made_and_no_product_in_vain():
    tokens, vocabulary, chunk = 64, 97, 8
    hidden, head, teacher, targets = problem(tokens, 3, vocabulary)

    def record(compute, hidden, head):
        with Recorder() as seen:
            value = compute(hidden, head)
            if value.requires_grad:
                value.backward()
        assert seen.largest < tokens * vocabulary // 4
        return seen.products / (tokens // chunk)

    def both(hidden, head):
        terms = [("kl", 1.0, 1.0), ("ce", 1.0, 1.0), ("reverse_kl", 1.0, 2.0)]
        named = dict(terms=terms, targets_N=targets, teacher=teacher, chunk=chunk)
        return fused_loss(hidden, head, torch.ones(tokens), **named)[0]

    def logs(hidden, head):
        return token_logprobs(hidden, head, targets, chunk).sum()

    assert record(both, hidden, head) == 4
    assert record(both, hidden, head.detach()) == 3
    assert record(both, hidden.detach(), head.detach()) == 2
    assert record(logs, hidden, head.detach()) == 3
    assert record(logs, hidden.detach(), head.detach()) == 1
    with torch.no_grad():
        assert record(both, hidden, head) == 2
    assert (hidden @ head.T).numel() == tokens * vocabulary  # what the recorder would have seen


def test_half_precision_is_computed_in_float32_even_under_autocast():
    hidden, head, teacher, targets = problem(12, 16, 41)
    half = [x.detach().bfloat16().requires_grad_() for x in (hidden, head)]
    theirs = DenseTeacher(teacher.hidden_ND.bfloat16(), teacher.head_VD.bfloat16())
    wide = [x.detach().double().requires_grad_() for x in half]
    named = dict(terms=[("kl", 1.0, 1.0), ("ce", 1.0, 1.0)], targets_N=targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = fused_loss(*half, torch.ones(12), teacher=theirs, **named)
    exact, _ = fused_loss(
        *wide, torch.ones(12), teacher=DenseTeacher(theirs.hidden_ND.double(), theirs.head_VD.double()), **named
    )
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(exact.item(), rel=1e-5)
    for mine, true in zip(torch.autograd.grad(ours, half), torch.autograd.grad(exact, wide), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.double(), true, rtol=2**-8, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(2, 13), st.integers(1, 5), st.integers(0, 99))
def test_token_logprobs(tokens, vocabulary, chunk, seed):
    hidden, head, _, targets = problem(tokens, 4, vocabulary, seed)
    ours = token_logprobs(hidden, head, targets, chunk)
    expected = (hidden @ head.T).log_softmax(-1)[range(tokens), targets]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(tokens, dtype=torch.float64)
    for mine, theirs in zip(*(torch.autograd.grad(x, (hidden, head), upstream) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_the_default_chunk_changes_nothing(monkeypatch):
    monkeypatch.setattr(fused, "CPU_LOGITS", 9 * 11)
    hidden, head, teacher, _ = problem(23)
    assert chunk_tokens(head) == 9
    torch.testing.assert_close(
        loss_of("kl", hidden, head, teacher), loss_of("kl", hidden, head, teacher, chunk=7), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("terms", "change", "message"),
    [
        ([("mse", 1.0, 1.0)], {}, "found terms"),
        ([("kl", 1.0, 1.0), ("kl", 1.0, 2.0)], {}, "each once"),
        ([], {}, "found terms"),
        ([("ce", 1.0, 2.0)], {}, "1 for ce"),
        ([("kl", 1.0, 0.0)], {}, "temperatures above 0"),
        ([("ce", 1.0, 1.0)], {"targets_N": None}, "needs targets_N"),
        ([("kl", 1.0, 1.0)], {"teacher": None}, "needs a teacher"),
        ([("kl", 1.0, 1.0)], {"vocabulary": 12}, "the student"),
        ([("kl", 1.0, 1.0)], {"tokens": 6}, "the student"),
        ([("kl", 1.0, 2.0)], {"top": True}, "temperature 1"),
        ([("kl", 1.0, 1.0)], {"top": True, "tokens": 6}, "the student 7"),
    ],
)
def test_what_does_not_fit_is_refused(terms, change, message):
    hidden, head, teacher, targets = problem()
    if {"vocabulary", "tokens"} & set(change):
        _, _, teacher, _ = problem(change.get("tokens", 7), vocabulary=change.get("vocabulary", 11))
    teacher = top_of(teacher, 3) if change.get("top") else change.get("teacher", teacher)
    with pytest.raises(ValueError, match=message):
        fused_loss(
            hidden, head, torch.ones(7), terms=terms, targets_N=change.get("targets_N", targets), teacher=teacher
        )
