"""The checks of deploy/; scripts/deploy installs what they need. Each says a line, and all run before it ends."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
HOTSERVE = os.environ["HOTSERVE"]
# The oldest Kubernetes with preStop's sleep where nobody has to switch it on, and the newest that there is a schema of.
KUBERNETES = ["1.30", "1.37"]


class Wrong(Exception):
    """What a check has found."""


def run(arguments, **options):
    done = subprocess.run(arguments, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Wrong(f"{pathlib.Path(arguments[0]).name}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def require(condition, message):
    if not condition:
        raise Wrong(message)


def text(path):
    return (ROOT / path).read_text()


# -- copies -----------------------------------------------------------------------------------------------------------

RULE = DEPLOY / "kubernetes/components/monitoring/prometheus-rule.yaml"
RULE_HEAD = """\
# dashboards/alerts.yaml as the Prometheus operator takes it: scripts/deploy --write makes it anew.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: hotserve
  labels:
    app.kubernetes.io/name: hotserve
spec:
"""


def rule():
    alerts = text("dashboards/alerts.yaml")
    alerts = alerts[alerts.index("groups:") :]
    return RULE_HEAD + "".join(f"  {line}\n" if line else "\n" for line in alerts.splitlines())


def check_copies():
    require(RULE.exists() and RULE.read_text() == rule(), f"{RULE.name} is old: scripts/deploy --write")
    return "the alerts for the Prometheus operator are those of dashboards/"


# -- the image --------------------------------------------------------------------------------------------------------


# What distroless/cc has.
LIBRARIES = {
    "linux-vdso",
    "libc",
    "libm",
    "libgcc_s",
    "libstdc++",
    "libdl",
    "libpthread",
    "librt",
    "libresolv",
    "ld-linux-x86-64",
}


def check_dockerfile():
    run(["hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile"])
    ignored = [line.strip("/\n") for line in text(".dockerignore").splitlines() if line.startswith("/")]
    read = ["Cargo.toml", "Cargo.lock", "src", "models", "tests", "bench", "examples", "proto", "build.rs"]
    require(not set(ignored) & set(read), f".dockerignore leaves out what a build reads: {set(ignored) & set(read)}")
    linked = {line.split()[0].split("/")[-1].split(".so")[0] for line in run(["ldd", HOTSERVE]).splitlines()}
    require(linked <= LIBRARIES, f"the image has no {linked - LIBRARIES}")
    return "hadolint finds nothing, and the image has the libraries of the program"


# -- Kubernetes -------------------------------------------------------------------------------------------------------


def kustomize(overlay):
    return run(["kubectl", "kustomize", DEPLOY / "kubernetes" / overlay])


def one(documents, kind):
    found = [document for document in documents if document["kind"] == kind]
    require(len(found) == 1, f"{len(found)} documents of kind {kind}")
    return found[0]


def milliseconds(duration):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", duration).groups()
    return int(number) * {"ms": 1, "s": 1000, "m": 60_000}[unit]


def check_kubernetes():
    overlays = sorted(path.name for path in (DEPLOY / "kubernetes/overlays").iterdir())
    count = 0
    for overlay in overlays:
        documents = list(yaml.safe_load_all(kustomize(f"overlays/{overlay}")))
        count += len(documents)
        # The operator's kinds have no schema there: they are looked at below.
        known = [document for document in documents if "monitoring.coreos.com" not in document["apiVersion"]]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(known, file)
            file.flush()
            for version in KUBERNETES:
                run(["kubernetes-validate", "--strict", "--quiet", "-k", version, file.name])
        look_at(overlay, documents)
    return f"{count} documents of {', '.join(overlays)}, valid in {' and '.join(KUBERNETES)}"


def look_at(overlay, documents):
    """What no schema knows."""
    deployment, service = one(documents, "Deployment"), one(documents, "Service")
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    settings = next(
        document["data"]
        for document in documents
        if document["kind"] == "ConfigMap" and "AWS_REGION" in document["data"]
    )
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"] * 1000
    needed = pause + milliseconds(settings["HOTSERVE_DRAIN"])
    grace = pod["terminationGracePeriodSeconds"] * 1000
    require(
        grace > needed, f"{overlay}: the grace period of {grace} ms is not longer than preStop and drain, {needed} ms"
    )
    require(pod["securityContext"]["runAsUser"] == 65532, f"{overlay}: not the user of the image")
    # What the Pod Security Standard "restricted" asks for, and that nothing can be written.
    for holder, name, value in [
        (pod["securityContext"], "runAsNonRoot", True),
        (pod["securityContext"], "seccompProfile", {"type": "RuntimeDefault"}),
        (container["securityContext"], "allowPrivilegeEscalation", False),
        (container["securityContext"], "readOnlyRootFilesystem", True),
        (container["securityContext"], "capabilities", {"drop": ["ALL"]}),
    ]:
        require(holder.get(name) == value, f"{overlay}: {name} is {holder.get(name)}, not {value}")
    require("memory" in container["resources"]["limits"], f"{overlay}: without a limit there is no budget for models")
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    require(settings["HOTSERVE_CACHE_DIR"] in mounts, f"{overlay}: the cache folder is not on a volume")
    for variable, value in settings.items():
        if variable.endswith(("_FILE", "_KEYS")):
            require(any(value.startswith(f"{path}/") for path in mounts), f"{overlay}: {variable} is on no volume")
    volumes = {volume["name"] for volume in pod["volumes"]}
    require(set(mounts.values()) == volumes, f"{overlay}: volumes {volumes}, mounts {set(mounts.values())}")
    for monitor in (document for document in documents if document["kind"] == "ServiceMonitor"):
        spec, labels = monitor["spec"], service["metadata"]["labels"]
        require(set(spec) <= {"jobLabel", "selector", "endpoints"}, f"{overlay}: a ServiceMonitor has no {set(spec)}")
        require(spec["selector"]["matchLabels"].items() <= labels.items(), f"{overlay}: nothing to scrape")
        require(labels[spec["jobLabel"]] == "hotserve", f"{overlay}: the alerts know the job by its name")
        ports = {port["name"] for port in service["spec"]["ports"]}
        wanted = "ops" if "HOTSERVE_OPS_LISTEN" in settings else "http"
        require(spec["endpoints"][0]["port"] == wanted, f"{overlay}: the metrics are on port {wanted}")
        for endpoint in spec["endpoints"]:
            known = {"port", "path", "interval", "scrapeTimeout"}
            require(set(endpoint) <= known, f"{overlay}: an endpoint has no {set(endpoint) - known}")
            require(endpoint["port"] in ports, f"{overlay}: the service has no port {endpoint['port']}")
    for scaler in (document for document in documents if document["kind"] == "HorizontalPodAutoscaler"):
        require("replicas" not in deployment["spec"], f"{overlay}: replicas beside an autoscaler")
        most, fleet = scaler["spec"]["maxReplicas"], int(settings.get("HOTSERVE_FLEET_SIZE", "0"))
        require(fleet in (0, most), f"{overlay}: HOTSERVE_FLEET_SIZE is {fleet}, and the autoscaler makes {most}")
        for metric in scaler["spec"]["metrics"]:
            name = metric.get("pods", {}).get("metric", {}).get("name")
            adapter = text("deploy/kubernetes/components/autoscaling/adapter-values.yaml")
            require(name is None or f'"{name}"' in text("src/metrics.rs"), f"{overlay}: the server exports no {name}")
            require(name is None or f"seriesQuery: {name}{{" in adapter, f"{overlay}: the adapter knows no {name}")


# -- AWS --------------------------------------------------------------------------------------------------------------

# The names that the policies use for what storage.yaml makes.
STREAM = "arn:aws:kinesis:eu-central-1:111122223333:stream/updates"
NAMES = {
    "Stream.Arn": STREAM,
    "Bucket.Arn": "arn:aws:s3:::my-models",
    "Key.Arn": "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555",
    "Prefix": "prod",
}


class Template(yaml.SafeLoader):
    """CloudFormation's short forms, with the names above in place of what they mean."""


