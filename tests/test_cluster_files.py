"""The files of clusters/, held to the schemas of those who read them, to the pins, and to what is safe."""

import gzip
import inspect
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from jsonschema import Draft202012Validator

from distmeta import cli
from distmeta.config import load_config
from tests.corpora import SHARED
from tests.test_requirements import constraints

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
RAY_UP = ("aws", "gcp", "on-premise")
MANIFESTS = sorted((CLUSTERS / "kuberay").glob("*.yaml"))
SCRIPTS = sorted(CLUSTERS.glob("*.sh"))
FILES = [*sorted(CLUSTERS.glob("*.yaml")), *MANIFESTS, *SCRIPTS, CLUSTERS / "Dockerfile"]
PINS = constraints()
PYTHON = "3.11"

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def ray_up(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` has it before it asks a cloud; raises where it would refuse."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole = prepare_config(config)
    validate_config(whole)
    return whole


def ray_resources(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each["apiVersion"].startswith("ray.io/")]


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_it(name: str):
    whole = prepared(ray_up(name))
    # Ray's own would install another Ray in the place of the pinned one.
    assert not [key for key in whole if key.endswith("setup_commands") and whole[key]]
    head, worker = (whole[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert "--num-cpus=0" in head, "no worker on the head"
    assert "--dashboard-host=127.0.0.1" in head
    assert "--env RAY_AUTH_MODE=token" in whole["docker"]["run_options"]
    assert all(". ~/secrets/environment" in command for command in (head, worker))
    with pytest.raises(Exception, match="typo"):
        prepared(ray_up(name) | {"typo": 1})


@pytest.mark.parametrize("name", ["aws", "gcp"])
@pytest.mark.parametrize(("lately_none", "taken"), [({}, "spot"), ({"spot": 0.0}, "on-demand")])
def test_workers_are_spot_machines_while_there_are_any(name: str, lately_none: dict[str, float], taken: str):
    """By Ray's own autoscaler, for the eight workers of one run."""
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    class Silent(AutoscalerEventLogger):
        def __init__(self) -> None: ...
        def log_cluster_scheduling_update(self, *_: Any, **__: Any) -> None: ...

    config = AutoscalingConfig(prepared(ray_up(name)), skip_content_hash=True)
    workers = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 8
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        gang_resource_requests=[GangResourceRequest(requests=workers)],
        recoverable_resource_availabilities=lately_none,
    )
    reply = ResourceDemandScheduler(Silent()).schedule(request)
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == {taken: 2}


def strict(schema: Any) -> Any:
    """A schema that takes no fields but its own, as the API server does when it validates strictly."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


def crd(kind: str) -> dict[str, Any]:
    for above in Path(__file__).resolve().parents:
        if (file := above / SHARED / "kuberay" / f"ray.io_{kind.lower()}s.yaml.gz").exists():
            versions = yaml.load(gzip.decompress(file.read_bytes()), yaml.CSafeLoader)["spec"]["versions"]
            schema = next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"]
            metadata = {"type": "object", "properties": {"name": {"type": "string"}}}
            return strict(schema | {"properties": schema["properties"] | {"metadata": metadata}})
    pytest.skip(f"{SHARED}/kuberay is not here")


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_kuberay_takes_it(file: Path):
    (resource,) = ray_resources(file)
    validator = Draft202012Validator(crd(resource["kind"]))
    assert [error.message for error in validator.iter_errors(resource)] == []
    cluster_of(resource)["headGroupSpec"]["template"]["spec"]["containers"][0]["imagine"] = "typo"
    assert not validator.is_valid(resource)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_is_safe_and_fit_for_gpus(file: Path):
    (resource,) = ray_resources(file)
    cluster = cluster_of(resource)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(cluster):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "distmeta-environment", "optional": True}}]
    for pod in pods(cluster)[1:]:
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert "nvidia.com/gpu" in [toleration["key"] for toleration in pod["tolerations"]]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert pod["automountServiceAccountToken"] is False
    if resource["kind"] == "RayJob":
        assert resource["spec"]["backoffLimit"] > 0
        assert resource["spec"]["shutdownAfterJobFinishes"]
        assert "--resume" in resource["spec"]["entrypoint"], "a retry goes on"
    else:
        assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]


def submitted(file: Path) -> list[str]:
    """The commands of jobs/ that a file runs, or tells one to submit."""
    text = file.read_text()
    if file in MANIFESTS and ray_resources(file)[0]["kind"] == "RayJob":
        return [ray_resources(file)[0]["spec"]["entrypoint"].replace("/home/ray/distmeta/", "")]
    lines = re.sub(r"\\\n#\s*", "", text).splitlines()
    return [
        f"python {line[line.index('jobs/') :]}" for line in lines if re.search(r"-- python jobs/|sbatch .* jobs/", line)
    ]


COMMANDS = [pytest.param(line, id=f"{file.stem}") for file in FILES for line in submitted(file) if "..." not in line]


def test_there_are_commands():
    assert len(COMMANDS) == 7


@pytest.mark.parametrize("line", COMMANDS)
def test_what_is_submitted_is_a_command(line: str):
    python, script, *arguments = shlex.split(line.replace("$SCRATCH", "/scratch"))
    assert python == "python"
    assert (ROOT / script).exists()
    # There is no bucket to open.
    arguments = [re.sub(r"^\w+://", "/", argument) for argument in arguments]
    command = typer.main.get_command(cli.app).commands[Path(script).stem]  # type: ignore[attr-defined]
    options = command.make_context(script, arguments).params
    assert options["run_dir"]
    config = load_config(ROOT / options["config"], options["set"] or [], files=False)
    if "one-node" in line or "four-nodes" in line:
        assert config.engine.device == "cuda"


@pytest.mark.parametrize("name", ["prepare", "pretrain", "sweep", "evaluate"])
def test_a_job_is_the_command_of_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    first = inspect.getdoc(getattr(cli, name)).splitlines()[0]  # type: ignore[union-attr]
    assert first[:40] in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_sound(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not here: install distmeta[test]")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@every_file
def test_a_file_says_what_it_costs_and_what_to_do(file: Path):
    head = re.match(r"(#.*\n)+", file.read_text())[0]  # type: ignore[index]
    assert re.search(r"[Cc]osts", head), "what an hour costs"
    asked = {"Dockerfile": ["Change: nothing", "docker push"], "local.sh": ["clusters/local.sh"]}
    words = asked.get(file.name, ["Submit", "Watch" if file.stem != "two-nodes" else "watch", "End"])
    assert [word for word in words if word.lower() not in head.lower()] == []
    if file.name not in ("Dockerfile", "local.sh", "two-nodes.sh"):
        assert len(re.findall(r"# CHANGE", file.read_text())) >= 3


@every_file
def test_a_file_opens_nothing_and_holds_no_secret(file: Path):
    text = file.read_text()
    assert "0.0.0.0" not in text
    assert not re.search(
        r"RAY_AUTH_MODE[=:\s\"']+disabled|mode: disabled|LoadBalancer|NodePort|hostNetwork|Ingress", text
    )
    # A key's value is a variable, a file or a Secret of Kubernetes, or dots where the user has it.
    given = re.findall(r"(?i)\w*(?:api_key|secret_access_key|auth_token|password)[\"']?[=:] *([^\s,)}]+)", text)
    assert [value for value in given if not re.match(r"\$|\.\.\.|~|\{|/home/ray/secrets", value)] == []
    assert not re.search(r"\b(?=\w*[0-9])(?=\w*[a-f])[0-9a-f]{20,}\b", text)


@every_file
def test_versions_are_those_of_the_pins(file: Path):
    text = file.read_text()
    tag = f"ray{PINS['ray']}-py{PYTHON.replace('.', '')}"
    assert set(re.findall(r"REGISTRY/distmeta:(\S+)", text)) <= {tag}
    assert set(re.findall(r"rayVersion: \"(.*?)\"", text)) <= {PINS["ray"]}
    if file.suffix == ".yaml":
        assert tag in text
    assert "rayproject/" not in text, "such an image has no torch"


def test_the_image_is_of_the_pins_and_of_no_root():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (CLUSTERS / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [rest for step, rest in steps if step == "FROM"] == [f"python:{PYTHON}-slim-bookworm"]
    assert f">={PYTHON}" in project["requires-python"]
    installs = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint clusters/constraints.txt" in rest for rest in installs)
    assert [rest for step, rest in steps if step == "USER"] == ["ray"]
    assert f"PYTHON ?= python{PYTHON}" in (ROOT / "Makefile").read_text()
    copied = [rest.split()[:-1] for step, rest in steps if step == "COPY"]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(let_in) == sorted(source for sources in copied for source in sources)


@every_file
def test_the_readme_names_it(file: Path):
    section = (ROOT / "README.md").read_text().split("## On a cluster")[1].split("\n## ")[0]
    assert str(file.relative_to(CLUSTERS)) in section
