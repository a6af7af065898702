"""Looks over the nodes of a cluster, before a run (in seconds, a few things) or when asked (everything)."""

from collections.abc import Callable, Iterator, Mapping

from distmeta.cluster.connect import check_workers_fit, prepare_environment
from distmeta.cluster.findings import (
    Answers,
    Finding,
    Level,
    accelerator_findings,
    answer_findings,
    clock_findings,
    disk_findings,
    facts_of,
    link_findings,
    network_findings,
    place_findings,
    version_findings,
    wandb_findings,
)
from distmeta.cluster.named_cluster import connection, named_cluster
from distmeta.cluster.node_facts import TEMPORARY, Question, node_facts
from distmeta.cluster.places import Place, look_back, marked, places_of
from distmeta.cluster.probes import Node, Probes, living_nodes, probes
from distmeta.cluster.worker_memory import is_one_node, note_facts
from distmeta.config import Config
from distmeta.errors import UserError
from distmeta.plan.memory import (
    check_model_states_fit,
    choose_weights,
    gib,
    memory_of_a_worker,
    network_sizes,
    states_of,
    worker_bytes,
)
from distmeta.plan.states import FLOAT
from distmeta.rundir import RunDirectory
from distmeta.tracking import wandb_environment

SHORT, WHOLE = 30.0, 90.0
"""Seconds in which a node has to answer, before a run and when all is asked."""

LINKS = 30.0
"""Seconds for the connections between nodes."""


def check_nodes(config: Config, run: RunDirectory, say: Callable[[str], None]) -> None:
    """Refuses a run on several nodes that could not go well there: a node that says nothing, another software on one, a
    folder that one does not see. Of a cluster of one node, or none, nothing is asked.

    Raises:
        UserError: a line a fault, with the node.
    """
    if not named_cluster() or is_one_node():
        return
    prepare_environment()
    with connection():
        nodes = _may_work(living_nodes(), config)
        if len(nodes) < 2:
            return
        say(f"looking over {len(nodes)} nodes of the cluster (seconds, {SHORT:g} at most)")
        with probes(nodes) as asked, marked(places_of(config, run)) as places:
            answers, back = _ask(asked, config, places, SHORT)
    note_facts(facts_of(answers))
    found = [*answer_findings(answers), *version_findings(answers), *place_findings(answers, places, back)]
    if faults := [each for each in found if each.level == "fault"]:
        raise UserError("\n".join(f"{each.about}: {each.text}" for each in faults))


