"""Every way to make semantic IDs by name, and how a trained one is read again.

    quantizer = fit("balanced", source, Balanced(sizes=[256, 256, 256]), seed=0, out=out)
    quantizer, description = load("data/toystore/quantizers/balanced")

A constructor is a function fit(source: rq.stack.options.Source, options, *, seed, out: data.store.output.Output) that returns an
`rq.stack.residual.ResidualQuantizer` (or a subclass, named in `rq.stack.residual.KINDS`), and a dataclass of options that says the
codes per level as `sizes`. One entry below adds one: `rq.train_quantizer` takes its flags, its help and its checks from here. A
function of a file of one's own needs no entry: `--constructor mine.py:fit` reads the options class from its annotation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from configs.functions import file_of, load_function
from configs.program import InputError
from data.store.output import Output
from rq.constructors.balanced import Balanced
from rq.constructors.hidvae.options import HidVaeOptions
from rq.constructors.opq import Opq
from rq.constructors.rqkmeans import RqKmeans
from rq.constructors.rqvae import Plum, RqKmeansPlus, RqVae, Rvq
from rq.stack.options import Source
from rq.stack.residual import ResidualQuantizer, load

__all__ = ["CONSTRUCTORS", "Constructor", "find", "fit", "load"]


@dataclass(frozen=True)
class Constructor:
    """Where the fit function is, its options, what it is, and which optional inputs it reads (`data`, `tags`, `warm_start`)."""

    function: str
    options: type
    about: str
    reads: frozenset[str] = frozenset()

    def fit_function(self) -> Callable[..., ResidualQuantizer]:
        """The function; its module (torch for some) is imported here."""
        return load_function(self.function)


ALL_INPUTS = frozenset({"data", "tags", "warm_start"})
CONSTRUCTORS = {
    "rqkmeans": Constructor("rq.constructors.rqkmeans:fit_rqkmeans", RqKmeans, "residual k-means (faiss)"),
    "balanced": Constructor(
        "rq.constructors.balanced:fit_balanced",
        Balanced,
        "residual k-means whose codes are all used by nearly the same number of items",
    ),
    "opq": Constructor(
        "rq.constructors.opq:fit_opq", Opq, "rotation, then independent codes per piece of the vector"
    ),
    "rvq": Constructor(
        "rq.constructors.rqvae:fit_rvq", Rvq, "residual codebooks by moving averages, no encoder"
    ),
    "rqvae": Constructor(
        "rq.constructors.rqvae:fit_rqvae", RqVae, "RQ-VAE: encoder, residual codebooks, decoder"
    ),
    "rqkmeans_plus": Constructor(
        "rq.constructors.rqvae:fit_rqkmeans_plus",
        RqKmeansPlus,
        "RQ-VAE whose encoder starts as the identity on balanced codebooks; may read warm_start",
        frozenset({"warm_start"}),
    ),
    "plum": Constructor(
        "rq.constructors.rqvae:fit_rqvae",
        Plum,
        "RQ-VAE with coarse-to-fine code counts, random depth, co-occurrence contrast; reads data",
        frozenset({"data"}),
    ),
    "hidvae": Constructor(
        "rq.constructors.hidvae.quantizer:fit_hidvae",
        HidVaeOptions,
        "RQ-VAE whose levels are supervised by tags; reads tags",
        frozenset({"tags"}),
    ),
}


def find(name: str) -> Constructor:
    """The entry of a name, or one made for `file.py:function`; InputError on anything else."""
    if name in CONSTRUCTORS:
        return CONSTRUCTORS[name]
    if file_of(name) is None:
        raise InputError(
            f"constructor {name!r} is unknown -> one of {', '.join(CONSTRUCTORS)}, or file.py:function"
        )
    options = get_type_hints(load_function(name)).get("options")
    if not is_dataclass(options) or "sizes" not in {option.name for option in fields(options)}:
        raise InputError(
            f"constructor {name}: its `options` are no dataclass with `sizes` -> def fit(source, options: Options, *, seed, out)"
        )
    return Constructor(name, options, "of a file of one's own", ALL_INPUTS)


def fit(name: str, source: Source, options: Any, *, seed: int, out: Output) -> ResidualQuantizer:
    """Train the constructor `name`; InputError on an unknown name, or when it returns something else than a quantizer."""
    quantizer = find(name).fit_function()(source, options, seed=seed, out=out)
    if not isinstance(quantizer, ResidualQuantizer):
        raise InputError(
            f"constructor {name} returned a {type(quantizer).__name__} -> an rq.stack.residual.ResidualQuantizer"
        )
    return quantizer
