"""Reads answers with an enum value that the client does not know, with the client of openapi-python-client."""

import json
import sys
from pathlib import Path

from vps_snapshots_client import models

answers = json.loads(Path("answers.json").read_text())
read = {name: getattr(models, name).from_dict(body).to_dict() for name, body in answers.items()}
sys.stdout.write(json.dumps(read))
