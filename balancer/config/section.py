"""What all groups of settings share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from balancer.config.values import mapped


class Section(BaseModel):
    """A group of settings: unknown names are errors, nothing changes after loading, errors never show the input."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        return mapped(value)
