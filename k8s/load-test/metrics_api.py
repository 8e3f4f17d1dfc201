"""What a metrics server and a Prometheus adapter tell a HorizontalPodAutoscaler, for a lab's cluster of one node that has neither.

The CPU time and memory of pods as the kubelet tells them (metrics.k8s.io), and one metric that the pods tell themselves (custom.metrics.k8s.io). It runs on the node, beside the cluster, and is registered there for as long as it runs. For a lab: whoever
reaches its port may ask it.
"""

import http.server
import json
import re
import ssl
import tempfile
import threading
import time
import urllib.parse
import urllib.request

METRIC = "keystead_http_requests_in_flight"
GROUPS = {"metrics.k8s.io": "v1beta1", "custom.metrics.k8s.io": "v1beta1"}
RESOURCES = {
    "metrics.k8s.io": [{"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}],
    "custom.metrics.k8s.io": [{"name": f"pods/{METRIC}", "singularName": "", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}],
}


class MetricsApi:
    """Serves and registers both groups of metrics, within `with`."""

    def __init__(self, lab, run):
        self.lab, self.run, self.asked = lab, run, 0
        nodes = json.loads(run("kubectl", "get", "nodes", "--output", "json"))["items"]
        if len(nodes) != 1:
            raise SystemExit("this stand-in for a metrics server is for clusters of one node")
        self.node = nodes[0]["metadata"]["name"]
        self.address = next(address["address"] for address in nodes[0]["status"]["addresses"] if address["type"] == "InternalIP")

    def __enter__(self):
        folder = tempfile.TemporaryDirectory()
        key, certificate = f"{folder.name}/key.pem", f"{folder.name}/certificate.pem"
        self.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=lab-metrics", "-keyout", key, "-out", certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                found = api.answer(urllib.parse.urlsplit(self.path))
                body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((self.address, 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        registered = self.objects()["items"]
        self.apply([item for item in registered if item["kind"] != "APIService"])
        self.wait_for_service()
        # Not before: the API server keeps the connection that it finds first, wherever that leads.
        self.apply([item for item in registered if item["kind"] == "APIService"])
        for group, version in GROUPS.items():
            self.wait_until(f"/apis/{group}/{version}/namespaces/{self.lab.namespace}/pods" + (f"/*/{METRIC}" if group.startswith("custom") else ""))
        return self

    def __exit__(self, *_):
        self.run("kubectl", "delete", "--ignore-not-found", "--filename", "-", stdin=json.dumps(self.objects()))
        self.server.shutdown()

    def apply(self, items):
        self.run("kubectl", "apply", "--filename", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def wait_for_service(self):
        """Until the node sends what goes to the Service here."""
        address = self.run("kubectl", "--namespace", self.lab.namespace, "get", "service", "lab-metrics", "--output", "jsonpath={.spec.clusterIP}")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        end = time.time() + 60
        while time.time() < end:
            try:
                url = f"https://{address}/apis/metrics.k8s.io/v1beta1"
                with urllib.request.urlopen(url, context=context, timeout=2) as answer:
                    if b"PodMetrics" in answer.read():
                        return
            except OSError:
                pass
            time.sleep(1)
        raise SystemExit("the Service of the metrics does not lead to this machine")

    def wait_until(self, path):
        """Until the API server passes a path on; that it calls the service available says less."""
        end = time.time() + 120
        while not self.run("kubectl", "get", "--raw", path, check=False).startswith("{"):
            if time.time() > end:
                raise SystemExit(f"the API server does not pass {path} on")
            time.sleep(1)

    def objects(self):
        """How the API server finds this."""
        name = {"name": "lab-metrics", "namespace": self.lab.namespace}
        port = self.server.server_port
        items = [
            {"apiVersion": "v1", "kind": "Service", "metadata": name, "spec": {"ports": [{"port": 443, "targetPort": port}]}},
            {"apiVersion": "v1", "kind": "Endpoints", "metadata": name, "subsets": [{"addresses": [{"ip": self.address}], "ports": [{"port": port}]}]},
        ]
        for group, version in GROUPS.items():
            items.append({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{version}.{group}"},
                "spec": {"group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True, "service": {**name, "port": 443}},
            })
        return {"apiVersion": "v1", "kind": "List", "items": items}

    def answer(self, url):
        """What is asked for, or nothing."""
        parts = urllib.parse.unquote(url.path).strip("/").split("/")
        selector = urllib.parse.parse_qs(url.query).get("labelSelector", [""])[0]
        if parts[:1] != ["apis"] or len(parts) < 3 or GROUPS.get(parts[1]) != parts[2]:
            return None
        version = f"{parts[1]}/{parts[2]}"
        if len(parts) == 3:
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": RESOURCES[parts[1]]}
        self.asked += 1
        if parts[3] == "namespaces" and parts[5:] == ["pods"]:
            return {"kind": "PodMetricsList", "apiVersion": version, "metadata": {}, "items": self.usage(parts[4], selector)}
        if parts[3] == "namespaces" and parts[5:] == ["pods", "*", METRIC]:
            return {"kind": "MetricValueList", "apiVersion": version, "metadata": {}, "items": self.in_flight(parts[4], selector)}
        return None

    def pods(self, namespace, selector):
        found = self.run("kubectl", "--namespace", namespace, "get", "pods", "--selector", selector, "--output", "json")
        return {pod["metadata"]["name"]: pod for pod in json.loads(found)["items"]}

    def usage(self, namespace, selector):
        """CPU time and memory of pods, as metrics.k8s.io has them."""
        pods = self.pods(namespace, selector)
        summary = json.loads(self.run("kubectl", "get", "--raw", f"/api/v1/nodes/{self.node}/proxy/stats/summary"))
        items = []
        for told in summary["pods"]:
            name = told["podRef"]["name"]
            containers = [container for container in told.get("containers", []) if "usageNanoCores" in container.get("cpu", {})]
            if told["podRef"]["namespace"] != namespace or name not in pods or not containers:
                continue
            items.append({
                "metadata": {"name": name, "namespace": namespace, "labels": pods[name]["metadata"]["labels"]},
                "timestamp": containers[0]["cpu"]["time"], "window": "15s",
                "containers": [
                    {"name": container["name"], "usage": {"cpu": f"{container['cpu']['usageNanoCores']}n", "memory": f"{container['memory']['workingSetBytes'] // 1024}Ki"}}
                    for container in containers
                ],
            })
        return items

    def in_flight(self, namespace, selector):
        """What the pods tell of themselves, as custom.metrics.k8s.io has it."""
        items = []
        for name in self.pods(namespace, selector):
            text = self.run("kubectl", "get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{name}:8008/proxy/metrics", check=False)
            if value := re.search(rf"^{METRIC}(?:{{[^}}]*}})? (\S+)$", text, re.M):
                items.append({
                    "describedObject": {"kind": "Pod", "namespace": namespace, "name": name, "apiVersion": "v1"}, "metricName": METRIC,
                    "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "value": str(round(float(value[1]))),
                })
        return items
