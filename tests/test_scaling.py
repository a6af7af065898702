"""How many workers are started and when, on nodes that are made up; and what a cluster is found to grow to."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2
from ray.train import FailureConfig, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.execution.controller.state import InitializingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from distmeta.cluster import connect
from distmeta.cluster.connect import runs_at_a_time
from distmeta.cluster.growth import Growth, NodeType, growth_of, whole_workers
from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.sweep.run import _at_a_time
from distmeta.train import failures, scaling
from distmeta.train.failures import Failures, told_apart
from distmeta.train.restart import StartAgain, StoppedWaiting, ask
from distmeta.train.scaling import Scaling


class Cluster:
    """Nodes of so many CPUs, all of them free but for what the workers hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.cpus = {"a": 1.0, "b": 1.0}
        self.leaving: dict[str, int] = {}
        self.held: dict[int, str] = {}
        self.refused: list[int] = []
        self.asked: list[Any] = []
        self.time = 0.0
        self.folder = folder
        monkeypatch.setattr(
            scaling, "usable_nodes", lambda: [self._node(n) for n in self.cpus if n not in self.leaving]
        )
        monkeypatch.setattr(scaling, "available_resources_per_node", self._free)
        monkeypatch.setattr(scaling, "placement_group_table", lambda group: {"bundles_to_node_id": self.held})
        monkeypatch.setattr(scaling, "refused_requests", lambda: self.refused)
        monkeypatch.setattr(scaling, "state", SimpleNamespace(get_draining_nodes=lambda: self.leaving))
        monkeypatch.setattr(scaling, "time", SimpleNamespace(monotonic=lambda: self.time, sleep=self._sleep))
        for name in ("_maybe_send_resource_request", "_send_resource_request"):
            monkeypatch.setattr(Scaling, name, lambda self: None)

    def _node(self, name: str) -> dict[str, Any]:
        return {"NodeID": name, "Resources": {"CPU": self.cpus[name]}}

    def _free(self) -> dict[str, dict[str, float]]:
        nodes = list(self.held.values())
        return {name: {"CPU": cpus - nodes.count(name)} for name, cpus in self.cpus.items()}

    def _sleep(self, seconds: float) -> None:
        self.time += seconds

    def policy(self, workers: tuple[int, int], limit: float = 100.0, cpus: float = 1.0) -> Scaling:
        config = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus})  # type: ignore[arg-type]
        return Scaling(config, self.folder / "events", self.folder / "stop", limit)

    def start(self, policy: Scaling) -> int:
        """The workers that it starts; 0: it waits."""
        decision = policy.make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            return 0
        assert isinstance(decision, ResizeDecision)
        policy.before_controller_execute_resize_decision(decision)
        self.held = dict(enumerate(list(self.cpus)[: decision.num_workers]))
        return decision.num_workers

    def group(self) -> Any:
        def execute_async(function: Any) -> None:
            self.asked.append(function)

        workers = [
            SimpleNamespace(metadata=SimpleNamespace(node_id=name, node_ip=name), execute_async=execute_async)
            for name in self.held.values()
        ]
        return SimpleNamespace(workers=workers, placement_group_handle=SimpleNamespace(placement_group=None))

    def told(self) -> list[str]:
        events = self.folder / "events"
        return [json.loads(line)["text"] for line in events.read_text().splitlines()] if events.exists() else []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    return Cluster(monkeypatch, tmp_path)


def run_for(cluster: Cluster, policy: Scaling, group: Any, seconds: int) -> None:
    for _ in range(seconds):
        policy.make_decision_for_running_worker_group(group, None)
        cluster.time += 1


def test_workers_are_lost_and_come_back_with_their_node(cluster: Cluster):
    policy = cluster.policy((1, 2))
    assert cluster.start(policy) == 2
    run_for(cluster, policy, cluster.group(), 60)
    del cluster.cpus["b"]
    policy.after_controller_state_update(None, RestartingState(training_failed_error=None))  # type: ignore[arg-type]
    assert cluster.start(policy) == 1
    group = cluster.group()
    run_for(cluster, policy, group, 30)
    cluster.cpus["c"] = 1.0
    run_for(cluster, policy, group, 30)
    assert cluster.asked == [ask]  # once
    policy.after_controller_state_update(None, RestartingState(training_failed_error=None))  # type: ignore[arg-type]
    assert cluster.start(policy) == 2
    assert cluster.told() == [
        "going on with 1 worker instead of 2: a node is gone",
        "there is room for 2 workers now: leaving a checkpoint after this step",
        "going on with 2 workers instead of 1: there is room again",
    ]