def short(loader, tag, node):
    if tag == "GetAtt":
        return NAMES.get(node.value, f"!GetAtt {node.value}")
    if tag == "Sub" and isinstance(node, yaml.ScalarNode):
        return re.sub(r"\$\{([^}]+)\}", lambda found: NAMES.get(found[1], found[0]), node.value)
    build = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence}
    return {tag: build.get(type(node), loader.construct_mapping)(node)}


Template.add_multi_constructor("!", short)


def policies():
    return {path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "aws/policies").glob("*.json"))}


def check_cloudformation():
    templates = sorted((DEPLOY / "aws").glob("*.yaml"))
    run(["cfn-lint", *templates])
    resources = yaml.load(text("deploy/aws/storage.yaml"), Template)["Resources"]
    made = {
        re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(): resource["Properties"]["PolicyDocument"]
        for name, resource in resources.items()
        if resource["Type"] == "AWS::IAM::ManagedPolicy"
    }
    require(made.keys() == policies().keys(), f"policies/ has {set(policies())}, storage.yaml {set(made)}")
    for name, policy in policies().items():
        require(made[name] == policy, f"storage.yaml's {name} is not policies/{name}.json")
    task = yaml.load(text("deploy/aws/service.yaml"), Template)["Resources"]["Task"]["Properties"]
    stop = task["ContainerDefinitions"][0]["StopTimeout"]
    require(25 < stop <= 120, f"StopTimeout {stop}: longer than --drain, and at most 120 on Fargate")
    names = ", ".join(path.name for path in templates)
    return f"cfn-lint finds nothing in {names}, and the policies are those of policies/"


