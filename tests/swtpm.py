"""Reads and writes a value in a TPM's state: the real swtpm on a state folder that no guest uses (TPM 2.0)."""

import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INDEX = 0x01500001
BYTES = 16
_OWNER, _PASSWORD = 0x40000001, 0x40000009
_DEFINE, _WRITE, _READ = 0x12A, 0x137, 0x14E
_READ_AND_WRITE = 0x2 | 0x4 | 0x20000 | 0x40000 | 0x2000000  # by owner and by value, no dictionary attack logic
_ALREADY_DEFINED = 0x14C
_START_SECONDS = 60.0


def write(folder: Path, text: str) -> None:
    """Raises AssertionError if the TPM refuses."""
    with _tpm(folder) as tpm:
        public = struct.pack(">IHIHH", INDEX, 0x000B, _READ_AND_WRITE, 0, BYTES)
        body = struct.pack(">H", 0) + struct.pack(">H", len(public)) + public
        code, _ = _ask(tpm, _DEFINE, struct.pack(">I", _OWNER), body)
        assert code in {0, _ALREADY_DEFINED}, hex(code)
        data = text.encode().ljust(BYTES, b"\0")
        handles = struct.pack(">II", _OWNER, INDEX)
        code, _ = _ask(tpm, _WRITE, handles, struct.pack(">H", BYTES) + data + struct.pack(">H", 0))
        assert code == 0, hex(code)


def read(folder: Path) -> str:
    with _tpm(folder) as tpm:
        code, answer = _ask(tpm, _READ, struct.pack(">II", _OWNER, INDEX), struct.pack(">HH", BYTES, 0))
        assert code == 0, hex(code)
        return answer[6 : 6 + BYTES].rstrip(b"\0").decode()


@contextmanager
def _tpm(folder: Path) -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory(prefix="tpm-", dir="/tmp") as place:
        data, control = f"{place}/d", f"{place}/c"
        arguments = ["--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
        sockets = ["--server", f"type=unixio,path={data}", "--ctrl", f"type=unixio,path={control}"]
        process = subprocess.Popen(["swtpm", "socket", *arguments, *sockets])
        try:
            with socket.socket(socket.AF_UNIX) as tpm:
                tpm.settimeout(_START_SECONDS)
                deadline = time.monotonic() + _START_SECONDS
                while True:
                    with suppress(FileNotFoundError, ConnectionRefusedError):
                        tpm.connect(data)
                        break
                    assert process.poll() is None, "swtpm has exited"
                    assert time.monotonic() < deadline, "swtpm did not start"
                    time.sleep(0.02)
                yield tpm
        finally:
            process.terminate()
            process.wait()


def _ask(tpm: socket.socket, command: int, handles: bytes, parameters: bytes) -> tuple[int, bytes]:
    """Return the response code and the rest; all passwords are empty."""
    password = struct.pack(">IHBH", _PASSWORD, 0, 0, 0)
    body = handles + struct.pack(">I", len(password)) + password + parameters
    tpm.sendall(struct.pack(">HII", 0x8002, 10 + len(body), command) + body)
    answer = tpm.recv(4096)
    return struct.unpack_from(">I", answer, 6)[0], answer[10:]
