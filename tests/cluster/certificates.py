"""Certificates of an authority that is made for a test."""

import shutil
import subprocess
from pathlib import Path

import pytest

from step3.cluster.tls import TLSFiles


def make_files(folder: Path, name: str = "one") -> TLSFiles:
    """A certificate of an authority of its own; skips where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = folder / f"{name}-key.pem", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run(command, check=True, capture_output=True)
    return TLSFiles(str(certificate), str(key), str(certificate))
