"""What a user of the planner can get wrong, each error naming it."""

from step3.errors import Step3Error


class ModelError(Step3Error):
    """A model's description is unknown, incomplete or contradicts itself."""


class HardwareError(Step3Error):
    """A hardware entry is unknown, incomplete or impossible."""


class WorkloadError(Step3Error):
    """A context length, distribution or trace cannot be read."""


class PlanError(Step3Error):
    """A request that no deployment can meet, or an option out of its range."""
