"""Adapters: only they train, they fold in as peft folds them, and the names come back."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import regear
from regear.core.errors import RecipeError
from regear.models.load import load_model
from regear.train import lora
from regear.train.optim import select
from regear.train.recipes import LoraRecipe
from tests.tiny import small
from tests.train.small import make, weights

RECIPE = LoraRecipe(rank=3, alpha=5.0)


@pytest.fixture(scope="module")
def mla(tmp_path_factory, tiny, text):
    place = tmp_path_factory.mktemp("lora")
    regear.convert(tiny("llama"), place / "mla", *small(text), to="mla")
    return place / "mla"


def randomise(model):
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if ".lora_" in name:
                parameter.normal_()


@pytest.mark.parametrize("kind", ["llama", "regear_mla"])
def test_merging_is_what_peft_does(kind, mla):
    def load():
        return make() if kind == "llama" else load_model(mla)

    model, before = load(), weights(load())
    names = select(model, ["*.self_attn.*", "*.mlp.*", "*norm*"], ["*.layers.0.mlp.*"])
    chosen = lora.targets(model, names)
    assert chosen
    assert not any("norm" in name for name in chosen)
    lora.inject(model, RECIPE, names)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.lora_{side}.default.weight" for name in chosen for side in "AB"}

    theirs = get_peft_model(load(), LoraConfig(r=3, lora_alpha=5, target_modules=chosen))
    randomise(model)
    randomise(theirs)
    found = lora.merged(model.state_dict(), RECIPE)
    expected = theirs.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-5, atol=1e-6)
    changed = {name for name in before if not torch.equal(before[name], found[name])}
    assert changed == {f"{name}.weight" for name in chosen}


def test_without_peft_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'regear\[train\]'"):
        lora.targets(make(), ["model.layers.0.self_attn.q_proj.weight"])
