"""rq/constructors.py and rq/train_quantizer.py: every constructor as a user runs it, from its toy config to files that load."""

import json

import numpy as np
import pytest
import yaml

from configs import program
from configs.program import ROOT, InputError
from data.store import output
from rq import constructors, train_quantizer
from rq.constructors import CONSTRUCTORS
from rq.stack.options import Source
from rq.train_quantizer import TrainQuantizerArgs
from tests.handmade import call, refuse, succeed
from tests.test_residual import NoArgs, clustered
from tests.test_rq_programs import write_store

QUICK = {
    "rqkmeans": ["--rqkmeans.sizes", "[8,8]"],
    "balanced": ["--balanced.sizes", "[8,8]"],
    "opq": ["--opq.sizes", "[8,8]"],
    "rvq": ["--rvq.sizes", "[8,8]", "--rvq.loop.epochs", "3"],
    "rqvae": ["--rqvae.sizes", "[8,8]", "--rqvae.loop.epochs", "12", "--rqvae.loop.eval_every", "4"],
    "rqkmeans_plus": ["--rqkmeans_plus.start.sizes", "[8,8]", "--rqkmeans_plus.loop.epochs", "3", "--rqkmeans_plus.loop.warmup_epochs", "1"],
    "plum": ["--plum.sizes", "[12,6]", "--plum.loop.epochs", "12"],
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of 60 items with an embeddings directory of clustered vectors."""
    path = tmp_path_factory.mktemp("store")
    write_store(path)
    folder = path / "embeddings/made"
    with output.open_output(NoArgs(str(folder)), "by_hand", version=1, inputs={}, directory=folder) as out:
        out.write_array("embeddings.npy", clustered(60, 12, clusters=9))
    return path


def flags(store, name, target):
    config = ROOT / f"configs/toy/quantizer{'' if name == 'rqkmeans' else '_' + name}.yaml"
    words = [
        "--config",
        config,
        "--embeddings",
        store / "embeddings/made",
        "--output_dir",
        target,
        *QUICK[name],
    ]
    return [str(word) for word in words + (["--data", store] if name == "plum" else [])]


@pytest.mark.parametrize("name", sorted(QUICK))
def test_the_program_trains_it_and_the_file_encodes(store, tmp_path, name):
    args, _ = program.parse(TrainQuantizerArgs, flags(store, name, tmp_path / "q"))
    train_quantizer.main(args)
    quantizer, description = constructors.load(tmp_path / "q")
    assert description["made_by"]["name"] == name
    x = np.load(store / "embeddings/made/embeddings.npy")
    codes = quantizer.encode(x)
    assert codes.dtype == np.int32 and codes.shape == (60, 2) and (codes < np.array(quantizer.sizes)).all()
    assert (codes >= 0).all() and len(np.unique(codes[:, 0])) > 2
    decoded = quantizer.decode(codes)
    assert decoded.shape == x.shape and np.isfinite(decoded).all()
    residual = quantizer.latent(x)
    for level in range(2):
        assert np.array_equal(quantizer.distances(level, residual).argmin(1), codes[:, level])
        residual = residual - quantizer.codebooks[level][codes[:, level]]
    np.testing.assert_allclose(quantizer.residual(x, codes), residual, atol=1e-4)
    facts = json.loads((tmp_path / "q/manifest.json").read_text())["facts"]
    assert facts["constructor"] == name and np.isfinite(facts["reconstruction_error"]).all()
    again, _ = program.parse(TrainQuantizerArgs, flags(store, name, tmp_path / "again"))
    train_quantizer.main(again)
    weights = [(tmp_path / folder / "quantizer.safetensors").read_bytes() for folder in ("q", "again")]
    assert weights[0] == weights[1], "equal seed, equal file"


def test_the_chain_of_programs(store, tmp_path):
    """Train by gradients, keep when run again, assign: as the shell does."""
    words = ["rq.train_quantizer", *flags(store, "rqvae", tmp_path / "q")]
    succeed(*words)
    assert "already complete" in succeed(*words)
    succeed(
        "rq.assign_sids", "--data", store, "--embeddings", store / "embeddings/made", "--quantizer", tmp_path / "q",
        "--output_dir", tmp_path / "sids",
    )  # fmt: skip
    counts = json.loads((tmp_path / "sids/manifest.json").read_text())["counts"]
    assert counts["collisions_after"] == 0 and counts["items"] == 60


def test_a_loss_that_is_not_finite_exits_with_4(store, tmp_path):
    words = [
        *flags(store, "rqvae", tmp_path / "q"),
        "--rqvae.loop.learning_rate",
        "1e30",
        "--rqvae.loop.clip",
        "0",
    ]
    assert "learning_rate" in refuse("rq.train_quantizer", *words, code=4)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--constructor", "balanced", "--rqkmeans.sizes", "[4]"], "options of rqkmeans are given"),
        (["--constructor", "opq", "--data", "somewhere"], "does not read --data"),
        (["--warm_start", "somewhere"], "does not read --warm_start"),
        (["--constructor", "vq"], "vq"),
        (["--constructor", "plum", "--plum.loop.epochs", "12"], "--data"),
    ],
)
def test_what_does_not_belong_together_is_refused(store, tmp_path, words, complaint):
    argv = ["--embeddings", str(store / "embeddings/made"), "--output_dir", str(tmp_path / "q"), *words]
    with pytest.raises(InputError, match=complaint):
        args, _ = program.parse(TrainQuantizerArgs, argv)
        train_quantizer.main(args)
    assert not (tmp_path / "q").exists()


def test_the_registry_is_the_one_place():
    """The program's flags, defaults and help are the registry's; a name that is not there is refused."""
    fields = TrainQuantizerArgs.__dataclass_fields__
    for name, entry in CONSTRUCTORS.items():
        assert callable(entry.fit_function()) and isinstance(fields[name].default_factory(), entry.options)
    args, _ = program.parse(
        TrainQuantizerArgs,
        ["--embeddings", "e", "--output_dir", "q", "--constructor", "opq", "--opq.sizes", "[8,4]"],
    )
    assert args.chosen_options() == CONSTRUCTORS["opq"].options(sizes=[8, 4])
    assert args.not_chosen() == {*CONSTRUCTORS, "options"} - {"opq"}
    assert (
        f"balanced: {CONSTRUCTORS['balanced'].about}" in program.make_parser(TrainQuantizerArgs).format_help()
    )
    with pytest.raises(InputError, match="unknown"):
        constructors.fit("vq", Source(np.eye(2, dtype=np.float32)), None, seed=0, out=None)


def own_file(folder):
    """The quantizer of rq/README.md as a file of the user's."""
    block = (ROOT / "rq/README.md").read_text().split("## A quantizer of your own\n")[1]
    (folder / "mine.py").write_text(block.split("```python\n")[1].split("print(")[0])
    return folder / "mine.py"


def test_a_quantizer_of_ones_own_from_a_file(store, tmp_path):
    mine = own_file(tmp_path)
    base = ["--embeddings", str(store / "embeddings/made"), "--output_dir", str(tmp_path / "q")]
    words = [*base, "--constructor", f"{mine}:fit", "--options.sizes", "[8,4]"]
    args, _ = program.parse(TrainQuantizerArgs, words)
    train_quantizer.main(args)
    quantizer, description = constructors.load(tmp_path / "q")
    assert quantizer.sizes == (8, 4) and description["made_by"]["sizes"] == [8, 4]
    with pytest.raises(program.AlreadyComplete):
        train_quantizer.main(args)
    mine.write_text(mine.read_text() + "\nCHANGED = 1\n")
    with pytest.raises(InputError, match="constructor_file"):
        train_quantizer.main(args)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--constructor", "MINE:fot"], "no function 'fot'"),
        (["--constructor", "gone.py:fit"], "gone.py"),
        (["--constructor", "MINE:fit", "--options.size", "3"], "size"),
        (["--constructor", "MINE:fit", "--options.sizes", "many"], "sizes"),
        (["--constructor", "MINE:fit", "--opq.sizes", "[4]"], "options of opq are given"),
        (["--options.sizes", "[4]"], "options of a file are given"),
        (["--constructor", "MINE:Drawn"], "options"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(store, tmp_path, words, complaint):
    words = [word.replace("MINE", str(own_file(tmp_path))) for word in words]
    argv = ["--embeddings", str(store / "embeddings/made"), "--output_dir", str(tmp_path / "q"), *words]
    with pytest.raises(InputError, match=complaint):
        args, _ = program.parse(TrainQuantizerArgs, argv)
        train_quantizer.main(args)
    assert not (tmp_path / "q").exists()


def test_more_codes_than_items_can_fill_are_said_at_the_start(store, tmp_path, capsys):
    base = ["--embeddings", str(store / "embeddings/made"), "--rqkmeans.iterations", "1"]
    for sizes, said in (("[8,15]", False), ("[8,16]", True)):
        args, _ = program.parse(
            TrainQuantizerArgs, [*base, "--rqkmeans.sizes", sizes, "--output_dir", str(tmp_path / sizes)]
        )
        train_quantizer.main(args)
        assert ("16 codes in a level for 60 items with 60" in capsys.readouterr().err) == said


def test_every_constructor_has_a_config():
    folder = ROOT / "configs/toy"
    names = {
        yaml.safe_load(path.read_text()).get("constructor", "rqkmeans")
        for path in folder.glob("quantizer*.yaml")
    }
    assert names >= CONSTRUCTORS.keys() - {"hidvae"}


def test_more_codes_than_the_items_can_fill_are_said_at_the_start(store, tmp_path, capsys):
    flags = ["--embeddings", store / "embeddings/made", "--constructor", "rqkmeans"]
    for sizes, said in (("[16,4]", "16 codes in a level for 60 items with 60 different vectors, 3.8 per code -> at most 15"), ("[15,4]", "")):  # fmt: skip
        call("rq.train_quantizer", *flags, "--rqkmeans.sizes", sizes, "--output_dir", tmp_path / sizes)
        warned = [line for line in capsys.readouterr().err.splitlines() if "codes in a level" in line]
        assert len(warned) == bool(said) and all(said in line for line in warned)
