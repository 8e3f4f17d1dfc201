// Two matrix-bot-sdk clients: register, make a room, join, talk, redact, read the profile.
import { MatrixAuth, LogService, LogLevel } from "matrix-bot-sdk";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { until } from "./until.mjs";

const [url] = process.argv.slice(2);
const password = "Correct-Horse-7-battery!";
LogService.setLevel(LogLevel.ERROR);

async function logIn(name) {
    const auth = new MatrixAuth(url);
    await auth.passwordRegister(name, password);
    const client = await auth.passwordLogin(name, password, "bot");
    client.messages = [];
    client.invitations = [];
    client.on("room.message", (room, event) => client.messages.push({ room, ...event }));
    client.on("room.invite", (room) => client.invitations.push(room));
    await client.start();
    return client;
}

const suffix = randomBytes(4).toString("hex");
const alice = await logIn(`bot-alice-${suffix}`);
const bob = await logIn(`bot-bob-${suffix}`);
const bobId = await bob.getUserId();
await bob.setDisplayName("Bob the bot");

const room = await alice.createRoom({ name: "bots", preset: "private_chat", invite: [bobId] });
await until("the invitation", () => bob.invitations.includes(room));
await bob.joinRoom(room);
const event = await alice.sendText(room, "hello bob");
await until("the message", () => bob.messages.some((message) => message.event_id === event));
const reply = await bob.replyText(room, bob.messages.find((message) => message.event_id === event), "hello alice");
await until("the reply", () => alice.messages.some((message) => message.event_id === reply));

assert.deepEqual((await alice.getJoinedRoomMembers(room)).sort(), [await alice.getUserId(), bobId].sort());
assert.equal((await alice.getUserProfile(bobId)).displayname, "Bob the bot");
await alice.sendStateEvent(room, "m.room.topic", "", { topic: "talk of bots" });
assert.equal((await bob.getRoomStateEvent(room, "m.room.topic", "")).topic, "talk of bots");
await alice.redactEvent(room, event, "done");
assert.deepEqual((await bob.getEvent(room, event)).content, {});
await bob.setAccountData("org.example.bot", { on: true });
assert.deepEqual(await bob.getAccountData("org.example.bot"), { on: true });
await alice.kickUser(bobId, room, "bye");
await assert.rejects(bob.sendText(room, "still here?"), (error) => error.statusCode === 403);
alice.stop();
bob.stop();
process.exit(0);
