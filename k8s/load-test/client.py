"""A Matrix client that comes in by a given door: as much of the client-server API as `network` needs."""

import http.client
import itertools
import json
import socket
import ssl
import time
import urllib.parse

NUMBERS = itertools.count()


class Door:
    """A proxy's address, the name that clients ask it for, and the address that they come from."""

    def __init__(self, name, address, host, certificate, source=None):
        self.name, self.address, self.host, self.source = name, address, host, source
        # Only the certificate of the Secret will do.
        self.context = ssl.create_default_context(cafile=certificate)

    def seen_from(self, source):
        """The same door for a client at another address."""
        other = Door.__new__(Door)
        other.__dict__ = {**self.__dict__, "source": source}
        return other

    def connect(self, timeout=120):
        connection = http.client.HTTPSConnection(self.host, timeout=timeout)
        source = (self.source, 0) if self.source else None
        connection.sock = self.context.wrap_socket(socket.create_connection(self.address, timeout, source), server_hostname=self.host)
        return connection

    def ask(self, method, path, body=None, headers=None, connection=None):
        """Status, headers and body of the answer. On a connection of its own, unless one is given."""
        own = connection or self.connect()
        try:
            own.request(method, path, body, headers or {})
            answer = own.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            if own is not connection:
                own.close()


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status, body):
        super().__init__(f"{status} {body[:120].decode(errors='replace')}")
        self.status = status


class User:
    """Somebody who is logged in."""

    def __init__(self, door, name, password):
        self.door, self.connection, self.since, self.token = door, None, None, None
        answer = self.ask("POST", "login", {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": password})
        self.token, self.id = answer["access_token"], answer["user_id"]

    def headers(self):
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def ask(self, method, path, content=None, keep=False):
        """The JSON of an answer from /_matrix/client/v3; `keep` keeps the connection for the next one, as clients do."""
        if keep and self.connection is None:
            self.connection = self.door.connect()
        body = None if content is None else json.dumps(content)
        try:
            status, _, answer = self.door.ask(method, f"/_matrix/client/v3/{path}", body, self.headers(), self.connection if keep else None)
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if status != 200:
            raise Refused(status, answer)
        return json.loads(answer)

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def create_room(self, invite=()):
        return self.ask("POST", "createRoom", {"preset": "private_chat", "invite": list(invite)})["room_id"]

    def join(self, room):
        self.ask("POST", f"join/{urllib.parse.quote(room)}", {})

    def send(self, room, text, keep=False):
        """The id of the event."""
        path = f"rooms/{urllib.parse.quote(room)}/send/m.room.message/{time.time_ns()}-{next(NUMBERS)}"
        return self.ask("PUT", path, {"msgtype": "m.text", "body": text}, keep)["event_id"]

    def sync(self, seconds=0, keep=False):
        """The ids of the messages that are new."""
        query = {"timeout": int(seconds * 1000), "filter": json.dumps({"room": {"timeline": {"limit": 1000}}})}
        if self.since:
            query["since"] = self.since
        answer = self.ask("GET", f"sync?{urllib.parse.urlencode(query)}", keep=keep)
        self.since = answer["next_batch"]
        timelines = [room["timeline"] for room in answer.get("rooms", {}).get("join", {}).values()]
        return [event["event_id"] for timeline in timelines for event in timeline.get("events", []) if event["type"] == "m.room.message"]
