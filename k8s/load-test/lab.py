"""What the scripts here share: a cluster by kubectl and helm, runs of the load generator in it, and the CPU time of its pods."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
CHART = HERE.parent / "keystead"
os.environ["PATH"] = f"{TOP / 'target/k8s/bin'}:{os.environ['PATH']}"


def arguments(about):
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", default="keystead-load-test", help="made if it is not there (default: %(default)s)")
    parser.add_argument("--image", default="keystead:0.1.0", help="the server's image, with keystead-load in it (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default=TOP / "docs/load-test", help="where results go (default: %(default)s)")
    parser.add_argument("--load-binary", type=pathlib.Path, default=TOP / "target/release/keystead-load", help="draws the pictures")
    return parser


def say(text):
    print(f"\033[1m{time.strftime('%H:%M:%S')} {text}\033[0m", file=sys.stderr, flush=True)


def run(*command, stdin=None, check=True):
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


class Lab:
    """Keystead in a namespace."""

    def __init__(self, options):
        self.namespace, self.image = options.namespace, options.image
        self.pictures, self.output = options.load_binary, options.output
        self.files = [HERE / "values.yaml"]
        self.output.mkdir(parents=True, exist_ok=True)
        if not run("kubectl", "get", "namespace", self.namespace, "--ignore-not-found"):
            run("kubectl", "create", "namespace", self.namespace)

    def kubectl(self, *command, stdin=None, check=True):
        return run("kubectl", "--namespace", self.namespace, *command, stdin=stdin, check=check)

    def database(self):
        """PostgreSQL and a volume for media."""
        # If the namespace was deleted, the volume still belongs to the claim that was in it.
        volume = ("pv", "keystead-load-test-media")
        if run("kubectl", "get", *volume, "-o", "jsonpath={.status.phase}", check=False) == "Released":
            run("kubectl", "patch", *volume, "--type=merge", "-p", '{"spec": {"claimRef": null}}')
        self.kubectl("apply", "-f", HERE / "cluster.yaml")
        self.kubectl("rollout", "status", "statefulset/postgres", "--timeout=5m")

    def empty(self):
        """No Keystead, and nothing in the database."""
        run("helm", "uninstall", "keystead", "--namespace", self.namespace, "--wait", check=False)
        wait(lambda: not self.pods(), "the pods to go")
        self.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    def sql(self, statement):
        """What a statement gives, without decoration."""
        return self.kubectl("exec", "postgres-0", "--", "psql", "-U", "postgres", "-qAtc", statement)

    def migrations(self):
        """The names of the migrations that the database has."""
        return self.sql("SELECT version FROM seaql_migrations ORDER BY version").split()

    def values(self, image, replicas, more=()):
        repository, tag = image.rsplit(":", 1)
        settings = [f"image.repository={repository}", f"image.tag={tag}", f"replicas={replicas}", *more]
        words = [("--values", file) for file in self.files] + [("--set", setting) for setting in settings]
        return [word for pair in words for word in pair]

    def install(self, replicas, more=(), image=None):
        """Installs or upgrades, and waits until all pods are ready and no old one is left."""
        command = ["helm", "upgrade", "--install", "keystead", CHART, "--namespace", self.namespace, "--wait", "--timeout", "10m"]
        run(*command, *self.values(image or self.image, replicas, more))
        wait(lambda: len(self.pods()) == replicas, "old pods to go")

    def pods(self, labels="app.kubernetes.io/component=server"):
        found = json.loads(self.kubectl("get", "pods", "--selector", labels, "--output", "json"))["items"]
        return [pod for pod in found if pod["status"].get("phase") not in ("Succeeded", "Failed")]

    def start_load(self, profile, label, replicas, number, image=None):
        """Starts the chart's Job with a profile; its name."""
        more = [f"loadTest.profile={profile}", f"loadTest.label={label}", "loadTest.enabled=true"]
        manifest = run(
            "helm", "template", "keystead", CHART, "--namespace", self.namespace, "--show-only", "templates/loadtest.yaml",
            "--set-string", f"loadTest.run={number}", *self.values(image or self.image, replicas, more),
        )
        made = self.kubectl("apply", "--filename", "-", "--output", "name", stdin=manifest).split()
        return next(name for name in made if name.startswith("job.batch/")).removeprefix("job.batch/")

    def result(self, job, patience=1200):
        """Waits for a Job to end, and gives what it reports; nothing if it could not make its accounts and rooms."""
        def ended():
            status = json.loads(self.kubectl("get", "job", job, "--output", "json"))["status"]
            return status.get("succeeded") or status.get("failed")

        wait(ended, f"{job} to end", patience)
        log = self.kubectl("logs", f"job/{job}")
        self.kubectl("delete", "job", job, "--wait=false")
        lines = [line for line in log.splitlines() if line.startswith("{")]
        if not lines:
            say(f"{job} reports nothing: {log.strip()}")
            return None
        print(log[: log.index("{")], file=sys.stderr)
        return json.loads(lines[-1])


def wait(condition, what, patience=300):
    end = time.time() + patience
    while not condition():
        if time.time() > end:
            sys.exit(f"waited {patience} s for {what}")
        time.sleep(1)


class Meter(threading.Thread):
    """Follows the CPU time and the memory of all pods of a namespace, as the kubelets tell them."""

    def __init__(self, lab):
        super().__init__(daemon=True)
        self.lab, self.samples, self.done = lab, {}, threading.Event()
        self.nodes = [node["metadata"]["name"] for node in json.loads(run("kubectl", "get", "nodes", "--output", "json"))["items"]]

    def run(self):
        while not self.done.wait(4):
            for node in self.nodes:
                answer = run("kubectl", "get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary", check=False)
                if answer:
                    self.take(json.loads(answer))

    def take(self, summary):
        for pod in summary["pods"]:
            if pod["podRef"]["namespace"] != self.lab.namespace:
                continue
            for container in pod.get("containers", []):
                cpu, memory = container.get("cpu", {}), container.get("memory", {})
                if "usageCoreNanoSeconds" in cpu:
                    series = self.samples.setdefault((pod["podRef"]["name"], container["name"]), {})
                    series[instant(cpu["time"])] = (cpu["usageCoreNanoSeconds"] / 1e6, memory.get("workingSetBytes", 0))

    def stop(self):
        self.done.set()
        self.join()

    def costs(self, report):
        """What each kind of pod used while it was measured, in the form of keystead-load's reports."""
        begin, end = report["began"], report["began"] + report["seconds"]
        total = {}
        for (_, container), series in self.samples.items():
            used = at(series, end) - at(series, begin)
            cost = total.setdefault(container, [0.0, 0])
            cost[0] += used
            inside = [memory for moment, (_, memory) in series.items() if begin <= moment <= end + 12]
            cost[1] += inside[-1] if inside else 0
        return {
            name: {
                "cpu_ms": round(cpu),
                "cpu_ms_per_operation": cpu / max(report["operations"], 1),
                "memory_kib": memory // 1024,
                "memory_growth_kib": 0,
            }
            for name, (cpu, memory) in total.items() if cpu > 0
        }


def instant(text):
    """Seconds since 1970 of a time like 2026-01-01T00:00:00Z or with an offset."""
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def at(series, moment):
    """The counter at a moment, on the line between the samples around it."""
    times = sorted(series)
    if moment <= times[0]:
        return series[times[0]][0]
    for before, after in zip(times, times[1:]):
        if before <= moment <= after:
            share = (moment - before) / (after - before)
            return series[before][0] + share * (series[after][0] - series[before][0])
    return series[times[-1]][0]


def append(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
