"""What is wrong with a checkpoint, in words that name the file, the tensor or the field."""

from step3.errors import Step3Error


class CheckpointError(Step3Error):
    """A checkpoint cannot be used as it is.

    The message names the file, then the tensor or field, what was expected and what was found.
    """
