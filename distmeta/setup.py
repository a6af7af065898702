"""What a configuration stands for, once its corpus is prepared: network, tokenizer, tasks and text."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from distmeta.config import Config
from distmeta.corpus.config import SHORTEST
from distmeta.corpus.dataset_report import DatasetReport
from distmeta.corpus.datasets import datasets_of, serves
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.tokenizer import load_source
from distmeta.errors import UserError
from distmeta.meta import algorithm_class
from distmeta.meta.multitask import TrainingClasses
from distmeta.models import Network, load_network, load_tokenizer
from distmeta.models.config import DEFAULT_MODEL
from distmeta.models.folder import check_small_files, refuse_missing
from distmeta.models.load import (
    load_model_config,
    max_sequence_length,
    model_kind,
    network_without_weights,
    resolve_pooling,
)
from distmeta.models.look import look_at_weights
from distmeta.models.on_disk import parameters_on_disk
from distmeta.packages import local_folder
from distmeta.recipes import filled
from distmeta.rundir import RunDirectory
from distmeta.store.folders import corpus_folder
from distmeta.tasks.class_shards import ClassReader, read_index
from distmeta.tasks.config import Split, bounds, most_shots, most_ways
from distmeta.tasks.draw import TaskSource
from distmeta.tasks.mixture import Mixture, shares_of
from distmeta.tasks.names import PLAIN, NameExamples
from distmeta.tasks.text import TextSource


def resolve(config: Config) -> Config:
    """The configuration with every value filled in that was left to the software, and checked against the model.

    Raises:
        UserError: the model cannot be what the settings ask of it.
    """
    config = filled(config)
    is_new = config.model.name_or_path is None
    hf_config = load_model_config(config.model)
    if config.tokenizer.name_or_path is not None:
        source = local_folder(config.tokenizer.name_or_path, "tokenizer.name_or_path")
        refuse_missing(source, "tokenizer.name_or_path")
        check_small_files(source, "tokenizer.name_or_path")
    smlmt = not any(dataset.labelled for dataset in datasets_of(config.corpus, config.tasks))
    config.model.pooling = resolve_pooling(config.model.pooling, model_kind(hf_config), smlmt)
    if algorithm_class(config.meta.algorithm).needs_language_model and model_kind(hf_config) != "decoder":
        raise UserError(f"meta.algorithm: {config.meta.algorithm} needs a decoder, and {hf_config.model_type} is none")
    if config.meta.lm_weight is None:
        config.meta.lm_weight = 1.0 if is_new and model_kind(hf_config) != "features" else 0.0
    for key in ("n_way", "k_shot", "query_per_class"):
        if getattr(config.evaluate, key) is None:
            setattr(config.evaluate, key, getattr(config.tasks, key))
    if config.evaluate.class_names is None:
        config.evaluate.class_names = config.tasks.class_names is not None
    config.train.validate_every = config.train.interval
    network = bare_network(config)
    limit = max_sequence_length(network.base)
    if limit is not None:
        if limit < SHORTEST:
            where = "model.config.max_position_embeddings" if is_new else "model.name_or_path"
            raise UserError(f"{where}: the model takes {limit} tokens, and texts need room for {SHORTEST}")
        config.tokenizer.max_length = min(config.tokenizer.max_length, limit)
    _resolve_attention(config, network)
    if (config.engine.tasks_at_a_time or 1) > 1 and network.is_random:
        raise UserError(
            "engine.tasks_at_a_time: with dropout tasks go one at a time, so that none depends on what others draw; "
            "leave it out, or set the dropout of model.config to 0"
        )
    if config.meta.algorithm == "metaicl" and limit is not None:
        _check_prompts(config, limit)
    if config.evaluate.inner_steps is None:
        config.evaluate.inner_steps = config.meta.inner_steps
    return config


def check_weights(config: Config) -> str | None:
    """Whether the weights that the model is to be loaded with fill it, without loading them; returns lines about them
    and about a tokenizer that is not theirs, or None of a new model.

    Raises:
        UserError: they are not there, cannot be read, or do not fill it.
    """
    if config.model.name_or_path is None:
        return None
    language_model = wants_language_model(config) or config.evaluate.language_model_baseline
    lines = [look_at_weights(config.model, language_model=language_model)]
    if config.model.config != DEFAULT_MODEL:
        lines.append(
            "model.config: not used, since model.name_or_path loads another model with a configuration of its own"
        )
    if config.tokenizer.name_or_path is not None:
        lines += _other_numbers(config.model.name_or_path, config.tokenizer.name_or_path)
    return "\n".join(lines)


def _other_numbers(model: str, tokenizer: str) -> list[str]:
    """A line where a model is given a tokenizer that has other numbers for its tokens than its own."""
    given = load_source(tokenizer, quietly=True).get_vocab()
    try:
        own = load_source(model, quietly=True).get_vocab()
    except UserError:
        return []  # it has none
    others = sum(given.get(token) != number for token, number in own.items())
    if not others:
        return []
    return [
        f"tokenizer.name_or_path: {tokenizer} has other numbers for {others} of the {len(own)} tokens of {model}, and "
        "the network knows them by its own: their rows of the embedding stand for other tokens now"
    ]


def bare_network(config: Config, vocab_size: int | None = None) -> Network:
    """The network without weights, as `network_without_weights` makes it, with what the algorithm learns beside it.

    Raises:
        UserError: the model cannot be what the settings ask of it, or has nothing of what they adapt or train.
    """
    import torch

    network = network_without_weights(
        config.model,
        lora=config.meta.adapt == "lora",
        language_model=wants_language_model(config),
        vocab_size=vocab_size,
    )
    with torch.device("meta"):
        _complete(network, config)
    network.adapted_names(config.meta.adapt, config.meta.last_k)
    return network


def _complete(network: Network, config: Config, classes: TrainingClasses | None = None) -> None:
    """Adds what the algorithm learns beside the network, and takes out of the outer loop what is to stay. Of a corpus
    that is not there yet the classes are not known, and what is learned about them is left out."""
    algorithm = algorithm_class(config.meta.algorithm)
    network.learn(algorithm.learned(network, config.meta))
    if classes is not None:
        network.learn(algorithm.learned_of_classes(network, config.meta, classes))
    if config.meta.freeze_lowest is not None:
        network.freeze(config.meta.freeze_lowest)


def has_sdpa(network: Network) -> bool:
    """Whether the model of a bare network has the fused attention of torch."""
    return network.base.config._attn_implementation == "sdpa"


def _resolve_attention(config: Config, network: Network) -> None:
    """Chooses `model.attention` where it is left to the software.

    Raises:
        UserError: it cannot be what it is set to.
    """
    twice = differentiates_twice(config)
    if config.model.attention == "auto":
        config.model.attention = "eager" if twice or not has_sdpa(network) else "sdpa"
    if config.model.attention == "sdpa" and twice:
        raise UserError(
            f"model.attention: sdpa cannot be differentiated twice, as meta.algorithm {config.meta.algorithm} needs; "
            "use auto or eager"
        )
    if config.model.attention == "sdpa" and not has_sdpa(network):
        raise UserError(f"model.attention: {network.base.config.model_type} has no sdpa; use auto or eager")


def _check_prompts(config: Config, limit: int) -> None:
    """Raises UserError where a prompt of in-context examples may be longer than what the model takes."""
    for section, options in (("tasks", config.tasks), ("evaluate", config.evaluate)):
        ways, shots = options.n_way, options.k_shot
        if ways is None or ways == "all" or shots is None:
            raise UserError(f"{section}.n_way: metaicl has all classes in its prompt; give a number, or [low, high]")
        queries = options.query_per_class or config.tasks.query_per_class
        most = config.tasks.max_texts
        high = most_ways(ways, shots, queries, most)
        possible = range(bounds(ways)[0] if most else high, high + 1)
        ways, shots = max(((each, most_shots(each, shots, queries, most)) for each in possible), key=math.prod)
        longest = ways * shots * (config.tokenizer.max_length + 1) + config.tokenizer.max_length
        if longest > limit:
            raise UserError(
                f"meta.algorithm: a prompt of metaicl may have {section}.n_way {ways} x k_shot {shots} x (tokenizer."
                f"max_length {config.tokenizer.max_length} + 1) + {config.tokenizer.max_length} = {longest} tokens, "
                f"and the model takes {limit}; lower one of these"
            )


def wants_language_model(config: Config) -> bool:
    """Whether any step needs the language model's head."""
    needed = algorithm_class(config.meta.algorithm).needs_language_model
    return needed or bool(config.meta.lm_weight) or config.meta.lm_warmup_steps > 0


