"""The messages that the service sends to webhooks, for the `webhooks` section of the OpenAPI document."""

from collections.abc import Mapping
from dataclasses import dataclass

from api.jobs.examples import ASKED
from api.webhooks import examples
from api.webhooks.bodies import JobMessage, TestData, TestMessage
from worker.store.webhooks.webhooks import TEST, JobEvent

HEADERS: Mapping[str, str] = {
    "webhook-id": "ID of the delivery, the same at each attempt",
    "webhook-timestamp": "when this attempt was made, in seconds since 1970",
    "webhook-signature": "one or two signatures, `v1,` and base64, separated by a space",
}
ANSWERS: Mapping[str, str] = {
    "2XX": "Delivered. The body is ignored.",
    "410": "The webhook is disabled.",
    "default": "Not delivered; the service tries again for three days.",
}
_SUMMARIES = {
    JobEvent.QUEUED: "A job was accepted",
    JobEvent.IN_PROGRESS: "A job has started",
    JobEvent.COMPLETED: "A job is completed",
    JobEvent.FAILED: "A job has failed",
}
_TEXT = "Sent to each webhook whose `events` include this event. Verify the signature before you use the message."


@dataclass(frozen=True, kw_only=True)
class Message:
    event: str
    summary: str
    text: str
    example: JobMessage | TestMessage


MESSAGES = (
    *(
        Message(
            event=event,
            summary=_SUMMARIES[event],
            text=_TEXT,
            example=JobMessage(type=event, timestamp=ASKED, data=examples.MESSAGES[event]),
        )
        for event in JobEvent
    ),
    Message(
        event=TEST,
        summary="A test of the webhook",
        text="Sent when a test is requested, regardless of the webhook's `events`.",
        example=TestMessage(timestamp=ASKED, data=TestData(webhook_id=examples.WEBHOOK_ID)),
    ),
)
