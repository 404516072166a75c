"""The names of the queues in Redis, which are arq's."""

QUEUE_PREFIX = "arq:queue:"  # + the node's name


def queue_name(node: str) -> str:
    return f"{QUEUE_PREFIX}{node}"


def wake_key(queue: str) -> str:
    """The list that a worker waits on. It has at most one entry, which is added with each job."""
    return f"{queue}:wake"
