"""What the keys of a configuration allow alone and no run can do together."""

import glob
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distmeta.corpus.config import BUILTINS, HUGGING_FACE, SourceConfig, is_remote
from distmeta.corpus.dataset_checks import contradictions_of_datasets, splits_without_data
from distmeta.corpus.datasets import datasets_of
from distmeta.errors import UserError
from distmeta.paths import check_folder, is_address, why_no_path
from distmeta.store.address import names_storage
from distmeta.tasks.config import SPLITS

if TYPE_CHECKING:
    from distmeta.config import Config
    from distmeta.meta.config import MetaConfig


LARGEST_MODEL_COUNTS = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 1000
    ),
    "num_labels": 10_000,
}
"""Of what is made one by one, also where a network is only looked at."""


def impossible(config: "Config") -> Iterable[str]:
    """A line for each thing that the keys allow alone and no run can do together."""
    tasks, meta, train = config.tasks, config.meta, config.train
    for key, value in _values(config.model_dump()):
        if isinstance(value, str) and re.search(r"://[^/@\s]+@", value):
            yield f"{key}: an address with a password in it would end up in every copy; keys belong in the environment"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: should be a finite number, got {value}"
    for key, value in config.model.config.items():
        most = LARGEST_MODEL_COUNTS.get(key)
        if most is not None and isinstance(value, int) and value > most:
            yield f"model.config.{key}: {value} is more than any model has; {most} at most"
    yield from _no_paths(config)
    if any(ratio < 0 for ratio in tasks.split_ratio) or abs(sum(tasks.split_ratio) - 1) > 1e-6:
        yield f"tasks.split_ratio: must be three shares that sum to 1, got {tasks.split_ratio}"
    yield from contradictions_of_datasets(config.corpus, tasks)
    needed: dict[str, str] = {"train": "is trained on", config.evaluate.split: "evaluate.split names"}
    needed |= {"valid": "train.validate_every needs"} if train.validates else {}
    yield from splits_without_data(config.corpus, tasks, needed)
    if tasks.max_sentences is not None and tasks.max_sentences < tasks.min_sentences:
        yield (
            f"tasks.max_sentences: {tasks.max_sentences} is below tasks.min_sentences {tasks.min_sentences}: "
            "no word could be a class"
        )
    if tasks.max_examples < tasks.fewest_texts:
        yield (
            f"tasks.max_examples: {tasks.max_examples} is below tasks.k_shot + tasks.query_per_class = "
            f"{tasks.fewest_texts}: no class could fill a task"
        )
    if tasks.max_texts is not None and tasks.max_texts < tasks.fewest_ways * tasks.fewest_texts:
        yield (
            f"tasks.max_texts: {tasks.max_texts} is below tasks.n_way {tasks.fewest_ways} x (tasks.k_shot + "
            f"tasks.query_per_class) {tasks.fewest_texts}: the smallest task has more texts"
        )
    pairs = [each.name for each in datasets_of(config.corpus, tasks) if each.labelled and each.pair_column is not None]
    for key, is_set in (
        ("tasks.class_names", tasks.class_names is not None),
        ("evaluate.class_names", bool(config.evaluate.class_names)),
    ):
        if is_set and pairs:
            yield f"{key}: a name is one text, and {pairs[0] or 'the labelled set'} has pairs of texts; leave it out"
    has_text = any(not dataset.labelled for dataset in datasets_of(config.corpus, tasks))
    if has_text and tasks.max_classes < 3 * tasks.fewest_ways:
        yield (
            f"tasks.max_classes: {tasks.max_classes} cannot give three splits of tasks.n_way {tasks.fewest_ways} "
            "classes"
        )
    if meta.meta_batch_size < train.most_workers:
        yield (
            f"meta.meta_batch_size: {meta.meta_batch_size} tasks cannot occupy train.num_workers {train.most_workers}: "
            "raise the one or lower the other"
        )
    for key, is_set in (
        ("average_with_start", train.average_with_start == "auto"),
        ("patience", bool(train.patience)),
    ):
        if is_set and not train.validates:
            yield (
                f"train.{key}: {getattr(train, key)} goes by validations, and train.validate_every is 0; give it "
                f"{'a number' if key == 'average_with_start' else '0'}, or leave one of them out"
            )
    if meta.lm_warmup_steps >= train.outer_steps:
        yield (
            f"meta.lm_warmup_steps: {meta.lm_warmup_steps} leaves no step of train.outer_steps {train.outer_steps} "
            "for tasks"
        )
    if config.engine.offload_optimizer and config.engine.zero_stage == 0:
        yield "engine.offload_optimizer: needs engine.zero_stage 1, 2 or 3, which is 0"
    if config.engine.weights == "partitioned":
        for key, value, possible in partitioned_needs(config):
            wanted = " or ".join(map(written, possible))
            yield f"engine.weights: partitioned needs {key} {wanted}, which is {written(value)}"
    yield from contradictions(meta)
    has_labels = any(each.labelled and each.role in (None, "train") for each in datasets_of(config.corpus, tasks))
    for key, is_set in (
        ("meta.algorithm: multitask", meta.algorithm == "multitask"),
        ("evaluate.multitask_baseline", config.evaluate.multitask_baseline),
    ):
        if is_set and not has_labels:
            yield f"{key}: has a head over the classes of labelled sets, and words of SMLMT are none; leave it out"
    if meta.algorithm == "multitask" and tasks.smlmt_share:
        yield "tasks.smlmt_share: multitask has heads over classes of labelled sets, and words of SMLMT are none; set 0"
    if meta.algorithm == "multitask" and config.evaluate.multitask_baseline:
        yield "evaluate.multitask_baseline: meta.algorithm is multitask already; leave it out"
    at_a_time = config.engine.tasks_at_a_time or 1
    threads = 1 if config.engine.device == "cuda" else max(1, round(train.cpus_per_worker))
    if at_a_time > 1 and config.engine.computation == "plain":
        yield "engine.tasks_at_a_time: engine.computation plain takes one after the other; leave one of them out"
    elif at_a_time > threads and (alone := _takes_tasks_alone(config)):
        yield (
            f"engine.tasks_at_a_time: with {alone} none go side by side, and a worker takes {threads} at a time, "
            "one for each of its threads (train.cpus_per_worker); lower it to that, or leave it out"
        )
    if config.model.name_or_path is None and not isinstance(config.model.config.get("model_type"), str):
        yield "model.config.model_type: must name a Hugging Face model type, such as bert or gpt2"