# A call of the SDK and the action that allows it, where names differ. None: `hotserve dev` alone, or no permission.
CALLS = {
    "list_objects_v2": "s3:ListBucket",
    "get_caller_identity": None,
    "create_stream": None,
    "create_bucket": None,
    "head_bucket": None,
}
# What no call shows: a version of an object by GetObject, and the key behind stream and bucket.
BEHIND = {"s3:GetObjectVersion", "kms:Decrypt", "kms:GenerateDataKey"}
SDK = (
    r"\.((?:list|get|put|head|describe|register|deregister|subscribe|create|delete|update|merge|split)_[a-z0-9_]+)\(\)"
)
# Named as calls are, and none.
OTHERS = {"list_of", "get_ref", "get_mut"}


def check_iam():
    called = set()
    for path in (ROOT / "src").rglob("*.rs"):
        source = path.read_text()
        if path.is_relative_to(ROOT / "src/embedded") or "aws_sdk_" not in source and "Probe" not in source:
            continue
        s3 = {"get_object", "put_object"}
        for call in set(re.findall(SDK, source)) - OTHERS:
            plain = "".join(part.capitalize() for part in call.split("_"))
            action = CALLS.get(call, f"{'s3' if call in s3 else 'kinesis'}:{plain}")
            called |= {action} - {None}
    allowed = set()
    for name, policy in policies().items():
        found = subprocess.run(["parliament", "--json"], input=json.dumps(policy), capture_output=True, text=True)
        require(found.returncode == 0 and not found.stdout.strip(), f"{name}: {found.stdout or found.stderr}")
        for statement in policy["Statement"]:
            actions = statement["Action"]
            allowed |= set([actions] if isinstance(actions, str) else actions)
    require(
        called == allowed - BEHIND,
        f"called and not allowed: {called - allowed}; allowed and not called: {allowed - BEHIND - called}",
    )
    return f"parliament finds nothing, and the {len(called)} actions are those that the program calls"


def check_policies():
    """Whether they are enough, and no more, for programs that ask a service which obeys them."""
    return run([sys.executable, ROOT / "scripts/deploy_iam.py"]).strip()


# -- systemd ----------------------------------------------------------------------------------------------------------

UNIT = DEPLOY / "systemd/hotserve.service"


def check_systemd():
    unit = UNIT.read_text()
    with tempfile.TemporaryDirectory() as folder:
        # Where the program is on this machine: the analyser asks for it.
        copy = pathlib.Path(folder) / UNIT.name
        copy.write_text(unit.replace("/usr/local/bin/hotserve", HOTSERVE))
        said = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
        ours = [line for line in (said.stdout + said.stderr).splitlines() if UNIT.name in line]
        require(said.returncode == 0 and not ours, "\n".join(ours) or said.stderr)
        shown = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=20", copy], capture_output=True, text=True
        )
    score = shown.stdout.strip().splitlines()[-1].strip("→ ")
    require(shown.returncode == 0, f"more exposed than 2.0: {score}")
    drain = 25
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1])
    require(stop > drain, f"TimeoutStopSec={stop} is not longer than --drain")
    return f"systemd-analyze finds nothing. {score}"


def check_walls():
    """The program within the walls of the unit: a model must be tried in a probe that builds its own."""
    if os.geteuid() != 0:
        return "not tried: only root can build walls"
    done = subprocess.run(["/usr/bin/python3", ROOT / "scripts/deploy_walls.py", UNIT], capture_output=True, text=True)
    require(done.returncode == 0, (done.stdout + done.stderr).strip())
    return done.stdout.strip()


# -- what is named ----------------------------------------------------------------------------------------------------

# Flags of other programs, and ours where no help shows them.
FLAGS = set(
    """build-arg capabilities chown edges features from-literal install interval mount no-default-features now
    parameter-overrides pipe prefix profile property raw release retries locked stack-name start-period template-file timeout
    values workspace write""".split()
)
VARIABLES = {"HOTSERVE_ADMIN_TOKEN", "HOTSERVE_REVISION", "HOTSERVE_CONFIG"}


