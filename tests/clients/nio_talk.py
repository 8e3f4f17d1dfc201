"""Two matrix-nio clients: register, log in, make rooms, talk plainly and end to end encrypted (olm, megolm)."""

import asyncio
import secrets
import sys
import tempfile
import time

from nio import (
    AsyncClient,
    AsyncClientConfig,
    JoinResponse,
    LoginResponse,
    MegolmEvent,
    RegisterResponse,
    RoomCreateResponse,
    RoomMessagesResponse,
    RoomMessageText,
    RoomSendResponse,
    SyncResponse,
)

PASSWORD = "Correct-Horse-7-battery!"


def expect(answer, kind):
    assert isinstance(answer, kind), f"expected {kind.__name__}, got {answer}"
    return answer


async def log_in(url, name, store):
    config = AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True)
    first = AsyncClient(url, name)
    registered = expect(await first.register(name, PASSWORD), RegisterResponse)
    await first.close()
    client = AsyncClient(url, registered.user_id, store_path=store, config=config)
    expect(await client.login(PASSWORD, device_name="nio"), LoginResponse)
    client.texts = []
    client.undecrypted = []
    client.add_event_callback(lambda room, event: client.texts.append((room.room_id, event.body)), RoomMessageText)
    client.add_event_callback(lambda room, event: client.undecrypted.append(event), MegolmEvent)
    expect(await client.sync(timeout=0, full_state=True), SyncResponse)
    if client.should_upload_keys:
        await client.keys_upload()
    return client


async def sync_until(clients, condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"not within a minute: {what}"
        for client in clients:
            expect(await client.sync(timeout=500), SyncResponse)
            if client.should_upload_keys:
                await client.keys_upload()
            if client.should_query_keys:
                await client.keys_query()


def trust_everybody(client):
    for device in client.device_store:
        if device.user_id != client.user_id or device.id != client.device_id:
            client.verify_device(device)


async def say(client, room, text):
    content = {"msgtype": "m.text", "body": text}
    return expect(await client.room_send(room, "m.room.message", content), RoomSendResponse).event_id


async def main(url):
    suffix = secrets.token_hex(4)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alice = await log_in(url, f"nio-alice-{suffix}", one)
        bob = await log_in(url, f"nio-bob-{suffix}", other)
        try:
            await talk(alice, bob, encrypted=False)
            await talk(alice, bob, encrypted=True)
        finally:
            for client in (alice, bob):
                await client.logout()
                await client.close()


async def talk(alice, bob, encrypted):
    state = []
    if encrypted:
        state.append({
            "type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        })
    made = await alice.room_create(name="nio", invite=[bob.user_id], initial_state=state)
    room = expect(made, RoomCreateResponse).room_id
    await sync_until([bob], lambda: room in bob.invited_rooms, "bob is invited")
    expect(await bob.join(room), JoinResponse)
    both = [alice, bob]
    await sync_until(both, lambda: all(room in c.rooms and len(c.rooms[room].users) == 2 for c in both), "both are in")
    assert all(client.rooms[room].encrypted == encrypted for client in both)
    if encrypted:
        await sync_until(both, lambda: all(
            list(one.device_store.active_user_devices(other.user_id)) for one, other in ((alice, bob), (bob, alice))
        ), "they know each other's devices")
        for client in both:
            trust_everybody(client)

    for number, (sender, receiver) in enumerate([(alice, bob), (bob, alice), (alice, bob)]):
        text = f"message {number} {'secret' if encrypted else 'open'}"
        await say(sender, room, text)
        await sync_until([receiver], lambda: (room, text) in receiver.texts, f"{text} arrived")
    assert not bob.undecrypted and not alice.undecrypted, "every message could be decrypted"

    page = expect(await bob.room_messages(room, bob.next_batch, limit=50), RoomMessagesResponse)
    texts = [event for event in page.chunk if isinstance(event, RoomMessageText)]
    assert [event.decrypted for event in texts] == [encrypted] * 3, texts
    await bob.room_typing(room, True)
    await bob.room_read_markers(room, page.chunk[0].event_id, page.chunk[0].event_id)
    await bob.room_leave(room)
    await sync_until([alice], lambda: len(alice.rooms[room].users) == 1, "bob left")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