def test_a_worker_is_called_away_from_a_node_that_will_go(cluster: Cluster):
    policy = cluster.policy((1, 2))
    cluster.start(policy)
    group = cluster.group()
    run_for(cluster, policy, group, 5)
    assert not cluster.asked
    cluster.leaving = {"b": 0}
    run_for(cluster, policy, group, 5)
    assert cluster.asked == [ask, ask]
    policy.after_controller_state_update(None, RestartingState(training_failed_error=None))  # type: ignore[arg-type]
    assert cluster.start(policy) == 1


def test_room_is_waited_for_with_words_and_a_limit(cluster: Cluster):
    cluster.cpus = {}
    policy = cluster.policy((2, 2), limit=30)
    policy.after_controller_state_update(None, InitializingState())
    while cluster.time < 5:
        assert not cluster.start(policy)
    (line,) = cluster.told()
    assert line.startswith("waiting since 3 s for room for 2 workers of 1 CPU, and the cluster has it for 0 now; 30 s")
    cluster.time = 33
    with pytest.raises(UserError, match=r"train.wait_for_nodes: 33 s have gone without room for 2 workers"):
        cluster.start(policy)
    assert len(cluster.told()) == 1
    (cluster.folder / "stop").touch()
    with pytest.raises(StoppedWaiting):
        cluster.start(cluster.policy((2, 2)))


def test_a_request_that_the_autoscaler_refuses_is_made_smaller_or_given_up(cluster: Cluster):
    cluster.cpus = {}
    policy = cluster.policy((2, 8))
    cluster.refused = [8]
    while cluster.time < 5:
        cluster.start(policy)
    assert policy._get_num_workers_for_resource_request() == 2
    cluster.refused = [2]
    with pytest.raises(UserError, match=r"can never have room for 2 workers of 1 CPU, .*as its autoscaler says"):
        cluster.start(policy)


def test_shares_of_a_cpu_add_up(cluster: Cluster):
    cluster.cpus = {"a": 1.0}
    assert cluster.start(cluster.policy((10, 10), cpus=0.1)) == 10
    assert whole_workers({"CPU": 0.3}, {"CPU": 0.1}) == 3
    assert whole_workers({"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 1}) == 2
    assert whole_workers({"CPU": 8}, {"CPU": 1, "GPU": 1}) == 0


def test_workers_that_end_as_asked_are_no_loss_and_lost_nodes_are_not_counted(monkeypatch, tmp_path: Path):
    lost: dict[str, str] = {}
    monkeypatch.setattr(failures, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(failures, "lost_nodes", lambda: lost)
    policy = Failures(FailureConfig(max_failures=0), tmp_path / "events")

    def leave() -> None:
        raise StartAgain

    with pytest.raises(StartAgain) as raised:
        told_apart(leave)
    assert policy.make_decision(WorkerGroupError("", {0: raised.value})) is FailureDecision.RETRY
    assert not (tmp_path / "events").exists()
    closed = WorkerGroupError("", {0: RuntimeError("gloo: Connection reset by peer")})
    lost["node"] = "10.0.0.2"
    assert policy.make_decision(closed) is FailureDecision.RETRY
    assert "the node 10.0.0.2 does not answer; all workers are started again" in (tmp_path / "events").read_text()
    assert policy.make_decision(closed) is FailureDecision.RAISE  # it was lost before


# What a cluster can grow to

CONFIG = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8}, "max_workers": 0},
        "large": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2},
        "small": {"resources": {"CPU": 1}},
    },
}


def found(folder: Path, arguments: str | None, **stored: bytes) -> Growth | None:
    (folder / "17").mkdir(exist_ok=True)
    if arguments is not None:
        command = f"python -u /ray/autoscaler/v2/monitor.py --gcs-address=1.2.3.4:6379 {arguments}".split()
        (folder / "17" / "cmdline").write_text("\0".join(command))
    return growth_of("1.2.3.4:6379", lambda _, key: stored.get(key.decode()), folder)


