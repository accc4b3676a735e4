"""Numbers as people read them: three digits and a unit."""


def count(number: float) -> str:
    """10330046464 -> '10.3 B', as parameters and tokens are counted."""
    return _scaled(number, ("", "K", "M", "B", "T"))


def size(nbytes: float) -> str:
    """641939825664 -> '642 GB', in powers of 1000."""
    return _scaled(nbytes, ("B", "KB", "MB", "GB", "TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    unit = 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {units[unit]}".rstrip()
