"""A look at the weights of a model before anything is started, without reading them."""

from collections import Counter
from contextlib import suppress

from transformers import AutoModel

from distmeta.errors import UserError, first_line
from distmeta.library_warnings import warnings_of_transformers
from distmeta.models.config import ModelConfig
from distmeta.models.fit import check_numbers, check_weights, counted
from distmeta.models.load import class_of, language_model_class, load_model_config
from distmeta.models.weight_files import find_weights

READ_WHOLE = 2 * 2**30
"""Bytes of weights that are looked through for numbers that are not finite. More are as they are loaded."""


def look_at_weights(config: ModelConfig, *, language_model: bool) -> str:
    """Whether the weights of `model.name_or_path` fill the network, without loading them; returns a line that says what
    they are, what of the network is new, and what of them is not used, and one for each warning of transformers.

    Raises:
        UserError: they are not there, cannot be read, or do not fill it.
    """
    source = config.source
    assert source is not None
    with warnings_of_transformers() as warnings:
        hf_config = load_model_config(config)
    try:
        files = find_weights(source, hf_config)
        auto = language_model_class(hf_config) if language_model else AutoModel
        fit, names = check_weights(class_of(auto, config, hf_config), hf_config, files)
        new, unused, new_pooler = [], fit.unused, fit.new_pooler
        if fit.new_head:
            new.append(f"its language-model head ({counted(len(fit.new_head), 'tensor')}, first {fit.new_head[0]})")
        if language_model:  # whose pooler is kept for the export
            with suppress(UserError):
                bare, _ = check_weights(class_of(AutoModel, config, hf_config), hf_config, files)
                new_pooler = bare.new_pooler
                unused = [name for name in unused if name in bare.unused]
        if sum(path.stat().st_size for path in files.paths) <= READ_WHOLE:
            check_numbers(files, names, fit)
    except UserError:
        raise
    except Exception as error:  # whatever a hub, a file system or a model's own code may raise
        raise UserError(f"model.name_or_path: {first_line(error)}") from None
    if new_pooler:
        new.append("its pooler, which no loss reaches")
    said = [f"weights: the {fit.total} tensors of {hf_config.model_type} are in {files.name}"]
    if renamed := next(((name, read) for name, read in names.items() if name != read), None):
        said.append("names are read without what a wrapper put into them, {} as {}".format(*renamed))
    if new:
        said.append(f"not there, and therefore new: {' and '.join(new)}")
    if unused:
        parts = Counter(name.split(".")[0] for name in unused)
        counts = [f"{part} ({counted(count, 'tensor')})" for part, count in parts.items()]
        said.append(f"not used: {', '.join(counts)}")
    if (files.folder / "adapter_config.json").exists():
        said.append("the adapter beside them (adapter_config.json) is not applied: merge it first to train on from it")
    return "\n".join(["; ".join(said), *(f"model: {warning}" for warning in warnings)])
