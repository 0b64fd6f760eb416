"""An authority of the tests' own and what it certifies: a good server, an expired one, somebody else's."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pytest

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """Made with the `openssl` command, in a folder of a test's."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> "Authority":
        if which("openssl") is None:
            pytest.skip("the openssl command is not here to make certificates with")
        _openssl(
            folder, "req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "9"
        )
        return cls(folder)

    def server(self, host: str = "localhost", days: int = 9) -> ssl.SSLContext:
        """What a server needs to pass for a host; with negative days it has expired."""
        name = f"{host}{days}"
        (self.folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{host}\n")
        key, request, certificate = f"{name}.key", f"{name}.csr", f"{name}.crt"
        _openssl(self.folder, "req", "-new", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={host}")
        _openssl(
            self.folder, "x509", "-req", "-in", request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", f"{name}.ext", "-out", certificate,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / certificate, self.folder / key)
        return context

    def trust(self) -> ssl.SSLContext:
        """For clients who trust this authority and no other."""
        return ssl.create_default_context(cafile=str(self.folder / "ca.crt"))


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"this openssl cannot do what the test needs: {done.stderr.strip()[-200:]}")
