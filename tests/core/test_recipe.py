"""Recipes: files, changes, did-you-mean, one-line faults."""

import pytest

from regear.conversion.convert import build_recipe
from regear.conversion.recipes import MlaConvertRecipe
from regear.core.errors import RecipeError
from regear.core.recipe import apply_changes, closest, keys, read_yaml, validate


def test_changes_win_over_the_file_and_the_option_over_both(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("convert: {to: mla, kv_ratio: 0.75, factor: care}\nseed: 3\n")
    recipe, name = build_recipe("mla", path, ["convert.kv_ratio=1/3", "calibration.text=[a.txt, b.txt]"])
    assert name == "mla"
    assert recipe.convert.kv_ratio == "1/3"
    assert recipe.convert.ratio.denominator == 3
    assert recipe.convert.factor == "care"
    assert recipe.convert.allocate == "uniform"
    assert recipe.calibration.text == ["a.txt", "b.txt"]
    assert recipe.seed == 3


def test_one_text_file_needs_no_list():
    recipe, _ = build_recipe("mla", None, ["calibration.text=a.txt", "selection.text=[b.txt]"])
    assert (recipe.calibration.text, recipe.selection.text) == (["a.txt"], ["b.txt"])


def test_a_given_key_wins_over_its_preset():
    recipe, _ = build_recipe("mla", None, ["convert.preset=care", "convert.allocate=uniform"])
    assert (recipe.convert.factor, recipe.convert.branches, recipe.convert.allocate) == ("care", "separate", "uniform")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "holds a list"),
        ("a: [", "not YAML"),
        ("convert: {kv_ratio: 2}", "at most 1"),
        ("conv: 1", "unknown recipe key"),
    ],
)
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        build_recipe(None, path, [])
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_conversion(tmp_path):
    with pytest.raises(RecipeError, match="no recipe file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"unknown conversion 'mal' \(did you mean 'mla'\?\)"):
        build_recipe("mal", None, [])


def test_a_key_below_a_value_is_refused():
    with pytest.raises(RecipeError, match="holds a value"):
        apply_changes({"seed": 1}, ["seed.x=2"])


def test_keys_lists_every_dotted_key():
    found = list(keys(MlaConvertRecipe))
    assert "convert.kv_ratio" in found
    assert "calibration.tokens" in found
    assert closest("convert.kv_ratoi", found) == " (did you mean 'convert.kv_ratio'?)"
    assert closest("zzz", found) == ""


def test_recipes_do_not_change():
    recipe = validate(MlaConvertRecipe, {})
    with pytest.raises(Exception, match="frozen"):
        recipe.seed = 1


def test_a_name_pattern_needs_no_quotes():
    target = {}
    apply_changes(target, ["train.train=*.self_attn.*", "train.freeze=['*.norm', x]"])
    assert target == {"train": {"train": "*.self_attn.*", "freeze": ["*.norm", "x"]}}
