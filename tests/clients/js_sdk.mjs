// Two matrix-js-sdk clients: register, log in, make a room, talk; with `encrypted`, through the SDK's Rust crypto.
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { until } from "./until.mjs";

const [mode, baseUrl] = process.argv.slice(2);
const encrypted = mode === "encrypted";
const password = "Correct-Horse-7-battery!";
logger.setLevel("silent");

async function logIn(name) {
    const auth = { type: "m.login.dummy" };
    const anonymous = sdk.createClient({ baseUrl });
    const registered = await anonymous.registerRequest({ username: name, password, auth });
    const login = await anonymous.loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: registered.user_id },
        password,
    });
    const client = sdk.createClient({
        baseUrl, userId: login.user_id, deviceId: login.device_id, accessToken: login.access_token,
    });
    if (encrypted) await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true });
    await until("the first sync", () => client.isInitialSyncComplete());
    return client;
}

function texts(client, room) {
    const events = client.getRoom(room)?.getLiveTimeline().getEvents() ?? [];
    return events.filter((event) => event.getType() === "m.room.message").map((event) => event.getContent().body);
}

const suffix = randomBytes(4).toString("hex");
const alice = await logIn(`js-alice-${suffix}`);
const bob = await logIn(`js-bob-${suffix}`);

const initialState = encrypted
    ? [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }]
    : [];
const made = await alice.createRoom({
    name: "js", preset: "private_chat", invite: [bob.getUserId()], initial_state: initialState,
});
const room = made.room_id;
await until("the invitation", () => bob.getRoom(room)?.getMyMembership() === "invite");
await bob.joinRoom(room);
await until("both know that both are in", () =>
    [alice, bob].every((client) => client.getRoom(room)?.getJoinedMemberCount() === 2 &&
        client.getRoom(room)?.getMyMembership() === "join"));
if (encrypted) {
    for (const client of [alice, bob]) {
        await until("the room is known to be encrypted", () => client.getCrypto().isEncryptionEnabledInRoom(room));
    }
}

for (const [sender, receiver, text] of [[alice, bob, "hello bob"], [bob, alice, "hello alice"], [alice, bob, "bye"]]) {
    await sender.sendTextMessage(room, text);
    await until(`"${text}" arrives`, () => texts(receiver, room).includes(text));
}
const events = await alice.http.authedRequest("GET", `/rooms/${encodeURIComponent(room)}/messages`, { dir: "b", limit: "5" });
const kinds = events.chunk.map((event) => event.type);
assert.equal(kinds.filter((kind) => kind === (encrypted ? "m.room.encrypted" : "m.room.message")).length, 3, `${kinds}`);

const last = bob.getRoom(room).getLiveTimeline().getEvents().at(-1);
await bob.sendReadReceipt(last);
await until("the receipt", () => alice.getRoom(room).getEventReadUpTo(bob.getUserId()) === last.getId());
await bob.setDisplayName("Bob");
await until("the new name", () => alice.getRoom(room).getMember(bob.getUserId())?.name === "Bob");
await bob.leave(room);
await until("bob has left", () => alice.getRoom(room).getJoinedMemberCount() === 1);
for (const client of [alice, bob]) {
    client.stopClient();
    await client.logout(true);
}
process.exit(0);