def test_what_a_cluster_grows_to_is_found_where_it_is_told(tmp_path: Path):
    assert found(tmp_path, None) is None
    assert found(tmp_path, None, __autoscaler_v2_enabled=b"1") == Growth(None)
    mirrored, grown = ({"autoscaler_report": {"active_nodes": {kind: 1}}} for kind in ("node_17", "large"))
    assert found(tmp_path, None, __autoscaling_status=json.dumps(mirrored).encode()) is None
    assert found(tmp_path, None, __autoscaling_status=json.dumps(grown).encode()) == Growth(None)
    assert found(tmp_path, "") is None  # an autoscaler that has nothing to start
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(CONFIG))
    growing = found(tmp_path, f"--autoscaling-config={file}")
    assert growing == Growth([NodeType({"CPU": 4, "GPU": 1}, 2), NodeType({"CPU": 1}, 3)], 3)
    file.write_text("[")
    assert found(tmp_path, f"--autoscaling-config={file}") == Growth(None)
    reported = autoscaler_pb2.ClusterConfig()
    reported.node_group_configs.add(max_count=5).resources["CPU"] = 2
    assert found(tmp_path, "", __autoscaler_cluster_config=reported.SerializeToString()) == Growth(
        [NodeType({"CPU": 2}, 5)]
    )


GROWING = Growth([NodeType({"CPU": 4, "GPU": 1}, 2), NodeType({"CPU": 1}, 3)], 3)
HEAD = {"CPU": 1.0, "node:__internal_head__": 1.0}


def configured(workers: int | list[int], device: str = "cpu", tasks: int = 99) -> Config:
    tree = {"train": {"num_workers": workers}, "engine": {"device": device}, "meta": {"meta_batch_size": tasks}}
    return Config.model_validate(tree)


def test_there_and_to_come_and_never(monkeypatch: pytest.MonkeyPatch):
    connect._check(configured(10), [HEAD], "the cluster has", GROWING)  # 1 + 2 x 4 + 1
    with pytest.raises(UserError, match=r"need 11, the cluster has 1 and can grow to have room for 10: lower"):
        connect._check(configured(11), [HEAD], "the cluster has", GROWING)
    connect._check(configured(11), [HEAD], "the cluster has", Growth(None))
    connect._check(configured([1, 11]), [HEAD], "the cluster has")
    with pytest.raises(UserError, match=r"need 1, the cluster has 0: start nodes that have some"):
        connect._check(configured(1), [{}], "the cluster has")
    assert runs_at_a_time(configured(3), [HEAD]) == 0
    assert runs_at_a_time(configured(3), [HEAD], GROWING) == 3
    assert runs_at_a_time(configured(1, "auto"), [HEAD], GROWING) == 2  # GPUs
    assert runs_at_a_time(configured(3), [HEAD], Growth(None)) is None
    assert runs_at_a_time(configured([1, 3]), [HEAD]) == 1

    def workers(config: Config, growing: Growth | None) -> tuple[dict[str, float], int]:
        monkeypatch.setattr(connect, "growth", lambda: growing)
        return connect.workers_of(config)

    monkeypatch.setattr(connect, "living_nodes", lambda: [HEAD])
    assert workers(configured([1, 50], "auto"), GROWING) == ({"CPU": 1.0, "GPU": 1}, 2)
    assert workers(configured([1, 50], "auto"), None) == ({"CPU": 1.0}, 50)
    assert workers(configured([1, 50]), GROWING) == ({"CPU": 1.0}, 10)
    assert workers(configured(2, "cuda"), Growth(None)) == ({"CPU": 1.0, "GPU": 1}, 2)
    with pytest.raises(UserError, match=r"3 workers need as many GPUs, the cluster has 0 and can grow to have .* 2"):
        workers(configured(3, "cuda"), GROWING)
    with pytest.raises(UserError, match="3 workers need as many GPUs"):  # which no trial would ever get
        _at_a_time(configured(3, "cuda"), configured(3, "cuda"), lambda _: None)
