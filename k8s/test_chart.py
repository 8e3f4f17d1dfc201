#!/usr/bin/env python3
"""Tests of the chart: what it makes of values, and what it refuses."""

import pathlib
import subprocess
import unittest

import yaml

CHART = pathlib.Path(__file__).resolve().parent / "keystead"
CI = CHART / "ci"


def run(values, *settings, kubernetes="1.34.0"):
    command = ["helm", "template", "test", str(CHART), "--namespace", "chat", "--kube-version", kubernetes, "--values", str(CI / values)]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(values, *settings, kubernetes="1.34.0"):
    """The objects by kind and name."""
    done = run(values, *settings, kubernetes=kubernetes)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def pods(objects):
    for (kind, name), document in objects.items():
        if kind == "Pod":
            yield name, document["spec"]
        elif kind in ("Deployment", "Job"):
            yield name, document["spec"]["template"]["spec"]


def reached(egress):
    """Whom rules let a pod reach, and at which ports."""
    for rule in egress:
        for peer in rule.get("to", [{}]):
            if "ipBlock" in peer:
                name = peer["ipBlock"]["cidr"]
            else:
                name = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component", "anywhere")
            yield from ((name, port["port"]) for port in rule["ports"])


class Chart(unittest.TestCase):
    def test_pods_have_no_rights_and_write_nowhere(self):
        for values in ("minimal.yaml", "s3-gateway.yaml", "trial.yaml", "load-test.yaml"):
            for name, pod in pods(render(values)):
                with self.subTest(values=values, pod=name):
                    self.assertIs(pod["automountServiceAccountToken"], False)
                    # Variables for Services would be taken for settings.
                    self.assertIs(pod["enableServiceLinks"], False)
                    self.assertTrue(pod["securityContext"]["runAsNonRoot"])
                    self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    for container in pod["containers"]:
                        security = container["securityContext"]
                        self.assertTrue(security["readOnlyRootFilesystem"])
                        self.assertFalse(security["allowPrivilegeEscalation"])
                        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})

    def test_nothing_gives_rights(self):
        kinds = {kind for values in CI.glob("*.yaml") for kind, _ in render(values.name)}
        self.assertFalse({kind for kind in kinds if "Role" in kind})

    def test_secrets_reach_the_server_as_files_only(self):
        objects = render("s3-gateway.yaml")
        settings = objects["ConfigMap", "test-keystead"]["data"]
        self.assertEqual(settings["KEYSTEAD_DATABASE_URL_FILE"], "/etc/keystead/secrets/database-url")
        self.assertNotIn("KEYSTEAD_DATABASE_URL", settings)
        pod = objects["Deployment", "test-keystead"]["spec"]["template"]["spec"]
        sources = next(volume for volume in pod["volumes"] if volume["name"] == "secrets")["projected"]["sources"]
        self.assertIn({"secret": {"name": "keystead-pg-app", "items": [{"key": "uri", "path": "database-url"}]}}, sources)
        self.assertEqual(len(sources), 5)

    def test_values_that_are_secrets_stand_in_secrets_only(self):
        trial = run("trial.yaml").stdout
        self.assertNotIn("postgres://", trial)
        changed = [render("trial.yaml", f"secrets.databaseUrl.value=postgres://{n}")["Deployment", "chat"] for n in (1, 2)]
        first, second = [d["spec"]["template"]["metadata"]["annotations"]["checksum/secrets"] for d in changed]
        self.assertNotEqual(first, second, "a changed secret must restart the pods")

    def test_settings_keep_their_types(self):
        settings = render("s3-gateway.yaml")["ConfigMap", "test-keystead"]["data"]
        self.assertEqual(settings["KEYSTEAD_MEDIA_MAX_UPLOAD_BYTES"], "104857600")
        self.assertEqual(settings["KEYSTEAD_REGISTRATION_OPEN"], "false")
        self.assertEqual(settings["KEYSTEAD_URL_PREVIEW_DENIED_NETWORKS"], "10.0.0.0/8,192.168.0.0/16")
        self.assertEqual(settings["KEYSTEAD_SERVER_PUBLIC_BASE_URL"], "https://matrix.example.org")

    def test_a_pod_is_given_the_time_that_its_soft_stop_takes(self):
        pod = render("minimal.yaml", "drain.delaySeconds=7", "drain.graceSeconds=40")["Deployment", "test-keystead"]
        pod = pod["spec"]["template"]["spec"]
        self.assertGreater(pod["terminationGracePeriodSeconds"], 47)

    def test_apis_are_those_of_the_cluster(self):
        def apis(kubernetes):
            objects = render("s3-gateway.yaml", kubernetes=kubernetes)
            return {objects[kind, "test-keystead"]["apiVersion"] for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget")}

        self.assertEqual(apis("1.20.0"), {"autoscaling/v2beta2", "policy/v1beta1"})
        self.assertEqual(apis("1.22.0"), {"autoscaling/v2beta2", "policy/v1"})
        self.assertEqual(apis("1.34.0"), {"autoscaling/v2", "policy/v1"})

    def test_pods_are_scaled_by_cpu_and_by_requests_in_flight(self):
        scaler = render("s3-gateway.yaml")["HorizontalPodAutoscaler", "test-keystead"]["spec"]
        cpu, requests = scaler["metrics"]
        self.assertEqual(cpu["resource"]["name"], "cpu")
        self.assertEqual(requests["pods"]["metric"]["name"], "keystead_http_requests_in_flight")
        self.assertEqual(requests["pods"]["target"]["averageValue"], "32")
        metrics = (CHART / "../../homeserver/server/src/telemetry/metrics.rs").read_text(encoding="utf-8")
        self.assertIn('"keystead_http_requests_in_flight"', metrics)
        self.assertNotIn("replicas", render("s3-gateway.yaml")["Deployment", "test-keystead"]["spec"])

    def test_one_replica_can_be_moved(self):
        self.assertNotIn(("PodDisruptionBudget", "test-keystead"), render("minimal.yaml", "replicas=1"))
        self.assertIn(("PodDisruptionBudget", "test-keystead"), render("minimal.yaml"))

    def test_the_migration_brings_along_what_it_needs(self):
        objects = render("s3-gateway.yaml", "secrets.keyboxMasterKey.existingSecret=", "secrets.keyboxMasterKey.value=x")
        job = objects["Job", "test-keystead-migrate"]
        self.assertEqual(job["metadata"]["annotations"]["helm.sh/hook"], "pre-install,pre-upgrade")
        pod = job["spec"]["template"]["spec"]
        self.assertEqual(pod["containers"][0]["args"], ["migrate"])
        own = {name for kind, name in objects if objects[kind, name]["metadata"].get("annotations", {}).get("helm.sh/hook")}
        needed = {pod["containers"][0]["envFrom"][0]["configMapRef"]["name"]}
        for source in next(volume for volume in pod["volumes"] if volume["name"] == "secrets")["projected"]["sources"]:
            needed.add(source["secret"]["name"])
        self.assertEqual({name for name in needed if name.startswith("test-keystead")} - own, set())
        self.assertEqual(pod["serviceAccountName"], "default")

    def test_who_may_reach_the_server_leaves_the_charts_own_pods_in(self):
        # One peer from values; the chart's test and load test carry labels that the other one takes.
        narrowed = ("networkPolicy.ingressFrom[0].namespaceSelector.matchLabels.role=proxy", "loadTest.enabled=true")
        objects = render("load-test.yaml", *narrowed)
        rule = objects["NetworkPolicy", "test-keystead"]["spec"]["ingress"][0]
        given, own = rule["from"]
        self.assertEqual(given, {"namespaceSelector": {"matchLabels": {"role": "proxy"}}})
        allowed = own["podSelector"]["matchExpressions"][0]["values"]
        for labels in (
            objects["Pod", "test-keystead-test"]["metadata"]["labels"],
            objects["Job", "test-keystead-load-smoke-1"]["spec"]["template"]["metadata"]["labels"],
        ):
            self.assertLessEqual(own["podSelector"]["matchLabels"].items(), labels.items())
            self.assertIn(labels["app.kubernetes.io/component"], allowed)
        self.assertNotIn("from", render("minimal.yaml")["NetworkPolicy", "test-keystead"]["spec"]["ingress"][0])

    def test_each_pod_has_a_policy_that_is_there_before_it(self):
        narrowed = (
            "networkPolicy.dnsTo[0].ipBlock.cidr=192.0.2.53/32", "networkPolicy.databaseTo[0].ipBlock.cidr=192.0.2.1/32",
            "loadTest.pushgateway=http://push.example.org:9091",
        )
        objects = render("load-test.yaml", *narrowed)
        policies = {name: document for (kind, name), document in objects.items() if kind == "NetworkPolicy"}
        dns = {("192.0.2.53/32", 53)}
        database, service, push = {("192.0.2.1/32", 5432)}, {("server", 8008)}, {("anywhere", 9091)}
        for kind, name, policy, expected in (
            ("Deployment", "test-keystead", "test-keystead", dns | database),
            ("Job", "test-keystead-migrate", "test-keystead-migration", dns | database),
            ("Pod", "test-keystead-test", "test-keystead-test", dns | service),
            ("Job", "test-keystead-load-smoke-1", "test-keystead-load-test", dns | service | push),
        ):
            with self.subTest(policy=policy):
                document, spec = objects[kind, name], policies.pop(policy)
                labels = document["spec"].get("template", document)["metadata"]["labels"]
                self.assertLessEqual(spec["spec"]["podSelector"]["matchLabels"].items(), labels.items())
                self.assertEqual(set(reached(spec["spec"]["egress"])), expected)
                hooks = [found["metadata"].get("annotations", {}) for found in (spec, document)]
                self.assertEqual(*(hook.get("helm.sh/hook") for hook in hooks))
                if "helm.sh/hook" in hooks[0]:
                    self.assertLess(*(int(hook.get("helm.sh/hook-weight", 0)) for hook in hooks))
        self.assertFalse(policies)
        without = render("load-test.yaml", "networkPolicy.enabled=false")
        self.assertFalse([name for kind, name in without if kind == "NetworkPolicy"])

    def test_the_rules_are_those_of_monitoring(self):
        groups = render("s3-gateway.yaml")["PrometheusRule", "test-keystead"]["spec"]["groups"]
        expected = []
        for path in sorted((CHART / "../../monitoring/rules").glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            text = text.replace("https://keystead.example/monitoring/runbooks/", "https://wiki.example.org/keystead/")
            expected += yaml.safe_load(text)["groups"]
        self.assertEqual(groups, expected)

    def test_a_load_test_is_what_its_profile_says(self):
        objects = render("load-test.yaml", "loadTest.profile=drill", "loadTest.run=7")
        container = objects["Job", "test-keystead-load-drill-7"]["spec"]["template"]["spec"]["containers"][0]
        for argument in ("--rate=30", "--people=30", "--members=10", "--key-share=30", "--retries=1", "day"):
            self.assertIn(argument, container["args"])
        self.assertEqual(container["env"][0]["valueFrom"]["secretKeyRef"], {"name": "keystead", "key": "shared-secret"})
        profiles = yaml.safe_load((CHART / "load-profiles.yaml").read_text(encoding="utf-8"))
        for profile in profiles:
            with self.subTest(profile=profile):
                render("load-test.yaml", f"loadTest.profile={profile}")

    def test_what_cannot_work_is_refused_in_words(self):
        table = [
            (("serverName=",), "serverName is needed"),
            (("secrets.databaseUrl.existingSecret=",), "secrets.databaseUrl is needed"),
            (("secrets.databaseUrl.value=x",), "either existingSecret or value"),
            (("media.persistence.enabled=false",), "files of users need a place"),
            (("media.s3.bucket=b",), "either s3.bucket or persistence.enabled"),
            (("media.s3.bucket=b", "media.persistence.enabled=false"), "secrets.s3AccessKeyId is needed"),
            (("settings.server.listen=x",), "is set by other values"),
            (("autoscaling.enabled=true", "autoscaling.minReplicas=9"), "maxReplicas is less"),
            (("loadTest.enabled=true",), "registrationSharedSecret"),
            (("replicas=0",), "replicas"),
            (("nosuchvalue=1",), "nosuchvalue"),
            (("service.type=Nonsense",), "service"),
        ]
        for settings, words in table:
            with self.subTest(settings=settings):
                done = run("minimal.yaml", *settings)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(words, done.stderr)

    def test_names_are_short_enough(self):
        for _, name in render("load-test.yaml", f"fullnameOverride={'x' * 60}", "loadTest.profile=smoke"):
            self.assertLessEqual(len(name), 63)


if __name__ == "__main__":
    unittest.main()
