"""Numbers as people read them: with their units, accuracies in per cent with 95% intervals."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from distmeta.evaluate.sentences import interval_text

NONE = "–"
"""What stands for a number that is not there."""
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction as `67.4%`, or `67.4 ± 2.3%`, or `99.5 (98.5 to 100.0)%`: see `interval_text`."""
    return NONE if value is None else f"{interval_text(value, half_width)}%"


def points(value: float | None, half_width: float | None = None) -> str:
    """A difference of fractions in percentage points: `+40.8 ± 3.0`."""
    if value is None:
        return NONE
    return f"{100 * value:+.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")


def score(row: Mapping[str, Any], key: str) -> str:
    """The accuracy under a key of a row, with the interval that stands beside it."""
    return percent(row.get(key), row.get(f"{key}_ci95"))


def duration(seconds: float | None) -> str:
    """`0.45 s`, `42.1 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    raise AssertionError(whole)


def memory(size: float | None) -> str:
    """Bytes as `812 MiB` or `1.42 GiB`."""
    if size is None:
        return NONE
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def money(amount: float | None, currency: str) -> str:
    """`12.40 USD`; small sums with two digits that count."""
    if amount is None:
        return NONE
    return f"{amount:.2f} {currency}" if amount >= 0.1 else f"{Decimal(f'{amount:.2g}'):f} {currency}"


def count(value: float | None) -> str:
    """`12,800`, and large ones as `1.09 × 10¹²`."""
    if value is None:
        return NONE
    if value < 1e7:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def setting(value: Any) -> str:
    """The value of a configuration key."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
