"""TLS between the hosts of a deployment, both sides with a certificate.

Whoever has a certificate of the deployment's own authority is a member, whatever its name: instances come and
go at addresses that nobody knows before. The secret is proved inside.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from step3.errors import Step3Error


@dataclass(frozen=True)
class TLSFiles:
    """Files in PEM format.

    Attributes:
        cert, key: this host's certificate and its private key.
        ca: certificates of the authorities whose members may take part.
    """

    cert: str
    key: str
    ca: str

    @classmethod
    def of(cls, cert: str | None, key: str | None, ca: str | None) -> TLSFiles | None:
        """The three of them, or None if there are none.

        Raises:
            Step3Error: one is missing, or cannot be read.
        """
        if cert is None and key is None and ca is None:
            return None
        if cert is None or key is None or ca is None:
            raise Step3Error(
                "TLS between hosts needs a certificate, its key and the authority's certificate: give "
                "--cluster-tls-cert, --cluster-tls-key and --cluster-tls-ca"
            )
        files = cls(cert, key, ca)
        files.listening()
        return files

    def listening(self) -> ssl.SSLContext:
        """For who is connected to."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def connecting(self) -> ssl.SSLContext:
        """For who connects."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.cert, self.key)
            context.load_verify_locations(self.ca)
        except OSError as error:
            files = f"{self.cert}, {self.key} and {self.ca}"
            raise Step3Error(f"TLS between hosts cannot use {files}: {error.strerror or error}") from None
        return context
