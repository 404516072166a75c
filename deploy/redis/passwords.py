"""Write a new password of 64 hexadecimal digits in the place of each NAME-PASSWORD: `python3 passwords.py USERS.ACL`

It is never an argument of a program, where every user of the machine could read it. Passwords that the file has already
are kept, as are its owner and mode.
"""

import re
import secrets
import sys
from pathlib import Path


def main(file: Path) -> None:
    file.write_text(re.sub(r"\b[A-Z]+-PASSWORD\b", lambda _: secrets.token_hex(32), file.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