def _no_paths(config: "Config") -> Iterable[str]:
    """A line for each setting that is to be a path and is none."""
    corpus, tasks, train = config.corpus, config.tasks, config.train
    for key, text in (
        ("corpus.stop_words_file", corpus.stop_words_file),
        *((f"tasks.split_files.{name}", file) for name, file in (tasks.split_files or ())),
        ("tokenizer.name_or_path", config.tokenizer.name_or_path),
        ("model.name_or_path", config.model.name_or_path),
        ("evaluate.similarity", config.evaluate.similarity),
    ):
        if text is not None and (reason := why_no_path(text)):
            is_folder = key not in (
                "corpus.stop_words_file",
                "evaluate.similarity",
                *(f"tasks.split_files.{split}" for split in SPLITS),
            )
            yield f"{key}: {reason}; give a {'folder' if is_folder else 'file'} on a disk that all nodes see"
    for key, text in (("corpus.directory", corpus.directory), ("train.storage", train.storage)):
        if text is not None and not names_storage(text) and (reason := why_no_path(text)):
            hint = "an address has two slashes, as s3://bucket/folder" if is_address(text) else "give a folder"
            yield f"{key}: {reason}; {hint}"
    if corpus.directory is not None and not why_no_path(corpus.directory):
        try:
            check_folder(Path(corpus.directory), "corpus.directory")
        except UserError as error:
            yield str(error)


def missing_files(config: "Config") -> Iterable[str]:
    """A line for each file that the corpus is to be made from and that is not there."""
    for source in config.corpus.sources:
        path = source.path if isinstance(source, SourceConfig) else source
        is_hub_name = path.startswith(HUGGING_FACE) or (
            isinstance(source, SourceConfig) and source.format == "huggingface"
        )
        if path.startswith("builtin:") and path not in BUILTINS:
            yield f"corpus.sources: {path}: Python has {' and '.join(BUILTINS)} in it, and no other"
        if (
            not is_remote(path)
            and not is_hub_name
            and not os.path.exists(path)
            and not any(glob.iglob(path, recursive=True))
        ):
            yield f"corpus.sources: nothing is at {path}"
    for key, file in (
        ("corpus.stop_words_file", config.corpus.stop_words_file),
        *((f"tasks.split_files.{name}", file) for name, file in (config.tasks.split_files or ())),
        ("evaluate.similarity", config.evaluate.similarity),
    ):
        if file is not None and not why_no_path(file) and not os.path.isfile(file):
            yield f"{key}: there is no file {file}"


