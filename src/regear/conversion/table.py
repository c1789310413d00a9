"""The conversions that `regear convert --to NAME` knows."""

from regear.conversion.recipes import MlaConvertRecipe
from regear.core.registry import Row, Table

CONVERSIONS = Table(
    "conversion",
    [
        Row(
            "mla",
            MlaConvertRecipe,
            "regear.conversion.mla_decoupled:open_mla",
            "grouped-query attention → multi-head latent attention",
        ),
    ],
)
