"""Reads answers with an enum value that the client does not know, with the models of datamodel-codegen."""

import json
import sys
from pathlib import Path

import models

answers = json.loads(Path("answers.json").read_text())
read = {name: getattr(models, name).model_validate(body).model_dump(mode="json") for name, body in answers.items()}
sys.stdout.write(json.dumps(read))