def differentiates_twice(config: Config) -> bool:
    """Whether passes through the network are differentiated twice."""
    return algorithm_class(config.meta.algorithm).differentiates_twice(config.meta)


class _Shape(TypedDict):
    n_way: int | list[int] | str
    k_shot: int | list[int]
    query_per_class: int
    seed: int


class Setup:
    """The parts of a run, made from a resolved configuration and a prepared corpus."""

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self.config = config
        self.corpus = corpus_directory(config, run)
        manifest = Manifest.load_whole(self.corpus)
        if manifest is None:
            raise UserError(
                f"{self.corpus}: no prepared corpus is there, or it is not whole, or of another version of distmeta; "
                "see `distmeta prepare`"
            )
        self.manifest = manifest
        self.tokenizer = load_tokenizer(str(self.corpus / "tokenizer"))

    @cached_property
    def kind(self) -> str:
        """`encoder` or `decoder`, which decides the language-modelling loss."""
        return model_kind(load_model_config(self.config.model))

    @property
    def wants_language_model(self) -> bool:
        """Whether any step trains the language model."""
        return wants_language_model(self.config)

    def network(self, *, empty: bool = False) -> Network:
        """The network with its starting weights: the same on every worker. For `empty` see `load_network`.

        Where weights are to be partitioned, they may be larger than the memory: they are on disk.

        Raises:
            UserError: the settings of what is adapted or trained name nothing that it has.
        """
        model, meta, engine = self.config.model, self.config.meta, self.config.engine
        partitioned = engine.weights == "partitioned"
        with parameters_on_disk() if partitioned else nullcontext():
            network = load_network(
                model,
                self.tokenizer,
                pooling=model.pooling,  # type: ignore[arg-type]  # resolved
                attention=model.attention,
                lora=meta.adapt == "lora",
                language_model=self.wants_language_model,
                seed=self.config.train.seed,
                computation=engine.computation,
                checkpoints_activations=engine.activation_checkpointing,
                max_length=self.config.tokenizer.max_length,
                tasks_side_by_side=not partitioned,
                empty=empty,
            )
        if partitioned and network.computation == "bucketed":  # by auto; see `partitioned_needs`
            network.computation = "plain"
        _complete(network, self.config, self.training_classes)
        return network

    @cached_property
    def training_classes(self) -> TrainingClasses | None:
        """The classes of meta-train by labelled data set, where the algorithm has a head over them."""
        if not algorithm_class(self.config.meta.algorithm).needs_training_classes:
            return None
        names = {
            each.name: [one.name for one in read_index(self.manifest.class_parts(self.corpus, "train", each.name))]
            for each in self.manifest.datasets
            if each.labelled
        }
        return TrainingClasses({name: classes for name, classes in names.items() if classes})

    def tasks(
        self,
        split: Split,
        *,
        n_way: int | list[int] | str | None = None,
        k_shot: int | list[int] | None = None,
        query_per_class: int | None = None,
        seed: int | None = None,
        in_turn: bool | None = None,
        pool_texts: int | None = None,
        class_names: bool | None = None,
    ) -> TaskSource | Mixture:
        """The tasks of a split; what is not given is as in training.

        Of several data sets each has its share of the training tasks. Otherwise (`in_turn`, by default in every split
        but train) one comes after the other, and one with fewer classes than `n_way` has tasks of all its classes. For
        `pool_texts`, which is of each, see `TaskSource`.

        Raises:
            UserError: see `TaskSource` and `Mixture`.
        """
        tasks, manifest = self.config.tasks, self.manifest
        in_turn = split != "train" if in_turn is None else in_turn
        shape: _Shape = {
            "n_way": tasks.n_way if n_way is None else n_way,
            "k_shot": tasks.k_shot if k_shot is None else k_shot,
            "query_per_class": tasks.query_per_class if query_per_class is None else query_per_class,
            "seed": self.config.train.seed if seed is None else seed,
        }
        count = len(manifest.datasets)
        several = count > 1
        here = [each for each in manifest.datasets if not several or serves(each, split, count, tasks)]
        names = self._name_examples(class_names)
        sources = [
            TaskSource(
                manifest.class_parts(self.corpus, split, each.name),
                split,
                **shape,
                max_texts=tasks.max_texts,
                name=each.name,
                bounded=several and in_turn,
                reader=self._classes,
                pool_texts=pool_texts,
                names=names if each.labelled else None,
            )
            for each in here
        ]
        if not several:
            return sources[0]
        if not sources:
            raise UserError(f"meta-{split} has no data set: give one the role {split} in corpus.sources")
        shares = None if in_turn else self._shares(here, sources)
        return Mixture(sources, shares, split=split, **shape)

    def _name_examples(self, wanted: bool | None) -> NameExamples | None:
        template = self.config.tasks.class_names
        if wanted is False or (wanted is None and template is None):
            return None
        return NameExamples(template or PLAIN, self.corpus / "tokenizer", self.manifest.max_length)

    def _shares(self, datasets: Sequence[DatasetReport], sources: Sequence[TaskSource]) -> list[float]:
        tasks = self.config.tasks
        weights = {each.name: each.weight for each in datasets_of(self.config.corpus, tasks)}
        sizes = [
            (each.labelled, weights.get(each.name, 1.0), source.texts)
            for each, source in zip(datasets, sources, strict=True)
        ]
        return shares_of(sizes, tasks.source_power, tasks.smlmt_share)

    @cached_property
    def _classes(self) -> ClassReader:
        """One for all tasks, so that they hold no more together than one alone."""
        return ClassReader()

    def evaluation_tasks(self) -> TaskSource | Mixture:
        """The episodes that `evaluate` describes."""
        options = self.config.evaluate
        return self.tasks(
            options.split,
            n_way=options.n_way,
            k_shot=options.k_shot,
            query_per_class=options.query_per_class,
            seed=options.seed,
            in_turn=True,
            class_names=options.class_names,
        )

    def text(self) -> TextSource | None:
        """Text for language modelling, where any is asked for."""
        if not self.wants_language_model:
            return None
        return TextSource(self.manifest.text_parts(self.corpus), self.config.train.seed)

    @property
    def mean_text_tokens(self) -> float:
        """Mean length of a language-modelling sequence (tokens, special tokens included)."""
        special = self.tokenizer.num_special_tokens_to_add()
        parts = self.manifest.segment_parts
        return sum(part.tokens for part in parts) / sum(part.rows for part in parts) + special


def corpus_directory(config: Config, run: RunDirectory) -> Path:
    """Where the prepared corpus of a run is."""
    return corpus_folder(config.corpus.directory, run.corpus)
