"""What keeps a benchmark from running."""

from step3.errors import Step3Error


class BenchError(Step3Error):
    """A benchmark that cannot be run as asked."""
