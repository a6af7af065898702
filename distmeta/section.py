"""What every section of the configuration has in common."""

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, WrapValidator

from distmeta.errors import UserError, one_line


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


def finds(pattern: str, name: str, key: str) -> bool:
    """Whether a pattern that the setting `key` gives finds something in a name.

    Raises:
        UserError: it takes more than a second, as patterns do that can read the same text in very many ways.
    """
    import regex  # which can be stopped, as Python's own cannot

    try:
        return regex.search(pattern, name, timeout=1) is not None
    except TimeoutError:
        raise UserError(
            one_line(
                f"{key}: {pattern} takes too long to be looked for in {name}; repeat nothing that is itself repeated"
            )
        ) from None
    except regex.error as error:
        raise UserError(one_line(f"{key}: {pattern} is no regular expression: {error}")) from None


Pattern = Annotated[str, AfterValidator(check_pattern)]
"""The type of a setting that is a regular expression."""


def _checked_if_set(value: Any, check: Callable[[Any], Any]) -> Any:
    return None if value is None else check(value)


Value = TypeVar("Value")
ByRecipe = Annotated[Value, WrapValidator(_checked_if_set)]
"""The type of a setting that is `UNSET` until `distmeta.recipes.filled` gives it a value, as everywhere but there."""
UNSET: Any = None


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

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())
