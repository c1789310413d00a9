"""The recipe of a text and its use; no torch here."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from regear.core.recipe import Recipe


class TextRecipe(Recipe):
    """Texts for one use: files (text, or JSONL rows `{text, weight}`) or `builtin`; how many tokens to take; the share
    of windows to read as a user's turn of the chat template."""

    text: list[str] = Field(default_factory=lambda: ["builtin"])
    tokens: int = Field(8192, ge=1)
    chat: float = Field(0.0, ge=0, le=1)

    @field_validator("text", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        """A single file need not be written as a list."""
        return [value] if isinstance(value, str) else value

    def named(self) -> dict[str, Any]:
        """What a checkpoint records: file names without their places."""
        return {**self.model_dump(mode="json"), "text": [Path(name).name for name in self.text]}
