"""Some rows of a model's embedding tables as parameters of their own; all other rows stay bitwise what they were.

A mask on the gradient of a whole table would do for the gradient, but not for weight decay, and its optimizer would keep two
moments for each of 150,000 rows. Here the optimizer sees the rows alone. The tables hold them too - `push` copies them there
after every optimizer step - so that all that reads tables without a gradient (validation, rollouts, saving) needs to know
nothing of this.

Legend: V rows of a table, D hidden size, R rows that train, B rows of a batch, T slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from configs.program import InputError

NAME = "new_rows"  # the submodule of the model


class NewRows(nn.Module):
    """The rows `ids` of the input table and, with `output`, of the output table: float32 [R, D], one where the tables are one.

    Adds itself to `model` as `new_rows` and, by a hook, to what its input table gives. Nothing of it is in a state dict.
    InputError for an id beyond the tables, or an input table that changes its rows in a way that is not known here.
    """

    def __init__(self, model: Any, ids: Sequence[int], *, output: bool = True) -> None:
        super().__init__()
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        rows = min(len(table.weight), len(head.weight))
        if max(ids) >= rows:
            raise InputError(
                f"token id {max(ids)} has no row in tables of {rows} rows -> use the tokenizer that belongs to the model"
            )
        self.tied = head.weight is table.weight
        ids_R = torch.tensor(sorted(set(ids)), device=table.weight.device)
        slots_V = torch.full((len(table.weight),), -1, device=table.weight.device)
        slots_V[ids_R] = torch.arange(len(ids_R), device=table.weight.device)
        self.register_buffer("ids_R", ids_R, persistent=False)
        self.register_buffer("slots_V", slots_V, persistent=False)
        self.input = nn.Parameter(table.weight.data[ids_R].float())
        self.output = None
        if output and not self.tied:
            self.output = nn.Parameter(head.weight.data[ids_R].float())
        self.scale = getattr(table, "embed_scale", 1.0)
        given, expected = table(ids_R[:1]), table.weight[ids_R[:1]] * self.scale
        if not torch.allclose(given.float(), expected.float(), rtol=1e-3, atol=1e-5):
            raise InputError(
                f"{type(table).__name__} does not give the rows of its table -> train_what embeddings or all"
            )
        table.register_forward_hook(self._replace)
        setattr(model, NAME, self)

    @property
    def head(self) -> nn.Parameter | None:
        """The rows of the output table that train, [R, D]; None where none do."""
        return self.input if self.tied else self.output

    @torch.no_grad()
    def push(self, model: Any) -> None:
        """Write the rows into the tables of `model`."""
        for table_VD, rows_RD in self._pairs(model):
            table_VD.data[self.ids_R] = rows_RD.data.to(table_VD.dtype)

    @torch.no_grad()
    def pull(self, model: Any) -> None:
        """Take the rows from the tables of `model`, which were loaded anew."""
        for table_VD, rows_RD in self._pairs(model):
            rows_RD.copy_(table_VD.data[self.ids_R])

    def in_table(self, table_VD: Tensor) -> Tensor:
        """The output table [V, D] with a gradient to the rows of it that train; it costs as much as that of a whole table."""
        if self.head is None or not torch.is_grad_enabled():
            return table_VD
        return _TableOfRows.apply(table_VD, self.head, self.ids_R)

    def _pairs(self, model: Any) -> list[tuple[Tensor, nn.Parameter]]:
        pairs = [(model.get_input_embeddings().weight, self.input)]
        return pairs + ([] if self.output is None else [(model.get_output_embeddings().weight, self.output)])

    def _replace(self, table: nn.Module, inputs: tuple, output_BTD: Tensor) -> Tensor:
        """The same numbers, with a gradient to the rows."""
        if not torch.is_grad_enabled():
            return output_BTD
        slots_BT = self.slots_V[inputs[0]]
        rows_BTD = nn.functional.embedding(slots_BT.clamp(min=0), self.input) * self.scale
        return torch.where((slots_BT >= 0)[..., None], rows_BTD.to(output_BTD.dtype), output_BTD)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """The tables have them."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """`pull` takes them from the tables."""


class _TableOfRows(torch.autograd.Function):
    """A table as it is; backward keeps the gradient of some of its rows."""

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, rows_RD: Tensor, ids_R: Tensor) -> Tensor:
        ctx.save_for_backward(ids_R)
        ctx.dtype = rows_RD.dtype
        return table_VD.view_as(table_VD)

    @staticmethod
    def backward(ctx: Any, slope_VD: Tensor) -> tuple:
        (ids_R,) = ctx.saved_tensors
        return None, slope_VD[ids_R].to(ctx.dtype), None
