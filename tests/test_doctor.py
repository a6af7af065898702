"""What `distmeta doctor` finds, and what is refused before a run on several nodes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from distmeta.cluster import doctor, findings, link, places
from distmeta.cluster.doctor import check_nodes
from distmeta.cluster.findings import Finding
from distmeta.cluster.link import Link
from distmeta.cluster.named_cluster import reach
from distmeta.cluster.node_facts import TEMPORARY, NodeFacts, Question, node_facts
from distmeta.cluster.places import Place, look, look_back, marked, within
from distmeta.cluster.probes import Clock, Node, Silence
from distmeta.cluster.worker_memory import share
from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.plan.memory import choose_weights
from distmeta.recipes import filled
from distmeta.rundir import RunDirectory
from tests.commands import distmeta, distmeta_here
from tests.corpora import tiny_config, write_labelled_csv

GIB = 2**30
HERE, THERE, BEYOND = (
    Node(f"10.0.0.{n}", f"10.0.0.{n}", str(n), cpus=8.0, gpus=0.0, is_here=n == 1) for n in (1, 2, 3)
)
VERSIONS = {"python": "3.11.7", "distmeta": "0.1.0 (ab)", "torch": "2.13.0+cpu", "numpy": "2.2.0", "CUDA": "none"}


def facts(**changes: Any) -> NodeFacts:
    given = {"host": "h", "versions": VERSIONS, "memory": 64 * GIB, "interface": "e0", "own_address": "10.0.0.1"}
    return NodeFacts(**(given | changes))


def versions(**changes: str) -> NodeFacts:
    return facts(versions=VERSIONS | changes)


def told(found: Iterator[Finding], level: str) -> list[str]:
    return [f"{each.about}: {each.text}" for each in found if each.level == level]


# What is made of what nodes say


def test_nodes_with_other_software_are_named():
    same = {HERE: facts(), THERE: versions(python="3.11.9", torch="2.13.0+cu130"), BEYOND: facts()}
    (line,) = told(findings.version_findings(same), "ok")
    assert "torch 2.13.0+cpu, and" in line
    assert "the same on 3 nodes" in line
    differs = {HERE: facts(), THERE: versions(torch="2.12.0", numpy="2.1.0"), BEYOND: facts()}
    assert told(findings.version_findings(differs), "fault") == [
        "torch: 2.13.0 on 10.0.0.1 and 10.0.0.3, 2.12.0 on 10.0.0.2: install the same everywhere"
    ]
    (line,) = told(findings.version_findings(differs), "warning")
    assert line.startswith("numpy: ")
    (line,) = told(findings.version_findings({HERE: facts(), THERE: versions(distmeta="0.1.0 (cd)")}), "fault")
    assert "ray job submit" in line


def test_cuda_is_compared_where_there_are_gpus():
    gpus = [replace(node, gpus=8.0) for node in (THERE, BEYOND)]
    answers = {HERE: facts(), gpus[0]: versions(CUDA="12.8"), gpus[1]: versions(CUDA="12.8")}
    assert not told(findings.version_findings(answers), "fault")
    answers[gpus[1]] = versions(CUDA="13.0")
    assert told(findings.version_findings(answers), "fault") == [
        "CUDA: 12.8 on 10.0.0.2, 13.0 on 10.0.0.3: install the same everywhere"
    ]


def test_gpus_that_torch_does_not_see_are_told():
    node = replace(THERE, gpus=2.0)
    answers = {HERE: facts(accelerator="cpu"), node: facts(accelerator="2 x cuda", gpu_memory=(80 * GIB, 40 * GIB))}
    found = list(findings.accelerator_findings(answers))
    assert told(found, "ok") == ["accelerator: DeepSpeed sees cpu on 10.0.0.1, 2 x cuda of 40 GiB on 10.0.0.2"]
    answers[node] = facts(accelerator="cpu")
    (line,) = told(findings.accelerator_findings(answers), "fault")
    assert "Ray counts 2 GPUs on 10.0.0.2, torch sees 0" in line


def test_a_node_that_says_nothing_is_told_with_what_to_do():
    no_module = Silence("ModuleNotFoundError: No module named 'distmeta'")
    lines = told(findings.answer_findings({HERE: facts(), THERE: Silence("no answer"), BEYOND: no_module}), "fault")
    assert lines[0].startswith("10.0.0.2: says nothing (no answer): see whether")
    assert lines[1].startswith("10.0.0.3: distmeta cannot be imported there (ModuleNotFoundError")


def test_storage_that_a_node_does_not_see_is_told_with_the_node():
    place = Place("--run-dir", "/runs/x", marker="m")
    answers = {HERE: facts(), THERE: facts(unseen={"--run-dir": "is another folder there"}), BEYOND: facts()}
    (line,) = findings.place_findings(answers, [place], {})
    assert str(line).startswith("fault    --run-dir: /runs/x on 10.0.0.2: is another folder there: ")
    (line,) = findings.place_findings({HERE: facts(), BEYOND: facts()}, [place], {("--run-dir", BEYOND): "is not seen"})
    assert "on 10.0.0.3: is not seen" in line.text
    secret = Place("train.storage", "s3://key:secret@bucket/x?endpoint_override=h", fault="denied")
    (line,) = findings.place_findings(answers, [secret], {})
    assert line.text.startswith("s3://bucket/x cannot be written from here (denied)")


def test_slow_ways_and_wrong_clocks_are_told():
    links = {(HERE, THERE): Link(1e-4, 2e9), (THERE, BEYOND): Link(0.03, 2e9), (BEYOND, HERE): Silence("timed out")}
    found = list(findings.link_findings(links))
    assert told(found, "fault")[0].startswith("network: no connection from 10.0.0.3 to 10.0.0.1 (timed out): open all")
    assert "slow from 10.0.0.2 to 10.0.0.3, 30.00 ms a round trip, 16.00 Gbit/s" in told(found, "warning")[0]
    clocks = {THERE: Clock(-7.0, 0.1), BEYOND: Clock(1.05, 0.1)}
    assert [line.split(":")[1] for line in told(findings.clock_findings(clocks), "warning")] == [
        " 10.0.0.2 is 7.0 s (± 0.100 s) behind this node"
    ]


def test_interfaces_and_names_are_told():
    answers = {HERE: facts(own_address="127.0.1.1"), THERE: facts(interface="")}
    found = list(findings.network_findings(answers))
    assert "no interface of 10.0.0.2 holds that address" in told(found, "warning")[0]
    assert "network: 10.0.0.1: the own name stands for a loopback address" in told(found, "ok")[1]


def test_a_disk_that_is_too_small_is_told():
    answers = {HERE: facts(free={"--run-dir": 5 * GIB, TEMPORARY: GIB}), THERE: facts(free={TEMPORARY: GIB // 2})}
    found = list(findings.disk_findings(answers, {"--run-dir": 3 * GIB, TEMPORARY: 0.75 * GIB}))
    assert told(found, "ok") == ["--run-dir: 5.00 GiB are left, the run writes 3.00 GiB"]
    assert told(found, "fault")[0].startswith("temporary files: 0.50 GiB are left on 10.0.0.2, the run writes 0.75 GiB")


def test_how_wandb_records_is_told():
    online = facts(wandb="online")
    assert told(findings.wandb_findings({HERE: online}), "ok") == ["W&B: records online"]
    (line,) = told(findings.wandb_findings({HERE: online, THERE: facts(wandb="offline")}), "warning")
    assert "online on 10.0.0.1, offline on 10.0.0.2: give all nodes the same WANDB_API_KEY" in line
    (line,) = told(findings.wandb_findings({HERE: facts(wandb="online", wandb_fault="h does not answer")}), "warning")
    assert line.startswith("W&B: h does not answer on 10.0.0.1: without it")


def test_memory_of_a_worker_is_that_of_the_nodes_it_may_be_on():
    config = Config(train={"num_workers": 3, "cpus_per_worker": 4}, meta={"meta_batch_size": 3})
    head, small, large = replace(HERE, cpus=0.0), replace(THERE, cpus=4.0), BEYOND
    known = [(head, facts(memory=8 * GIB)), (small, facts(memory=16 * GIB)), (large, facts(memory=64 * GIB))]
    assert share(config, known) == (16 * GIB, "10.0.0.2 has for each of 1 workers")
    assert share(config, [*known[1:], (replace(large, identity="4"), facts(memory=60 * GIB))])[0] == 32 * GIB
    assert share(config, known[:2]) is None
    gpu = replace(large, gpus=2.0)
    assert share(config, [*known, (gpu, facts(gpu_memory=(80 * GIB, 40 * GIB)))])[0] == 40 * GIB
    assert share(config, [*known, (gpu, facts())]) is None
    config.engine.device = "cpu"
    assert share(config, [*known, (gpu, facts(memory=30 * GIB))])[0] == 30 * GIB


# What nodes do to find out


def test_what_one_node_writes_another_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(places, "LATE", 0.3)
    shared, other = Place("--run-dir", str(tmp_path / "new" / "run")), tmp_path / "other"
    other.mkdir()
    given = [shared, Place("train.storage", f"file://{tmp_path}/store"), Place("corpus.directory", "/proc/corpus")]
    (tmp_path / "store").mkdir()
    with marked(given) as written:
        assert [bool(place.marker) for place in written] == [True, True, False]
        assert written[2].fault
        assert [look(place, "-2") for place in written] == ["", "", ""]
        assert [look_back(place, "-2") for place in written[:2]] == ["", ""]
        assert look(replace(written[0], address=str(other)), "-2") == "is another folder there, or none"
        assert look_back(written[0], "-3") == "what it writes is not seen from this machine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["other", "store"]


def test_storage_that_never_answers_is_not_waited_for():
    waiting = threading.Event()
    assert within(0.05, lambda: str(waiting.wait())) == "no answer within 0.05 s"
    waiting.set()


def test_a_way_is_measured_and_one_that_is_closed_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link, "STREAM", 0.1)
    measured = link.measure("127.0.0.1", link.listen("127.0.0.1"))
    assert 0 < measured.latency < 0.1
    assert measured.bandwidth > 1e7
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        link.measure("127.0.0.1", closed)


def test_this_machine_says_what_it_is(monkeypatch: pytest.MonkeyPatch):
    found = node_facts(Question(address="127.0.0.1"))
    assert found.interface == "lo"
    assert {"python", "torch", "ray", "distmeta", "CUDA"} <= found.versions.keys()
    assert found.memory > GIB // 4


def test_doctor_of_this_machine_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = distmeta_here("doctor", "--json", cwd=tmp_path)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"versions", "accelerator", "--run-dir", "W&B", "memory"} <= {each["about"] for each in found}
    assert not list(tmp_path.iterdir())
    huge = "model.config={model_type: gpt2, n_embd: 12288, n_layer: 96, n_head: 96}"
    done = distmeta_here("doctor", "--set", huge, cwd=tmp_path)
    assert done.returncode == 2
    assert "fault    engine.zero_stage: at stage 0 with whole weights a worker needs" in done.stdout


# On nodes of Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        started.add_node(num_cpus=1)
        patched.setenv("RAY_ADDRESS", started.address)
        yield started
        started.shutdown()


def test_nodes_are_looked_over_before_a_run(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # which Ray has its workers import from
    config, run = filled(Config()), RunDirectory(tmp_path / "run")
    check_nodes(config, run, print)
    assert not list(tmp_path.iterdir())
    lines: list[str] = []
    choose_weights(config, lines.append)
    assert "has for each of 1 workers" in lines[0]

    package = tmp_path / "broken" / "distmeta"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not for this node')")
    broken = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(package.parent)})
    with pytest.raises(UserError, match=r"distmeta cannot be imported there \(ImportError: not for this node\)"):
        check_nodes(config, run, print)
    cluster.remove_node(broken, allow_graceful=False)

    # A node that is stopped is still one to Ray; a node without CPUs gets no worker.
    monkeypatch.setattr(doctor, "SHORT", 6.0)
    stopped = cluster.add_node(num_cpus=1)
    raylet = stopped.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process
    os.kill(raylet.pid, signal.SIGSTOP)
    try:
        since = time.monotonic()
        with pytest.raises(UserError, match=r"says nothing \(no answer within 6 s\)"):
            check_nodes(config, run, print)
        assert time.monotonic() - since < 25
        config.train.cpus_per_worker = 2.0
        check_nodes(config, run, print)
    finally:
        os.kill(raylet.pid, signal.SIGCONT)


@pytest.mark.slow
def test_separate_file_trees_are_refused_with_the_node(cluster: Cluster, tmp_path: Path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no file trees can be made here (unshare)")
    data = tmp_path / "data"
    data.mkdir()
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tiny_config(write_labelled_csv(tmp_path / "texts.csv"))))
    start = f"{sys.executable} -m ray.scripts.scripts start --address {cluster.address} --num-cpus 1 --block"
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs {data} && exec {start}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while len(reach().resources) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        since = time.monotonic()
        done = distmeta("pretrain", "-c", config, "--run-dir", data / "run", cwd=tmp_path, check=False)
        print(f"refused after {time.monotonic() - since:.1f} s:", done.stderr)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("distmeta: ")]
        assert done.returncode == 2
        assert f"--run-dir: {data / 'run'} on " in line
        assert "is another folder there, or none: give what all nodes see" in line
        since = time.monotonic()
        done = distmeta("doctor", "-c", config, "--run-dir", data / "run", cwd=tmp_path, check=False)
        print(f"doctor, after {time.monotonic() - since:.1f} s:", done.stdout)
        assert done.returncode == 2
        assert sum(line.startswith("fault") for line in done.stdout.splitlines()) == 1
        assert not list(data.iterdir())
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()
