"""Replace each NAME-PASSWORD with a new password of 64 hexadecimal digits: `python3 passwords.py USERS.ACL`

Passwords are never arguments of a program, which every user of the machine could read. Existing passwords, and the
owner and mode of the file, are kept.
"""

import re
import secrets
import sys
from pathlib import Path


def main(file: Path) -> None:
    file.write_text(re.sub(r"\b[A-Z]+-PASSWORD\b", lambda _: secrets.token_hex(32), file.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
