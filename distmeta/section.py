"""What every section of the configuration has in common."""

from pydantic import BaseModel, ConfigDict


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
