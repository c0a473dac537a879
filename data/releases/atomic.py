"""RecBole's atomic files: tab-separated, the first line names fields with their types (`user_id:token`).

    {D}.inter                       one interaction a line: user_id, item_id, rating?, timestamp?
    {D}.{train,valid,test}.inter    a split that is kept: the same, or with item_id_list:token_seq a window a line
    {D}.item {D}.user               what is known of items and users
    topk.inter                      answers: example_id:token, item_id_list:token_seq, best first

Ids that are written here are our numbers, so that answers come back without a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from configs.program import InputError
from data.releases.text import read_text

KINDS = ("token", "token_seq", "float", "float_seq")
HISTORY, EXAMPLE = "item_id_list", "example_id"

# Files that a RecBole run is started with. `topk.py` runs there, in RecBole's environment, and imports nothing of ours.
CONFIG = """# RecBole on this split: python topk.py, from this folder, in an environment with recbole
data_path: ./
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
ITEM_LIST_LENGTH_FIELD: item_length
LIST_SUFFIX: _list
MAX_ITEM_LIST_LENGTH: {longest}
load_col: {{inter: [user_id, item_id_list, item_id, example_id], item: [item_id]}}
alias_of_item_id: [item_id_list]
benchmark_filename: [train, valid, test]
train_neg_sample_args: null
loss_type: CE
eval_args: {{group_by: none, order: TO, mode: full, split: {{LS: valid_and_test}}}}
metrics: [Hit, NDCG]
topk: [10]
valid_metric: NDCG@10
repeatable: true
"""
SCRIPT = '''"""Train a RecBole model on this folder and write its best {depth} items of every {split} row to topk.{split}.inter.

python topk.py SASRec                      # or another sequential model; --name=value changes the config
"""

import sys

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

if len(sys.argv) < 2:
    sys.exit("usage: python topk.py SASRec [--name=value ...]")
model_name, sys.argv[1:2] = sys.argv[1], []
config = Config(model=model_name, dataset="{name}", config_file_list=["{name}.yaml"])
init_seed(config["seed"], config["reproducibility"])
dataset = create_dataset(config)
train_data, valid_data, test_data = data_preparation(config, dataset)
model = get_model(model_name)(config, train_data.dataset).to(config["device"])
trainer = get_trainer(config["MODEL_TYPE"], model_name)(config, model)
print("valid", trainer.fit(train_data, valid_data, verbose=False, show_progress=False))
model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
model.eval()
answered = {{"valid": valid_data, "test": test_data}}["{split}"]
with open("topk.{split}.inter", "w") as out, torch.no_grad():
    out.write("example_id:token\\titem_id_list:token_seq\\n")
    for batch in answered:
        rows = batch[0].to(config["device"])
        scores = model.full_sort_predict(rows).view(-1, dataset.item_num)
        scores[:, 0] = -torch.inf  # RecBole's padding
        best = scores.topk(min({depth}, dataset.item_num - 1)).indices.cpu().numpy()
        examples = dataset.id2token("example_id", rows["example_id"].cpu().numpy())
        for example, items in zip(examples, dataset.id2token("item_id", best)):
            out.write(f"{{example}}\\t{{' '.join(items)}}\\n")
'''


def table_text(fields: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A file; fields as `name:type`. Lists are joined by spaces; tabs and line ends in texts become spaces.

    >>> table_text(["item_id:token", "title:token_seq"], [[0, "Nut\\tM4"], [1, ["a", "b"]]])
    'item_id:token\\ttitle:token_seq\\n0\\tNut M4\\n1\\ta b\\n'
    """
    lines = ["\t".join(fields)]
    for row in rows:
        lines.append("\t".join(_cell(value) for value in row))
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_cell(part) for part in value)
    return "" if value is None else " ".join(str(value).split())


def field_names(header: Sequence[str], where: str | Path) -> dict[str, str]:
    """{name: the column as it stands in the file}; InputError for a column without a type."""
    names = {}
    for column in header:
        name, _, kind = column.partition(":")
        if kind not in KINDS:
            raise InputError(
                f"{where}: column {column!r} has no type of {', '.join(KINDS)} -> is it an atomic file?"
            )
        names[name] = column
    return names


def read_topk(path: str | Path) -> dict[int, list[int]]:
    """{example id: item ids, best first} of an answer file; InputError naming the first bad line."""
    lines = read_text(path).splitlines()
    names = field_names(lines[0].split("\t") if lines else [], path)
    if missing := [name for name in (EXAMPLE, HISTORY) if name not in names]:
        raise InputError(
            f"{path}: no field {missing[0]} -> {EXAMPLE}:token and {HISTORY}:token_seq are needed"
        )
    places = [list(names).index(name) for name in (EXAMPLE, HISTORY)]
    answers: dict[int, list[int]] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        try:
            example, items = int(cells[places[0]]), [int(token) for token in cells[places[1]].split()]
        except (ValueError, IndexError):
            raise InputError(
                f"{path}:{number} is no example and its items ({line[:60]!r}) -> write the file again"
            ) from None
        if example in answers or not items:
            what = "is there twice" if example in answers else "has no answer"
            raise InputError(
                f"{path}:{number}: example {example} {what} -> one line for each, with at least one item"
            )
        answers[example] = items
    if not answers:
        raise InputError(f"{path} has no rows -> was the prediction finished?")
    return answers
