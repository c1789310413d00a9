"""Recipes of the conversions; no torch here, so that they can be checked and listed at once."""

from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from regear.core.recipe import Recipe, closest
from regear.tasks.recipes import TextRecipe

# Named bundles; a key given beside a preset wins over it.
PRESETS: dict[str, dict[str, Any]] = {
    "best": {},
    "care": {"factor": "care", "branches": "separate", "allocate": "care"},
    "care-code": {"factor": "care", "branches": "separate", "allocate": "care_code"},
    "care-uniform": {"factor": "care", "branches": "joint", "allocate": "uniform"},
    "svd": {"factor": "svd", "branches": "joint", "allocate": "uniform"},
    "decoupled": {"rope": "decoupled"},
    "decoupled-grid": {"rope": "decoupled", "rope_pairs": "grid"},
    "transmla": {"rope": "decoupled", "factor": "balanced", "branches": "joint", "allocate": "uniform"},
    "parity": {"rope": "decoupled", "kv_ratio": 1},
    "forward-only": {"factor": "attention", "branches": "joint", "allocate": "measured"},
}


class CalibrationRecipe(TextRecipe):
    """Text to fit on: more of it, some of it as chat."""

    tokens: int = Field(30720, ge=1)
    chat: float = Field(0.25, ge=0, le=1)


class MlaRecipe(Recipe):
    """How grouped-query attention becomes latent attention."""

    to: Literal["mla"] = "mla"
    preset: str | None = None
    kv_ratio: float | str = 0.5
    factor: Literal["svd", "care", "balanced", "attention", "fisher"] = "fisher"
    value_weight: Literal["auto"] | float | None = None
    branches: Literal["joint", "separate"] = "joint"
    allocate: Literal["uniform", "care", "care_code", "energy", "measured", "curvature"] = "curvature"
    align: int = Field(1, ge=1)
    rope: Literal["exact", "decoupled"] = "exact"
    rope_dim: Literal["auto"] | int = "auto"
    rope_pairs: Literal["auto", "free", "grid"] = "auto"
    freqfold: Literal["auto"] | int | None = None
    format: Literal["regear_mla", "deepseek_v3", "youtu"] = "regear_mla"
    latent_pad: int | None = Field(None, ge=1)
    dtype: Literal["source", "bfloat16", "float32"] = "source"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Lay the preset under what was given, and pick an allocation that the factor can carry."""
        if not isinstance(values, dict):
            return values
        name = values.get("preset")
        if name is not None:
            if not isinstance(name, str) or name not in PRESETS:
                raise ValueError(f"unknown preset {name!r}{closest(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
            values = {**PRESETS[name], **values}
        if values.get("format", "regear_mla") != "regear_mla" and "rope" not in values:
            values = {**values, "rope": "decoupled"}
        plain = values.get("factor", "fisher") != "fisher" or values.get("rope") == "decoupled"
        if plain and "allocate" not in values:
            values = {**values, "allocate": "uniform"}  # servers hold one latent width for all layers
        return values

    @field_validator("kv_ratio")
    @classmethod
    def _ratio(cls, value: float | str) -> float | str:
        try:
            found = Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"found {value!r}; wanted a number or a fraction such as 1/3") from None
        if not 0 < found <= 1:
            raise ValueError(f"found {value}; wanted above 0 and at most 1 (1 keeps the cache as large as it is)")
        return value

    @model_validator(mode="after")
    def _format_holds(self) -> "MlaRecipe":
        if self.format != "regear_mla" and self.rope != "decoupled":
            raise ValueError(f"format={self.format} holds decoupled keys only; found rope={self.rope}")
        if self.format != "regear_mla" and self.allocate != "uniform":
            raise ValueError(f"format={self.format} has one latent width for all layers; found {self.allocate}")
        return self

    @model_validator(mode="after")
    def _rope_fits(self) -> "MlaRecipe":
        if self.rope == "exact":
            for key in ("rope_dim", "rope_pairs", "freqfold"):
                if getattr(self, key) not in (None, "auto"):
                    raise ValueError(f"{key} belongs to rope=decoupled; found rope=exact")
            return self
        if self.factor == "attention":
            raise ValueError("factor=attention weighs keys that turn; with rope=decoupled use fisher, balanced or care")
        if self.branches != "joint":
            raise ValueError(f"rope=decoupled has one latent for keys and values; found branches={self.branches}")
        if self.allocate == "measured":
            raise ValueError("allocate=measured tries layers with rope=exact only; found rope=decoupled")
        if self.freqfold is not None and self.factor == "fisher":
            raise ValueError("freqfold belongs to components by energy: give factor=balanced, care or svd with it")
        if self.rope_pairs == "free" and (self.format != "regear_mla" or self.factor != "fisher"):
            raise ValueError(
                "rope_pairs=free needs factor=fisher and format=regear_mla; others hold evenly spaced ones"
            )
        if isinstance(self.rope_dim, int) and (self.rope_dim < 2 or self.rope_dim % 2):
            raise ValueError(f"rope_dim must be an even number of floats, found {self.rope_dim}")
        if isinstance(self.freqfold, int) and self.freqfold < 1:
            raise ValueError(f"freqfold must be at least 1, found {self.freqfold}")
        return self

    @property
    def grid(self) -> bool:
        """Whether the turning frequencies must be evenly spaced."""
        return self.rope_pairs == "grid" or self.format != "regear_mla" or self.factor != "fisher"

    @model_validator(mode="after")
    def _fits(self) -> "MlaRecipe":
        if self.value_weight is not None and self.factor != "attention":
            raise ValueError(f"value_weight belongs to factor=attention; found factor={self.factor}")
        if isinstance(self.value_weight, float) and self.value_weight <= 0:
            raise ValueError(f"value_weight must be above 0; found {self.value_weight}")
        if self.allocate == "curvature" and self.factor != "fisher":
            raise ValueError(f"allocate=curvature compares losses and needs factor=fisher; found factor={self.factor}")
        return self

    @property
    def ratio(self) -> Fraction:
        """The cache's share of the source's, exactly."""
        return Fraction(str(self.kv_ratio))


class ConvertRecipe(Recipe):
    """What every conversion takes: its own part, texts by use, a seed."""

    seed: int = Field(0, ge=0)
    calibration: CalibrationRecipe = Field(default_factory=lambda: CalibrationRecipe.model_validate({}))
    selection: TextRecipe = Field(default_factory=lambda: TextRecipe.model_validate({}))
    evaluation: TextRecipe = Field(default_factory=lambda: TextRecipe.model_validate({}))


class MlaConvertRecipe(ConvertRecipe):
    """`regear convert --to mla`."""

    convert: MlaRecipe = Field(default_factory=lambda: MlaRecipe.model_validate({}))
