"""Every way to make semantic IDs by name, and how a trained one is read again.

    quantizer = fit("balanced", source, Balanced(sizes=[256, 256, 256]), seed=0, out=out)
    quantizer, description = load("data/toystore/quantizers/balanced")

A constructor is a function fit(source: rq.stack.options.Source, options, *, seed, out: data.store.output.Output) that returns an
`rq.stack.residual.ResidualQuantizer` (or a subclass, named in `rq.stack.residual.KINDS`). Modules are imported when they are used. To
add one: write the function and its options, name both below, and give `rq.train_quantizer` a field of that name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from configs.program import InputError
from data.store.output import Output
from rq.stack.options import Source
from rq.stack.residual import ResidualQuantizer, load

__all__ = ["CONSTRUCTORS", "Constructor", "fit", "load"]


@dataclass(frozen=True)
class Constructor:
    """Where the fit function is, and which optional inputs it reads (`data`, `tags`, `warm_start`)."""

    function: str
    reads: frozenset[str] = frozenset()


CONSTRUCTORS = {
    "rqkmeans": Constructor("rq.constructors.rqkmeans:fit_rqkmeans"),
    "balanced": Constructor("rq.constructors.balanced:fit_balanced"),
    "opq": Constructor("rq.constructors.opq:fit_opq"),
    "rvq": Constructor("rq.constructors.rqvae:fit_rvq"),
    "rqvae": Constructor("rq.constructors.rqvae:fit_rqvae"),
    "rqkmeans_plus": Constructor("rq.constructors.rqvae:fit_rqkmeans_plus", frozenset({"warm_start"})),
    "plum": Constructor("rq.constructors.rqvae:fit_rqvae", frozenset({"data"})),
    "hidvae": Constructor("rq.constructors.hidvae.quantizer:fit_hidvae", frozenset({"tags"})),
}


def fit(name: str, source: Source, options: Any, *, seed: int, out: Output) -> ResidualQuantizer:
    """Train the constructor `name`; InputError on an unknown name."""
    if name not in CONSTRUCTORS:
        raise InputError(f"constructor {name!r} is unknown -> one of {', '.join(CONSTRUCTORS)}")
    module, function = CONSTRUCTORS[name].function.split(":")
    return getattr(importlib.import_module(module), function)(source, options, seed=seed, out=out)
