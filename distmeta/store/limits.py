"""Limits that hold before there is a configuration, and on a node of its own: the environment sets them."""

import os

from distmeta.errors import UserError


def limit(variable: str, default: float, unit: str) -> float:
    """The number that an environment variable gives, or the default where it gives none.

    Raises:
        UserError: it gives no number, or a negative one.
    """
    text = os.environ.get(variable) or f"{default:g}"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value >= 0:
        return value
    raise UserError(f"{variable}: {text} is no number of {unit}: give one such as {default:g}")
