"""What a user of the simulator can get wrong."""

from step3.errors import Step3Error


class SimulationError(Step3Error):
    """A simulation that cannot be run as asked; the message names the field and the mend."""
