"""The checks, in the order in which they run: `tests/containers/run --help`."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import triptych
from tests.containers.engine import ROOT, EngineError, Project, calls, compose_command, docker, inspect, run
from tests.containers.families import TEXT, text_only, with_pictures
from tests.containers.leftovers import removed_afterwards
from tests.containers.load import Load

T = TypeVar("T")

BASE = "python:3.11-slim-bookworm"
UID = 10001
PICTURE = ROOT / "demo" / "examples" / "scene.png"
SEEN = "a red circle, a blue square and a yellow star"  # is in it

GPU = "docker-compose.gpu.yml"
TLS = "docker-compose.tls.yml"
TIERS = {"vision": "Encode", "decoder": "Generate"}
"""What the gateway calls on each tier for every question about a picture."""

OURS = {"serving", "vision_service", "decoder_service", "gateway", "exporter", "triptych", "triptych_cli", "demo"}
HEAVY = {"torch", "onnxruntime", "onnxruntime_genai", "onnx"}
CONTENT = {
    "vision": {"serving", "vision_service", "torch"},
    "decoder": {"serving", "decoder_service", "onnx", "onnxruntime", "onnxruntime_genai"},
    "gateway": {"serving", "gateway"},
    "export": {
        "serving",
        "vision_service",
        "decoder_service",
        "exporter",
        "triptych",
        "triptych_cli",
        "demo",
        "torch",
        "onnxruntime",
        "onnxruntime_genai",
        "onnx",
    },
}
"""Which of our packages and of the heavy ones are in each image: these, and none of the others."""

LOOK_INSIDE = """
import importlib.metadata, importlib.util, json, os, sys
def writable(path):
    try:
        probe = os.path.join(path, "probe")
        open(probe, "w").close()
        os.remove(probe)
        return True
    except OSError:
        return False
print(json.dumps({
    "uid": os.getuid(),
    "gid": os.getgid(),
    "found": [name for name in sys.argv[1:] if importlib.util.find_spec(name)],
    "version": importlib.metadata.version("triptych"),
    "writable": [path for path in ("/", "/opt/venv", "/usr/local", "/var/tmp", "/bundle", "/tmp") if writable(path)],
    "kept": os.listdir("/tmp"),
}))
"""


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)  # noqa: T201  # what a person reads who started it


class Report:
    """Prints one line a check and counts them."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self._since = time.monotonic()

    def check(self, what: str, passed: bool, detail: object = "") -> None:
        """One check that has been made.

        Args:
            what: What holds where it passed.
            passed: Whether it did.
            detail: What was seen.
        """
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self.passed, self.failed = self.passed + passed, self.failed + (not passed)
        say(f"{'ok  ' if passed else 'FAIL'} {seconds:6.1f} s  {what}" + (f"  [{detail}]" if str(detail) else ""))


def main() -> int:
    """Run the checks. Returns the exit code."""
    options = _options()
    # Told to end, it tears down like one that is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report, began = Report(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch, project(options, Path(scratch)) as containers:
            for step in (build, images, start, containment, answers, scaling, stopping, killing, ending, families):
                step(containers, report)
    except (EngineError, triptych.TriptychError, OSError) as error:
        report.check(f"no error on the way: {error}", passed=False)
    except KeyboardInterrupt:
        report.check("not interrupted", passed=False)
    say(f"{report.passed} passed, {report.failed} failed  ({time.monotonic() - began:.0f} s)")
    return 1 if report.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/containers/run", description=__doc__, allow_abbrev=False)
    network = "network of the builds, as in `host` where only the host reaches a package index"
    index = "PIP_EXTRA_INDEX_URL of the builds, empty for none (default: the Dockerfiles')"
    parser.add_argument("--build-network", metavar="NAME", help=network)
    parser.add_argument("--torch-index", metavar="URL", help=index)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="serve this bundle instead of the demo model")
    parser.add_argument("--tag", metavar="NAME", help="tag of the images, which are kept then; else they are removed")
    return parser.parse_args()


