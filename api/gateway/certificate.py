"""When a certificate ends. Python's `ssl` shows that only of a peer's certificate that it has verified."""

import re
from binascii import a2b_base64
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

# OpenSSL takes these, too
_PEM = re.compile(r"-----BEGIN ((?:TRUSTED |X509 )?CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags of DER
_FIELDS_BEFORE = 3  # serial number, algorithm, issuer


def ends_at(chain: str) -> float:
    """When the first of these certificates ends, in Unix seconds.

    Raises ValueError if there is none, or if one cannot be read.
    """
    return min(_not_after(a2b_base64(encoded)) for _, encoded in _PEM.findall(chain))


def _not_after(certificate: bytes) -> float:
    """`Validity.notAfter` of RFC 5280, 4.1."""
    try:
        (_, body), *_ = _values(certificate)
        (_, signed), *_ = _values(body)
        fields = (value for tag, value in _values(signed) if tag != _VERSION)
        (validity,) = islice(fields, _FIELDS_BEFORE, _FIELDS_BEFORE + 1)
        _, (tag, text) = _values(validity)
    except IndexError as error:
        raise ValueError("the certificate is cut off") from error
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Each value in a sequence of DER, with its tag. Raises IndexError if it is cut off."""
    at = 0
    while at < len(der):
        tag, size, start = der[at], der[at + 1], at + 2
        if size & 0x80:  # the length of the length
            start += size & 0x7F
            size = int.from_bytes(der[at + 2 : start])
        at = start + size
        yield tag, der[start:at]
