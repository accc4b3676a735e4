"""The compiled part of the wire: rings of headers between processes of a host, and the fp8 codec."""

from step3.wire.native.library import HEADER_BYTES, Found, Reader, Writer, open_library, why_not

__all__ = ["HEADER_BYTES", "Found", "Reader", "Writer", "open_library", "why_not"]
