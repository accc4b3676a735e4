"""What can be wrong with the way a request wants its tokens chosen."""

from step3.errors import Step3Error


class ParamsError(Step3Error, ValueError):
    """A sampling parameter cannot be used; the message names the field, its value and what would do."""


class ConstraintError(Step3Error, ValueError):
    """A schema, pattern or grammar cannot be compiled, or the means to compile it are missing."""