@contextlib.contextmanager
def project(options: argparse.Namespace, scratch: Path) -> Iterator[Project]:
    """The compose project under a name of its own; afterwards neither containers, networks nor volumes are left.

    Nor are images, unless a tag was given for them.
    """
    tag = options.tag or f"test-{os.getpid()}"
    values = {
        "TRIPTYCH_TAG": tag,
        "GATEWAY_GRPC_PORT": _free_port(),
        "GATEWAY_HTTP_PORT": _free_port(),
        "VISION_MEMORY": "2g",
        "DECODER_CPUS": "1",
        **({"TRIPTYCH_BUNDLE": options.bundle.resolve()} if options.bundle else {}),
    }
    env_file = scratch / "settings.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    building = {
        **({"network": options.build_network} if options.build_network else {}),
        **({"args": {"PIP_EXTRA_INDEX_URL": options.torch_index}} if options.torch_index is not None else {}),
    }
    override = scratch / "override.yml"  # JSON is YAML
    services = ("bundle", "vision", "decoder", "gateway")
    override.write_text(json.dumps({"services": {name: {"build": building} if building else {} for name in services}}))
    containers = Project(compose_command(), f"triptych-test-{os.getpid()}", env_file, override)
    with contextlib.ExitStack() as stack:
        if options.tag is None:
            stack.enter_context(removed_afterwards([f"triptych-{name}:{tag}" for name in CONTENT], BASE))
        try:
            yield containers
        except Exception:
            say(containers.compose("logs", "--no-color", "--tail", "20", check=False))
            raise
        finally:
            # What is removed from here on is removed whole, however often it is told to end.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            containers.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def build(containers: Project, report: Report) -> None:
    """One image after the other: a small machine has no room for two PyTorch installations at once."""
    versions = docker("version", "--format", "engine {{.Server.Version}}").strip()
    words = run([*containers.command, "version"], seconds=60).splitlines()[0]
    report.check("there are an engine and compose", True, f"{versions}, {words}")
    gpu = containers.compose("-f", str(ROOT / GPU), "config")
    report.check(f"compose reads {GPU}", "VISION_DEVICE: cuda" in gpu and "capabilities" in gpu)
    text = containers.compose("-f", str(ROOT / TEXT), "config")
    report.check(f"compose reads {TEXT}", "GATEWAY_VISION" in text and "off" in text)
    tls = containers.compose("-f", str(ROOT / TLS), "config")
    report.check(f"compose reads {TLS}", "VISION_TLS_CERT: /tls/cert.pem" in tls and "/tls/door" in tls)
    for service in ("gateway", "decoder", "vision", "bundle"):
        containers.compose("build", service, seconds=1200)
        report.check(f"the image of {service} builds", True)


def images(containers: Project, report: Report) -> None:
    """What is in each image, and what it can write to."""
    base = inspect(BASE)["Size"]
    for name, content in CONTENT.items():
        tag = f"triptych-{name}:{_tag(containers)}"
        inside = json.loads(
            docker(
                "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--entrypoint=python",
                tag, "-c", LOOK_INSIDE, *OURS, *HEAVY, "pip",
            )
        )  # fmt: skip
        found = set(inside["found"])
        size = inspect(tag)["Size"]
        report.check(
            f"{tag} has what it needs and nothing else of ours, PyTorch or ONNX",
            found == content,
            f"{(size - base) / 1e6:,.0f} MB over {BASE}; {', '.join(sorted(found & (OURS | HEAVY)))}",
        )
        report.check(
            f"{tag} runs as user {UID} and writes nowhere but to /tmp",
            inside["uid"] == inside["gid"] == UID and inside["writable"] == ["/tmp"],  # noqa: S108
            inside["writable"],
        )
        label = inspect(tag)["Config"]["Labels"]["org.opencontainers.image.version"]
        report.check(f"{tag} is labelled with the version in it", label == inside["version"], label)


