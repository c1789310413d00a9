"""What is measured while training: the same figures, with the teacher run once over each text."""

import pytest
from transformers import AutoModelForCausalLM

from regear.healing.measured import held_out
from regear.measure.perplexity import score_pair
from regear.tasks.text import Window
from tests.tiny import byte_tokenizer, make_text


def test_the_teacher_reads_held_out_text_once(tiny):
    teacher = AutoModelForCausalLM.from_pretrained(tiny("llama")).eval()
    student = AutoModelForCausalLM.from_pretrained(tiny("llama-tied")).eval()
    windows = [Window(make_text(200, seed=seed), "text") for seed in range(2)]
    expected = score_pair(student, teacher, byte_tokenizer(), windows)[0]
    lengths = []
    teacher.get_decoder().register_forward_hook(lambda _, __, output: lengths.append(output[0].shape[1]))
    for _ in range(3):
        found = held_out(student, teacher, byte_tokenizer(), windows)
        assert found["held_out_kl"] == pytest.approx(expected.mean_kl, rel=1e-5)
        assert found["held_out_perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
    assert [length for length in lengths if length > 100] == [200, 200]