def known():
    """The subcommands, flags and variables of the program, from its help."""
    commands, flags, variables = set(), set(), set()
    waiting = [()]
    while waiting:
        path = waiting.pop()
        help_text = run([HOTSERVE, *path, "--help"])
        flags |= set(re.findall(r"--([a-z][a-z0-9-]+)", help_text))
        variables |= set(re.findall(r"env:\s+([A-Z_]+)=", help_text))
        part = re.search(r"^Commands:\n((?:  .*\n)+)", help_text, re.M)
        for name in re.findall(r"^  ([a-z][a-z-]*)  ", part[1], re.M) if part else []:
            if name != "help":
                commands.add((*path, name))
                waiting.append((*path, name))
    return commands, flags, variables


def check_settings():
    """The settings of deploy/, as the program reads them."""
    if ("config", "check") not in known()[0]:
        return "not tried: this program has no config check"
    environments = {
        "hotserve.env": dict(
            line.split("=", 1)
            for line in text("deploy/systemd/hotserve.env").splitlines()
            if "=" in line and line[0] != "#"
        )
    }
    for overlay in sorted((DEPLOY / "kubernetes/overlays").iterdir()):
        documents = yaml.safe_load_all(kustomize(f"overlays/{overlay.name}"))
        settings = next(
            each["data"] for each in documents if each["kind"] == "ConfigMap" and "AWS_REGION" in each["data"]
        )
        # What lies on volumes there, from where it lies here.
        found = {name: value for name, value in settings.items() if not name.endswith("_FILE")}
        if "HOTSERVE_TRUSTED_KEYS" in found:
            found["HOTSERVE_TRUSTED_KEYS"] = str(overlay / "keyring.toml")
        environments[overlay.name] = found | (
            {"HOTSERVE_ADMIN_TOKEN": "x" * 32} if "HOTSERVE_ADMIN_LISTEN" in found else {}
        )
    for name, settings in environments.items():
        done = subprocess.run([HOTSERVE, "config", "check"], env=settings, capture_output=True, text=True)
        require(done.returncode == 0 and "warning" not in done.stderr, f"{name}: {done.stdout}{done.stderr}".strip())
    return f"{', '.join(environments)}: a server would start with them"


def anchors(page):
    """The headings of a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links():
    count = 0
    for page in [
        DEPLOY / "README.md",
        *(ROOT / "docs" / name for name in ("operations.md", "troubleshooting.md", "security.md")),
    ]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            require(target.exists(), f"{page.name}: {link} leads nowhere")
            require(not anchor or anchor in anchors(target), f"{page.name}: {target.name} has no heading {anchor}")
            count += 1
    return f"{count} links lead somewhere"


PAGES = ["docs/operations.md", "docs/troubleshooting.md", "docs/security.md", "README.md"]


def check_names():
    commands, flags, variables = known()
    wrong = []
    files = [path for path in DEPLOY.rglob("*") if path.is_file()] + [
        ROOT / page for page in PAGES if (ROOT / page).exists()
    ]
    for path in files:
        where = path.relative_to(ROOT)
        if path == RULE:
            continue
        content = path.read_text()
        for flag in set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", content)) - flags - FLAGS:
            wrong.append(f"{where}: --{flag}")
        names = set(re.findall(r"\b(HOTSERVE_[A-Z0-9_]+)(?![\w…])", content)) - VARIABLES
        for variable in names - variables:
            wrong.append(f"{where}: {variable}")
        # Where a command is written as one: in quotes, behind a prompt of a unit, an entry of an image.
        asked = re.findall(
            r"(?:`|^|bin/|\$ |; |& |\| )hotserve ((?:[a-z][a-z-]*)(?: [a-z][a-z-]+)?)(?=[ `\n])", content, re.M
        )
        asked += [name for name in re.findall(r'/hotserve"?, "?([a-z-]+)', content)]
        for command in asked:
            first = tuple(command.split()[:1])
            two = tuple(command.split()[:2])
            nested = any(len(name) > 1 and name[:1] == first for name in commands)
            if first not in commands or nested and len(two) > 1 and two not in commands:
                wrong.append(f"{where}: hotserve {command}")
    require(not wrong, "the program does not know:\n  " + "\n  ".join(sorted(set(wrong))))
    return f"every flag, variable and command of {len(files)} files is one of {run([HOTSERVE, '--version']).strip()}"


CHECKS = [
    check_copies,
    check_dockerfile,
    check_kubernetes,
    check_cloudformation,
    check_iam,
    check_policies,
    check_systemd,
    check_walls,
    check_names,
    check_settings,
    check_links,
]


def main():
    arguments = sys.argv[1:]
    if "--write" in arguments:
        RULE.write_text(rule())
    only = [name for name in arguments if not name.startswith("--")]
    failed = 0
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        if only and name not in only:
            continue
        try:
            print(f"{name}: {check()}", flush=True)
        except Wrong as found:
            failed += 1
            print(f"FAILED {name}: {found}", flush=True)
    sys.exit(1 if failed else 0)


main()
