"""Stage 11: trie-constrained recommendations for every example of a split.

reads   a model directory with SID tokens, data/<D>/sids/<name>, data/<D>/examples/<name>/{split}.parquet
writes  <output_dir>/predictions-00000-of-00001.parquet (schema data.artifacts.PREDICTIONS), manifest.json

Differs from the published evaluations: the prompt is the one of training, the whole-vocabulary score has no repetition
penalty, terminators are not scored, and every answer is a catalogue item by construction (invalid rate 0).

python -m infer.recommend --model outputs/quickstart/grpo/final --sids data/toystore/sids/rqkmeans \
    --examples data/toystore/examples/rqkmeans --split test --output_dir outputs/quickstart/eval/grpo.test
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from configs import program
from configs.program import InputError
from data import artifacts
from data.fingerprints import fingerprint
from data.output import open_output
from infer.decoding import predict, prediction_table, select_rows
from infer.engine import DecodeSettings, load_engine
from infer.predictions import write_predictions

STAGE_VERSION = 1


@dataclass
class RecommendArgs:
    """Constrained recommendation."""

    model: str
    """model directory with SID tokens (08, 09 or 10 writes one)"""
    sids: str
    """SID directory that the model was expanded with"""
    examples: str
    """examples directory; its rows of task history_to_sid are answered"""
    output_dir: str
    """where predictions go, e.g. outputs/<run>/eval/<model>.<split>"""
    split: str = "test"
    """train, valid or test"""
    max_rows: int | None = None
    """answer a seeded sample of this many rows only; null = all"""
    seed: int = 0
    """of that sample"""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """beams, score space, batch size"""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; null = a GPU when there is one"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"max_rows {self.max_rows} must be at least 1")


def main(args: RecommendArgs) -> None:
    inputs = {"model": args.model, "sids": args.sids, "examples": args.examples}
    with open_output(
        args.output_dir,
        stage="recommend",
        version=STAGE_VERSION,
        args=args,
        inputs=inputs,
        overwrite=args.overwrite,
    ) as out:
        engine = load_engine(args.model, args.sids, args.examples, args.decode, device=args.device)
        table = artifacts.read(args.examples, artifacts.EXAMPLES, file=f"{args.split}.parquet")
        examples = select_rows(table, max_rows=args.max_rows, seed=args.seed)
        clock = program.Clock()
        nodes_NK, scores_NK, ids = predict(engine, examples)
        seconds = clock.seconds
        write_predictions(out, prediction_table(nodes_NK, scores_NK, ids, engine.sids))
        out.counts |= {"examples": len(ids), "predictions": int((nodes_NK >= 0).sum())}
        out.facts |= {
            "split": args.split,
            "model": Path(args.model).parent.name
            if Path(args.model).name == "final"
            else Path(args.model).name,
            "model_hash": fingerprint(args.model),
            "fitted_on": "train",
            "sids_sha256": engine.sids.sha256,
            "max_rows": args.max_rows,
            "users_per_second": round(len(ids) / seconds, 2),
            **asdict(args.decode),
        }


if __name__ == "__main__":
    program.run(RecommendArgs, main)
