"""The cozepy SDK against an upstream, a function a scenario: `coze_sdk.py BASE_URL KEY OTHER_KEY BOT` tells what became of each.

The keys are of two accounts. Output: one JSON object, scenario to null or to the traceback of its failure.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback

from cozepy import (
    AsyncCoze,
    AsyncTokenAuth,
    ChatEventType,
    ChatStatus,
    Coze,
    CozeAPIError,
    Message,
    MessageObjectString,
    MessageType,
    TokenAuth,
)

BASE, KEY, OTHER, BOT = sys.argv[1:5]
ASK = [Message.build_user_question_text("grüße 你好")]
SAID = "You said: grüße 你好"
client = Coze(auth=TokenAuth(KEY), base_url=BASE)
other = Coze(auth=TokenAuth(OTHER), base_url=BASE)


def asking(**more):
    return {"bot_id": BOT, "user_id": "u", "additional_messages": ASK} | more


def refused(call, code):
    """A call that has to fail with this code."""
    said = None
    try:
        call()
    except CozeAPIError as error:
        said = error
    assert said is not None, "it was not refused"
    assert (said.code, bool(said.logid)) == (code, True), said


def told(events):
    """The answer, and the chat as it ended."""
    deltas = [event.message for event in events if event.event == ChatEventType.CONVERSATION_MESSAGE_DELTA]
    assert all(message.type == MessageType.ANSWER for message in deltas)
    return "".join(message.content for message in deltas), events[-1].chat


def chat_streams():
    stream = client.chat.stream(**asking())
    events = list(stream)
    assert stream.response.logid
    names = [event.event for event in events]
    assert names[:2] == [ChatEventType.CONVERSATION_CHAT_CREATED, ChatEventType.CONVERSATION_CHAT_IN_PROGRESS]
    assert names[-2:] == [ChatEventType.CONVERSATION_MESSAGE_COMPLETED, ChatEventType.CONVERSATION_CHAT_COMPLETED]
    text, chat = told(events)
    assert (text, events[-2].message.content, chat.status) == (SAID, SAID, ChatStatus.COMPLETED)
    assert chat.usage.token_count == chat.usage.input_count + chat.usage.output_count > 0
    again = list(client.chat.stream(**asking(conversation_id=chat.conversation_id)))
    assert told(again)[1].conversation_id == chat.conversation_id
    assert told(again)[1].id != chat.id


def extras():
    """The other key's first chat tells everything that Coze may tell."""
    events = list(other.chat.stream(**asking()))
    whole = [event.message for event in events if event.event == ChatEventType.CONVERSATION_MESSAGE_COMPLETED]
    kinds = {message.type for message in whole}
    assert {MessageType.FUNCTION_CALL, MessageType.TOOL_RESPONSE, MessageType.VERBOSE, MessageType.FOLLOW_UP} <= kinds
    assert any(event.event == ChatEventType.CONVERSATION_AUDIO_DELTA for event in events)
    assert any(event.event == ChatEventType.UNKNOWN for event in events)
    thoughts = [event.message.reasoning_content for event in events if event.message is not None]
    assert "".join(thought for thought in thoughts if thought).startswith("hm…")


def create_and_poll():
    poll = client.chat.create_and_poll(**asking())
    assert poll.chat.status == ChatStatus.COMPLETED
    assert [message.content for message in poll.messages if message.type == MessageType.ANSWER] == [SAID]
    assert poll.chat.usage.token_count > 0


def retrieve_and_messages():
    _, chat = told(list(client.chat.stream(**asking())))
    ids = {"conversation_id": chat.conversation_id, "chat_id": chat.id}
    found = client.chat.retrieve(**ids)
    assert (found.id, found.status, found.bot_id) == (chat.id, ChatStatus.COMPLETED, BOT)
    assert [message.content for message in client.chat.messages.list(**ids)] == [SAID]
    refused(lambda: other.chat.retrieve(**ids), 4200)
    refused(lambda: client.chat.retrieve(conversation_id=chat.conversation_id, chat_id="1"), 4001)


def cancel():
    chat = client.chat.create(**asking())
    assert chat.status == ChatStatus.IN_PROGRESS
    ids = {"conversation_id": chat.conversation_id, "chat_id": chat.id}
    refused(lambda: client.chat.create(**asking(conversation_id=chat.conversation_id)), 4016)
    assert client.chat.cancel(**ids).status == ChatStatus.CANCELED
    refused(lambda: client.chat.cancel(**ids), 4104)
    assert told(list(client.chat.stream(**asking(conversation_id=chat.conversation_id))))[0] == SAID


def conversations():
    _, chat = told(list(client.chat.stream(**asking())))
    found = client.conversations.retrieve(conversation_id=chat.conversation_id)
    assert (found.id, found.meta_data) == (chat.conversation_id, {})
    refused(lambda: other.conversations.retrieve(conversation_id=chat.conversation_id), 4200)


def files():
    file = client.files.upload(file=("a.png", b"\x89PNG\r\n--x"))
    assert (file.file_name, file.bytes) == ("a.png", 9)
    parts = [MessageObjectString.build_text("look"), MessageObjectString.build_image(file_id=file.id)]
    looking = asking(additional_messages=[Message.build_user_question_objects(parts)])
    assert told(list(client.chat.stream(**looking)))[0] == "You said: look"
    refused(lambda: list(other.chat.stream(**looking)), 4005)
    refused(lambda: client.files.upload(file=("a.png", b"")), 4300)


def errors():
    refused(lambda: client.chat.stream(**asking(bot_id="1")), 4006)
    refused(lambda: client.chat.stream(**asking(additional_messages=ASK * 101)), 4004)
    refused(lambda: client.chat.create(**asking(auto_save_history=False)), 4007)
    refused(lambda: client.chat.stream(**asking(conversation_id="1")), 4200)
    wrong = Coze(auth=TokenAuth("nobody"), base_url=BASE)
    refused(lambda: wrong.chat.stream(**asking()), 4100)
    failed = list(other.chat.stream(**asking()))[-1]  # its second fails
    assert (failed.event, failed.chat.last_error.code) == (ChatEventType.CONVERSATION_CHAT_FAILED, 4014)


def asynchronous():
    async def use():
        aio = AsyncCoze(auth=AsyncTokenAuth(KEY), base_url=BASE)
        events = [event async for event in aio.chat.stream(**asking())]
        assert told(events)[0] == SAID
        found = await aio.conversations.retrieve(conversation_id=events[-1].chat.conversation_id)
        assert found.id == events[-1].chat.conversation_id

    asyncio.run(use())


SCENARIOS = (
    chat_streams, extras, create_and_poll, retrieve_and_messages, cancel, conversations, files, errors, asynchronous,
)  # fmt: skip


def main() -> None:
    became = {}
    for scenario in SCENARIOS:
        try:
            scenario()
            became[scenario.__name__] = None
        except Exception:
            became[scenario.__name__] = traceback.format_exc()
    json.dump(became, sys.stdout)


main()
