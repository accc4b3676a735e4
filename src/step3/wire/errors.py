"""What goes wrong between two endpoints."""

from step3.errors import Step3Error


class WireError(Step3Error):
    """The wire was asked for what it cannot do: an address, a size or a secret that does not fit."""


class FrameError(WireError):
    """Bytes that are no frame, or a frame that may not come now; its connection ends."""


class PeerGoneError(WireError):
    """The peer's connection has ended; the message names the peer."""


class NoSlotError(WireError):
    """More calls are outstanding at a peer than the connection has slots."""


class DeadlineError(WireError):
    """What was waited for did not come in time; the message names what is missing."""
