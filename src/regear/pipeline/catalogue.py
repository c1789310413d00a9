"""What regear knows, read from the tables: for `regear ls`, `regear schema` and the docs."""

from typing import Any

from regear.auditing.requirements import Gates
from regear.conversion.recipes import PRESETS
from regear.conversion.table import CONVERSIONS
from regear.core.errors import RecipeError
from regear.core.recipe import Recipe, closest
from regear.engine.drafters.table import DRAFTERS
from regear.healing.recipes import HealRecipe
from regear.models.builtin import EMBEDDED
from regear.models.families import FAMILIES
from regear.tasks.choice import TASKS
from regear.train.objective_recipes import OBJECTIVES


def methods() -> list[dict[str, str]]:
    """Rows of every table: kind, name, help."""
    from regear.conversion.collect import COLLECTORS
    from regear.conversion.factors import FACTORS

    tables = (CONVERSIONS, COLLECTORS, OBJECTIVES, DRAFTERS)
    rows = [{"kind": table.kind, "name": row.name, "help": row.help} for table in tables for row in table]
    rows += [{"kind": "factor", "name": name, "help": factor.help} for name, factor in FACTORS.items()]
    rows += [{"kind": "preset", "name": name, "help": _settings(keys)} for name, keys in PRESETS.items()]
    rows += [{"kind": "family", "name": name, "help": "source model_type"} for name in FAMILIES]
    rows += [{"kind": "model", "name": name, "help": f"embedded, {entry.licence}"} for name, entry in EMBEDDED.items()]
    rows += [{"kind": "task", "name": name, "help": "multiple choice"} for name in TASKS]
    return rows


def _settings(keys: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items()) or "the defaults"


def recipe_schema(verb: str) -> dict[str, Any]:
    """JSON schema of a verb's recipe, or of an audit's gates; for `convert`, one entry a conversion.

    Raises:
        RecipeError: the verb takes no recipe.
    """
    from regear.pipeline.run import ChainRecipe

    models: dict[str, type[Recipe]] = {"heal": HealRecipe, "run": ChainRecipe, "gates": Gates}
    if verb in models:
        return models[verb].model_json_schema()
    if verb != "convert":
        known = ["convert", *models]
        raise RecipeError(f"no recipe for {verb!r}{closest(verb, known)}; known: {', '.join(known)}")
    return {row.name: row.recipe.model_json_schema() for row in CONVERSIONS if row.recipe is not None}
