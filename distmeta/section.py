"""What every section of the configuration has in common."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def check_pattern(pattern: str) -> str:
    """The pattern itself.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(check_pattern)]
"""The type of a setting that is a regular expression."""


class Section(BaseModel):
    """A typed group of settings, declared beside the code that reads it.

    The string below a field is its line of meaning: `distmeta config` prints it. Unknown keys, wrong types and numbers
    that are not finite are refused.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        validate_assignment=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
