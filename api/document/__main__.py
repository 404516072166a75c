"""`python -m api.document` prints the document; with `--list`, every call on one page."""

import sys

from api.document.listing import on_one_page
from api.document.openapi import document, text

sys.stdout.write("\n".join([*on_one_page(), ""]) if "--list" in sys.argv[1:] else text(document()))