WITHOUT_INNER_LOOP = ("protonet", "metaicl", "multitask")
NOTHING_BUT_A_HEAD = ("anil", *WITHOUT_INNER_LOOP)
"""Algorithms that have no fast weights in the network, whatever `meta.adapt` says."""
WITHOUT_KEPT_SIMILARITY = ("maml", "fomaml", "reptile", "anil", "metasgd", "protomaml", "leopard", "metaicl")
"""Algorithms that ask for the features of a task's texts more than once, or not at all."""
WITHOUT_DISTANCES = (*WITHOUT_KEPT_SIMILARITY, "multitask")
OWN_TO_ALGORITHMS = ("second_order", "distance", "temperature", "learn_temperature", "keep_similarity")
"""Settings of meta-learning that another algorithm may not have."""


def contradictions(meta: "MetaConfig") -> Iterable[str]:
    """A line for each setting of meta-learning that its algorithm cannot follow, or would pass over."""
    name = meta.algorithm
    first_order = meta.second_order is False or name in ("fomaml", "reptile", *WITHOUT_INNER_LOOP)
    first_order |= name in ("protomaml", "leopard") and not meta.second_order
    if name == "reptile" and meta.adapt == "head":
        yield "meta.adapt: reptile moves what it adapts, and head leaves nothing that is kept; use another"
    if name in NOTHING_BUT_A_HEAD and meta.adapt not in ("all", "head"):
        yield f"meta.adapt: {name} adapts nothing in the network, whatever is set, and it is {meta.adapt}; leave it out"
    if name in ("fomaml", "reptile") and meta.second_order:
        yield f"meta.second_order: {name} is first order; use maml"
    if name in WITHOUT_INNER_LOOP and meta.second_order:
        yield f"meta.second_order: {name} has no inner loop; leave it out"
    if meta.recompute and first_order:
        yield f"meta.recompute: {name} as it is set keeps no graph of its inner steps; leave it out"
    if name == "metasgd" and meta.inner_rates != "fixed":
        yield "meta.inner_rates: metasgd learns a rate for every weight already; use fixed"
    if name in ("reptile", *WITHOUT_INNER_LOOP):
        if meta.inner_rates != "fixed":
            yield f"meta.inner_rates: {name} learns no rates; use fixed"
        if meta.multi_step_loss:
            yield f"meta.multi_step_loss: {name} takes no query loss after its inner steps; leave it out"
    if meta.keep_similarity and name in WITHOUT_KEPT_SIMILARITY:
        yield f"meta.keep_similarity: is of protonet and multitask, and meta.algorithm is {name}; leave it out"
    if name in WITHOUT_DISTANCES:
        changed = {"distance": meta.distance not in (None, "euclidean"), "temperature": meta.temperature is not None}
        for key, is_set in (changed | {"learn_temperature": meta.learn_temperature}).items():
            if is_set:
                yield f"meta.{key}: is protonet's alone, and meta.algorithm is {name}; leave it out"


def _takes_tasks_alone(config: "Config") -> str:
    """The setting for which a thread takes one task after the other, if there is one."""
    meta = config.meta
    if config.engine.computation == "bucketed":
        return "engine.computation bucketed"
    if meta.algorithm in ("reptile", "metaicl"):
        return f"meta.algorithm {meta.algorithm}"
    if meta.inner_clipping and meta.algorithm not in WITHOUT_INNER_LOOP:
        return f"meta.inner_clipping {meta.inner_clipping}"
    return ""


def partitioned_needs(config: "Config") -> Iterable[tuple[str, Any, tuple[Any, ...]]]:
    """What keeps a run from having partitioned weights: each key, the value that it has, and those that it may have."""
    meta, train = config.meta, config.train
    needed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "engine.zero_stage": (config.engine.zero_stage, (3,)),
        "meta.algorithm": (meta.algorithm, ("fomaml", "maml")),
        "meta.inner_optimizer": (meta.inner_optimizer, ("sgd",)),
        "meta.inner_clipping": (meta.inner_clipping, (0.0,)),
        "meta.inner_rates": (meta.inner_rates, ("fixed",)),
        "meta.multi_step_loss": (meta.multi_step_loss, (0.0,)),
        "meta.recompute": (meta.recompute, (False,)),
        "train.select_by": (train.select_by, ("inner-loop",)),
        "engine.activation_checkpointing": (config.engine.activation_checkpointing, (False,)),
        # In groups of like length workers would take different numbers of passes, for which weights are gathered.
        "engine.computation": (config.engine.computation, ("auto", "packed", "plain")),
        "engine.tasks_at_a_time": (config.engine.tasks_at_a_time, (1, None)),
    }
    if meta.algorithm == "maml" and meta.second_order is not False:  # whose differences of gradients bf16 rounds away
        needed["engine.precision"] = (config.engine.precision, ("fp32",))
    return [(key, value, possible) for key, (value, possible) in needed.items() if value not in possible]


def written(value: Any) -> str:
    """A value as it stands in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _values(node: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Every value of a tree with its dotted key; those of a list have the list's."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _values(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, key)
    else:
        yield key, node
