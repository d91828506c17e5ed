"""Numbers as people write them."""

import math


def seconds(value: float | None) -> str:
    """A duration for people: three digits and a fitting unit.

    >>> seconds(0.00123), seconds(12.3), seconds(None)
    ('1.23 ms', '12.3 s', 'unknown')
    """
    if value is None:
        return "unknown"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale or unit == "µs":
            return f"{value / scale:.3g} {unit}"
    return ""


def dollars(value: float) -> str:
    """An amount with two significant digits, never in powers of ten.

    >>> dollars(0.00000217), dollars(1.5)
    ('$0.0000022', '$1.50')
    """
    digits = max(2, 1 - math.floor(math.log10(value))) if value > 0 else 2
    return f"${value:.{digits}f}"
