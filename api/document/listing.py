"""Every call of the API on one page, for developers."""

from collections.abc import Iterator

from api.resources import CALLS


def on_one_page() -> Iterator[str]:
    """One line per call: method, path, ID, permission, body, and the statuses and codes of its responses."""
    for call in CALLS:
        body = call.body.__name__ if call.body else "-"
        statuses = ",".join(str(reply.status) for reply in call.replies)
        codes = " ".join(refusal.code for refusal in call.refusals)
        name = f"{call.method:6} {call.path:40} {call.id:22} {call.permission:15}"
        yield f"{name} {body:16} {statuses:11} {codes}".rstrip()
