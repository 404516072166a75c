"""When a certificate ends, compared with what openssl says."""

import ssl
import subprocess
from pathlib import Path

import pytest

from api.gateway.certificate import ends_at
from tests.conftest import needs


def made(folder: Path, days: int) -> tuple[str, float]:
    """A certificate, and when it ends."""
    needs("openssl")
    file = folder / f"{days}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=gateway-1.example.net", "-keyout", str(folder / "key"), "-out", str(file)]
    subprocess.run([*command, "-days", str(days), *names], check=True, capture_output=True)
    shown = subprocess.run(
        ["openssl", "x509", "-enddate", "-noout", "-in", file], check=True, capture_output=True, text=True
    )
    return file.read_text(), ssl.cert_time_to_seconds(shown.stdout.strip().removeprefix("notAfter="))


@pytest.mark.parametrize("days", [825, 20_000])  # from 2050 on, the time has another form
def test_a_certificate_ends_when_openssl_says_so(tmp_path: Path, days: int) -> None:
    text, end = made(tmp_path, days)
    assert ends_at(text) == end


def test_the_first_of_a_chain_to_end_counts(tmp_path: Path) -> None:
    long, _ = made(tmp_path, 825)
    short, end = made(tmp_path, 30)
    assert ends_at(f"leaf\n{long}\nauthority\n{short}") == end


def test_what_openssl_also_takes_is_read(tmp_path: Path) -> None:
    text, end = made(tmp_path, 825)
    (tmp_path / "crt").write_text(text)
    command = ["openssl", "x509", "-in", str(tmp_path / "crt"), "-trustout", "-addtrust", "serverAuth"]
    trusted = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "TRUSTED" in trusted
    assert ends_at(trusted) == end


@pytest.mark.parametrize("kept", [0, 100, 200])
def test_a_file_without_a_whole_certificate_is_refused(tmp_path: Path, kept: int) -> None:
    text, _ = made(tmp_path, 825)
    with pytest.raises(ValueError, match=r"."):
        ends_at(f"{text[:kept]}\n-----END CERTIFICATE-----\n" if kept else "")