def _tag(containers: Project) -> str:
    return dict(line.split("=", 1) for line in containers.env_file.read_text().splitlines())["TRIPTYCH_TAG"]


def start(containers: Project, report: Report) -> None:
    """`up`, from nothing but images."""
    containers.compose("up", "--detach", "--no-build", seconds=600)
    containers.wait_healthy({"vision": 1, "decoder": 1, "gateway": 1}, seconds=120)
    report.check("`up` brings all services to healthy", True)
    made = containers.ids("bundle")[0]
    report.check("the bundle was made before", inspect(made)["State"]["ExitCode"] == 0, docker("logs", made).strip())


def containment(containers: Project, report: Report) -> None:
    """The limits and the locks of the running containers."""
    for service in ("vision", "decoder", "gateway"):
        container = containers.ids(service)[0]
        host = inspect(container)["HostConfig"]
        locked = host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
        locked = locked and any("no-new-privileges" in option for option in host["SecurityOpt"])
        report.check(f"{service}: read-only, without capabilities, without new privileges", locked)
        inside = json.loads(docker("exec", container, "python", "-c", LOOK_INSIDE))
        report.check(
            f"{service}: user {UID}, and the bundle cannot be written",
            inside["uid"] == UID and inside["writable"] == ["/tmp"],  # noqa: S108
        )
        memory, cores = host["Memory"] / 2**30, host["NanoCpus"] / 1e9
        wanted = {"vision": (2, 0), "decoder": (8, 1), "gateway": (2, 0)}[service]
        seen = f"{memory:g} GiB, {f'{cores:g} cores' if cores else 'all cores'}"
        report.check(f"{service}: has the limits of the settings", (memory, cores) == wanted, seen)
        if service in TIERS:
            networks = [inspect(name) for name in inspect(container)["NetworkSettings"]["Networks"]]
            report.check(f"{service}: has no way out of its network", all(network["Internal"] for network in networks))
        if service == "decoder":
            report.check(f"{service}: ONNX Runtime has nothing to report", not inside["kept"], inside["kept"] or "")


def answers(containers: Project, report: Report) -> None:
    """Questions from the host, through both doors."""
    client = [sys.executable, "-m", "triptych_cli", "ask", "What is in the picture?", "--image", str(PICTURE)]
    said = run([*client, "--address", containers.address(50051)], seconds=120).strip()
    report.check("`triptych ask` answers from the host", _right(containers, said), said[:100])

    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in the picture?"}]
    request = urllib.request.Request(
        f"http://{containers.address(8080)}/v1/chat/completions",
        data=json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 40}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310  # http, on the loopback
        said = json.load(response)["choices"][0]["message"]["content"].strip()
    report.check("the HTTP door answers from the host", _right(containers, said), said[:100])


def _right(containers: Project, answer: str) -> bool:
    """Whether an answer names what is to be seen; of a model that is not ours we ask only that it answers."""
    if "TRIPTYCH_BUNDLE" in containers.env_file.read_text():
        return bool(answer)
    return SEEN in answer.lower()


def scaling(containers: Project, report: Report) -> None:
    """Two replicas of each tier, found by a gateway that goes on running."""
    gateway = containers.ids("gateway")
    two = ["--scale", "vision=2", "--scale", "decoder=2"]
    containers.compose("up", "--detach", "--no-build", "--no-recreate", *two, seconds=300)
    containers.wait_healthy({"vision": 2, "decoder": 2, "gateway": 1}, seconds=120)
    report.check("two of each tier are healthy, beside the same gateway", containers.ids("gateway") == gateway)
    _reach_all(containers, report, "requests reach both replicas")


def _reach_all(containers: Project, report: Report, what: str) -> None:
    """Ask until every replica has answered anew."""
    before = _calls(containers)
    with Load(containers.address(50051), PICTURE.read_bytes(), people=2) as load:
        more = _until(lambda: _difference(containers, before), lambda new: all(map(all, new.values())), seconds=120)
    for tier, counts in more.items():
        report.check(f"{tier}: {what}", len(counts) == 2 and all(counts), " and ".join(f"{n} calls" for n in counts))
    report.check(f"{len(load.outcomes)} questions meanwhile, none failed", not load.failures, _describe(load))


