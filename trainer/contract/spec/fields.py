"""Field types of the spec: strict models, bounded numbers and names."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from trainer.contract.strict_types import of_their_kind

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_STEPS = 10**9


class Strict(BaseModel):
    """Strict base model: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )
    _kinds = of_their_kind


def _not_an_id(name: str) -> str:
    if name.startswith("run_"):
        raise ValueError("a name must not begin with 'run_', which is how ids begin")
    return name


Name = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN, max_length=64), AfterValidator(_not_an_id)
]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Tokens = Annotated[int, Field(ge=1, le=10**15)]
Frac = Annotated[float, Field(ge=0.0, le=1.0)]
LearningRate = Annotated[float, Field(ge=1e-12, le=100.0)]
Text = Annotated[str, StringConstraints(max_length=4096)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def do_not_fit(place: tuple[str, ...], sentence: str) -> PydanticCustomError:
    """A validation error of two fields together, reported for the one at `place`."""
    return PydanticCustomError("do_not_fit", "{sentence}", {"sentence": sentence, "at": place})
