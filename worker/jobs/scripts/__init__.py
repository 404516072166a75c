"""The Lua scripts, each atomic in Redis, each with the prelude and the table of states in front of it."""

import json
from importlib.resources import files

from arq.connections import ArqRedis
from redis.commands.core import AsyncScript

from worker.jobs.model import MAY_FOLLOW


def load(redis: ArqRedis, *names: str) -> AsyncScript:
    """The script `name`.lua, behind what it shares with others, ready to be called. Redis caches it; a Redis that has
    forgotten it is sent it again."""
    return redis.register_script(text("prelude", *names))


def text(*names: str) -> str:
    """The table of states, and these scripts one behind the other."""
    folder = files(__name__)
    table = {state: dict.fromkeys(followers, True) for state, followers in MAY_FOLLOW.items()}
    states = f"local MAY_FOLLOW = cjson.decode('{json.dumps(table)}')\n"
    return states + "".join((folder / f"{name}.lua").read_text() for name in names)