def _calls(containers: Project) -> dict[str, list[int]]:
    return {tier: [calls(c, method) for c in containers.ids(tier)] for tier, method in TIERS.items()}


def _difference(containers: Project, before: dict[str, list[int]]) -> dict[str, list[int]]:
    now = _calls(containers)
    return {tier: [n - old for n, old in zip(now[tier], before[tier], strict=True)] for tier in TIERS}


def _until(look: Callable[[], T], enough: Callable[[T], bool], *, seconds: float) -> T:
    """Look again and again until it is enough or the time is over. Returns what was seen last."""
    end = time.monotonic() + seconds
    while not enough(seen := look()) and time.monotonic() < end:
        time.sleep(1)
    return seen


def _describe(load: Load) -> str:
    return "; ".join(f"after {o.tokens} tokens and {o.ended - o.began:.1f} s: {o.error}" for o in load.failures[:3])


def stopping(containers: Project, report: Report) -> None:
    """`docker stop` under load fails no request; what was stopped is found again when it is back."""
    for tier in TIERS:
        replica = containers.ids(tier)[1]
        with Load(containers.address(50051), PICTURE.read_bytes()) as load:
            load.wait_for(8)
            docker("stop", "--time", "45", replica)
            during = len(load.outcomes)
            load.wait_for(20)
        code = inspect(replica)["State"]["ExitCode"]
        report.check(f"{tier}: a replica that is stopped under load ends with exit code 0", code == 0, code)
        fine = not load.failures and during > 8
        report.check(f"{tier}: meanwhile {len(load.outcomes)} questions, none failed", fine, _describe(load))
        docker("start", replica)
    containers.wait_healthy({"vision": 2, "decoder": 2}, seconds=120)
    _reach_all(containers, report, "a replica that came back is found")


def killing(containers: Project, report: Report) -> None:
    """`docker kill` under load: a lost vision replica is never seen, a lost decoder only after a first token."""
    for tier in TIERS:
        replica = containers.ids(tier)[0]
        with Load(containers.address(50051), PICTURE.read_bytes()) as load:
            load.wait_for(8)
            docker("kill", replica)
            load.wait_for(20)
        but = ", save one whose answer it was writing" if tier == "decoder" else ""
        excused = [
            outcome
            for outcome in load.failures
            if tier == "decoder"
            and outcome.tokens
            and outcome.error
            and outcome.error.code is triptych.Code.UNAVAILABLE
        ]
        report.check(
            f"{tier}: a replica that is killed under load fails no request{but}",
            len(excused) == len(load.failures),
            f"{len(load.outcomes)} asked, {len(excused)} cut off" + (f"; {_describe(load)}" if load.failures else ""),
        )


def ending(containers: Project, report: Report) -> None:
    """SIGTERM ends every service with exit code 0, in the middle of its work."""
    running = [containers.ids("gateway")[0], containers.ids("vision")[1], containers.ids("decoder")[1]]
    with Load(containers.address(50051), PICTURE.read_bytes(), people=2) as load:
        load.wait_for(4)
        began = time.monotonic()
        containers.compose("stop", seconds=180)
        seconds = time.monotonic() - began
        load.leave()
    codes = [inspect(container)["State"]["ExitCode"] for container in running]
    report.check("`stop` ends all services with exit code 0", codes == [0, 0, 0], f"{codes} in {seconds:.0f} s")


def families(containers: Project, report: Report) -> None:
    """Small random models of other families, each with the compose files that it needs."""
    for serve in (with_pictures, text_only):
        for what, passed, seen in serve(containers, f"triptych-export:{_tag(containers)}"):
            report.check(what, passed, seen)


if __name__ == "__main__":
    sys.exit(main())