def doctor(config: Config, run: RunDirectory, say: Callable[[str], None]) -> Iterator[Finding]:
    """Everything that can be found out about the named cluster, or this machine, and a run there.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if named_cluster():
        yield from _of_cluster(config, run, say)
    else:
        with marked(places_of(config, run)) as places:
            here = Node("this machine", "", "", 0.0, 0.0, is_here=True)
            answers = {here: node_facts(_question(config, here, places, is_whole=True))}
            back = _seen_back(answers, places)
        yield from _of_nodes(config, answers, places, back)
    yield from _of_plan(config)


def _of_cluster(config: Config, run: RunDirectory, say: Callable[[str], None]) -> Iterator[Finding]:
    prepare_environment()
    with connection():
        nodes = living_nodes()
        say(f"looking over {len(nodes)} nodes of the cluster (half a minute, two at most)")
        with probes(nodes) as asked, marked(places_of(config, run)) as places:
            answers, back = _ask(asked, config, places, WHOLE, is_whole=True)
            well = list(facts_of(answers))
            clocks = asked.clocks([node for node in well if not node.is_here])
            links = asked.links(well, LINKS) if len(well) > 1 else {}
    note_facts(facts_of(answers))
    yield from _of_nodes(config, answers, places, back)
    if len(nodes) > 1:
        yield from network_findings(answers)
        yield from link_findings(links)
        yield from clock_findings(clocks)


def _of_nodes(
    config: Config, answers: Answers, places: list[Place], back: Mapping[tuple[str, Node], str]
) -> Iterator[Finding]:
    yield from answer_findings(answers)
    yield from version_findings(answers)
    yield from accelerator_findings(answers)
    yield from place_findings(answers, places, back)
    yield from disk_findings(answers, _written(config))
    yield from wandb_findings(answers)


def _of_plan(config: Config) -> Iterator[Finding]:
    """Whether the run has room in what there is."""
    told: list[str] = []
    try:
        check_workers_fit(config)
        choose_weights(config, told.append)
        check_model_states_fit(config)
    except UserError as error:
        yield from (_finding("fault", line) for line in str(error).splitlines())
        return
    yield from (_finding("ok", line) for line in told)
    sizes = network_sizes(config, config.tokenizer.vocab_size)
    needed, there = worker_bytes(config, states_of(config, sizes)), memory_of_a_worker(config)
    if there is None:
        text = f"a worker's model states take {gib(needed)}, and no node that could hold one says what it has"
        yield Finding("warning", "memory", f"{text}: ask again when there is one")
    else:
        text = f"a worker's model states take {gib(needed)}, {there[1]} {gib(there[0])}"
        yield Finding("ok", "memory", f"{text}; `distmeta plan` measures what comes on top")


def _finding(level: Level, line: str) -> Finding:
    """A line that begins with the setting that it is about, as a finding."""
    about, _, text = line.partition(": ")
    return Finding(level, about, text)


def _written(config: Config) -> dict[str, float]:
    """Bytes that a run writes, by where: of a model's numbers a checkpoint has the weights, the best weights and two
    moments of those that are trained; beside them are kept starting and best weights, and both as exported models."""
    sizes = network_sizes(config, config.tokenizer.vocab_size)
    checkpoint = FLOAT * 2.0 * (sizes.parameters + sizes.trained)
    checkpoints = checkpoint * (config.train.checkpoints_to_keep + 1)  # the new one before the oldest goes
    models = FLOAT * 4.0 * sizes.parameters
    written = {TEMPORARY: checkpoint, "--run-dir": models}
    written["train.storage" if config.train.storage else "--run-dir"] = (
        checkpoints if config.train.storage else checkpoints + models
    )
    return written


def _ask(
    asked: Probes, config: Config, places: list[Place], seconds: float, *, is_whole: bool = False
) -> tuple[Answers, dict[tuple[str, Node], str]]:
    """What the nodes say, and how what they have written is seen from here."""
    answers = asked.facts(lambda node: _question(config, node, places, is_whole=is_whole), seconds)
    return answers, _seen_back(answers, places)


def _seen_back(answers: Answers, places: list[Place]) -> dict[tuple[str, Node], str]:
    """What is wrong with what a node has written, as it is seen from here; nothing where it is right."""
    return {
        (place.key, node): look_back(place, _own(node))
        for node, facts in facts_of(answers).items()
        for place in places
        if place.key not in facts.unseen
    }


def _question(config: Config, node: Node, places: list[Place], *, is_whole: bool) -> Question:
    return Question(
        address=node.address,
        own=_own(node),
        places=tuple(places),
        with_gpus=config.engine.device != "cpu" and (node.gpus > 0 or not named_cluster()),
        is_whole=is_whole,
        tracking=config.tracking.model_dump() if is_whole else {},
        wandb=wandb_environment.environment(),
    )


def _own(node: Node) -> str:
    return f"-{node.identity}"


def _may_work(nodes: list[Node], config: Config) -> list[Node]:
    """The nodes on which something of a run is done: that of this process, and those that may get a worker."""
    on_gpus = config.engine.device != "cpu" and any(node.gpus for node in nodes)

    def holds_worker(node: Node) -> bool:
        return node.cpus >= config.train.cpus_per_worker and (node.gpus >= 1 or not on_gpus)

    return [node for node in nodes if node.is_here or holds_worker(node)]
