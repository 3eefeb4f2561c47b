"""TLS for connections to a scheduler: its files are checked before anybody is asked."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Any

SCHEME = "tls://"
OPTIONS = "--tls-ca, --tls-cert and --tls-key (in a job: tls_* of [cluster])"


@dataclass(frozen=True)
class Tls:
    """Files of TLS, in PEM format; all three or none of them.

    Parameters
    ----------
    ca : str or None
        Certificates of the authority that signed the scheduler's.
    cert : str or None
        The certificate of this client, which the scheduler asks for.
    key : str or None
        Its private key, without a passphrase.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def check(self, scheduler: str) -> None:
        """Refuse files that don't fit each other or the address of a scheduler.

        Without files, what Dask's own configuration says about TLS counts.

        Raises
        ------
        FileNotFoundError, ValueError
        """
        given = {f"tls_{name}": path for name, path in vars(self).items()}
        missing = [name for name, path in given.items() if path is None]
        if len(missing) == len(given):
            _check_without_files(scheduler)
            return
        if missing:
            msg = (
                f"TLS needs three files, but {' and '.join(missing)} isn't given; give "
                f"{OPTIONS}"
            )
            raise ValueError(msg)
        if not scheduler.startswith(SCHEME):
            msg = (
                "certificates are for addresses such as tls://10.0.0.5:8786, got "
                f"{scheduler}; change the address, or leave out {OPTIONS}"
            )
            raise ValueError(msg)
        for name, path in given.items():
            if not os.path.isfile(str(path)):
                msg = f"there is no file {path}; check {name}"
                raise FileNotFoundError(msg)
        self._check_contents()

    def security(self) -> Any:
        """Return what Dask takes; None without files: its configuration counts."""
        if self.ca is None:
            return None
        from distributed import Security

        return Security(
            require_encryption=True,
            tls_ca_file=self.ca,
            tls_client_cert=self.cert,
            tls_client_key=self.key,
        )

    def _check_contents(self) -> None:
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            msg = (
                f"{self.ca} holds no certificate ({_reason(error)}); check tls_ca: it "
                "takes that of the authority, in PEM format"
            )
            raise ValueError(msg) from error
        try:
            # Without a password of ours, OpenSSL would ask whoever is at the terminal.
            context.load_cert_chain(str(self.cert), self.key, password=_refused)
        except (OSError, ValueError) as error:
            msg = (
                f"{self.cert} and {self.key} aren't a certificate and its private key "
                f"({_reason(error)}); check tls_cert and tls_key: PEM files, the key "
                "without a passphrase"
            )
            raise ValueError(msg) from error


def _check_without_files(scheduler: str) -> None:
    if not scheduler.startswith(SCHEME):
        return
    from distributed import Security

    configured = Security().get_tls_config_for_role("client")
    if not (configured["ca_file"] and configured["cert"]):
        msg = f"{scheduler} asks for certificates; give {OPTIONS}"
        raise ValueError(msg)


def _refused() -> str:
    msg = "the key has a passphrase"
    raise ValueError(msg)


def _reason(error: Exception) -> str:
    """Return what OpenSSL, the system, or we ourselves say."""
    told = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(told or error)
