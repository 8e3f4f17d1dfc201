"""What the measurements in this folder stand on: PostgreSQL in a container, replicas of the release build, and their CPU time."""

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import subprocess
import time
import urllib.parse
import urllib.request

TOP = pathlib.Path(__file__).resolve().parents[2]
# BIN: a folder with binaries that are there already.
BIN = os.environ.get("BIN")
TARGET = pathlib.Path(BIN) if BIN else pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target")) / "release"
SECRET = "load"


def build():
    """Builds the server and the load generator. In one go: built apart, they would want the same crates with different features."""
    if BIN:
        return
    command = ["cargo", "build", "--locked", "--release", "-p", "keystead-load", "-p", "keystead-server"]
    subprocess.run(command, cwd=TOP, check=True)


def run(*command, **options):
    """What a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options).stdout


def children(pid):
    with contextlib.suppress(FileNotFoundError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from children(int(child))


def cpu_ms(pid):
    """CPU time of a process and its descendants, those that have ended included, in milliseconds (man 5 proc)."""
    total = 0
    for process in [pid, *children(pid)]:
        with contextlib.suppress(FileNotFoundError):
            fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
            total += sum(int(field) for field in fields[11:15])
    return total * 1000 / os.sysconf("SC_CLK_TCK")


def resident_mib(pid):
    """The memory of a process, in MiB."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Database:
    """PostgreSQL in a container, as `tests/load/run` starts it."""

    def __init__(self, *settings):
        self.settings = [word for setting in settings for word in ("-c", setting)]

    def __enter__(self):
        self.id = run("docker", "run", "-d", "-p", "127.0.0.1::5432", "-e", "POSTGRES_PASSWORD=load", "--shm-size", "256m", "postgres:15",
                      "-c", "shared_buffers=512MB", "-c", "max_connections=200", *self.settings).strip()
        address = run("docker", "port", self.id, "5432/tcp").split()[0]
        self.url = f"postgres://postgres:load@{address}/postgres"
        self.pid = int(run("docker", "inspect", "-f", "{{.State.Pid}}", self.id))
        return self

    def __exit__(self, *_):
        run("docker", "rm", "-f", "-v", self.id)

    def shell(self, command, **options):
        """What a command prints in the container, with PostgreSQL's programs in its path."""
        path = "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); export PGUSER=postgres PGHOST=127.0.0.1; "
        return run("docker", "exec", "-i", "-e", "PGPASSWORD=load", self.id, "sh", "-c", path + command, **options)

    def psql(self, sql):
        """What statements give, as text without decoration."""
        return self.shell("psql -q -At -v ON_ERROR_STOP=1", input=sql).strip()


class Server:
    """One replica."""

    def __init__(self, database, folder, port=18190, program=None):
        self.port, self.program = port, program or TARGET / "keystead"
        settings = {
            "DATABASE_URL": database.url, "SERVER_NAME": "load.test", "DATA_DIR": folder, "LIMITS_RATE_LIMITS": "false",
            "REGISTRATION_SHARED_SECRET": SECRET, "AUTH_BCRYPT_COST": "4", "LOG_FILTER": "warn", "SERVER_LISTEN": f"127.0.0.1:{port}",
        }
        self.environment = {**os.environ, **{f"KEYSTEAD_{name}": value for name, value in settings.items()}}

    def __enter__(self):
        self.process = subprocess.Popen([self.program, "serve"], env=self.environment, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/ready").close()
                return self
            if self.process.poll() is not None:
                raise SystemExit("the server does not start")
            time.sleep(0.2)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def metrics(self):
        """What it tells Prometheus."""
        return urllib.request.urlopen(f"{self.url}/metrics").read().decode()


class User:
    """A client with one connection."""

    def __init__(self, server, name):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port)
        self.token = None
        nonce = self.call("GET", "/_synapse/admin/v1/register")["nonce"]
        password = "Load-generat0r!"
        mac = hmac.new(SECRET.encode(), "\0".join([nonce, name, password, "notadmin"]).encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": password, "admin": False, "mac": mac}
        answer = self.call("POST", "/_synapse/admin/v1/register", body)
        self.id, self.token, self.sent = answer["user_id"], answer["access_token"], 0

    def use(self, server):
        """Goes on with another process."""
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def call(self, method, path, body=None):
        """The body of a 200."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        path = path if path.startswith("/_") else f"/_matrix/client/v3{path}"
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return json.loads(text)

    def in_room(self, method, room, rest, body=None):
        return self.call(method, f"/rooms/{urllib.parse.quote(room)}{rest}", body)

    def send(self, room):
        self.sent += 1
        return self.in_room("PUT", room, f"/send/m.room.message/{self.sent}", {"msgtype": "m.text", "body": "x" * 200})

    def sync(self, since=None, **filters):
        query = {"timeout": "0", "filter": json.dumps({"room": {"timeline": {"limit": 20}, **filters}})}
        if since:
            query["since"] = since
        return self.call("GET", f"/sync?{urllib.parse.urlencode(query)}")
