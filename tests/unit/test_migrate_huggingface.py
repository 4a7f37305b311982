"""A model of transformers trains on rows of datasets as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratrun import Runner
from stratrun.errors import DataError
from stratrun_ext.migrate.huggingface import RowCollate
from tests.ranks import Ranks

ROWS = [
    {"input_ids": [3 + (7 * i + j) % 17 for j in range(4 + i % 3)], "labels": (i * i) % 2} for i in range(24)
]


class Output(dict[str, Any]):
    """What models of transformers return: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Classifier(nn.Module):
    """Called as those models are, with what they may be given besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 2)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Output:
        assert input_ids is not None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = (self.embed(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(hidden)
        return Output(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            past_key_values=(hidden, hidden),
        )


def plain(model: nn.Module, rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], float]:
    """The weights of a loop written out, with rows one by one; and how many it then gets right."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for start in range(0, len(rows), 6):
        losses = [
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
            for row in rows[start : start + 6]
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    model.eval()
    right = [int(model(torch.tensor([r["input_ids"]])).logits.argmax()) == r["labels"] for r in rows]
    return {name: value.clone() for name, value in model.state_dict().items()}, sum(right) / len(right)


def train(work_dir: str, model: nn.Module, rows: Any, **options: Any) -> tuple[dict[str, Tensor], float]:
    feed = dict(dataset=rows, global_batch_size=6, shuffle=False, collate_fn=RowCollate(pad_token_id=0))
    runner = Runner(
        model,
        train_dataloader=feed,
        val_dataloader=dict(dataset=rows, batch_size=5, collate_fn=RowCollate(pad_token_id=0)),
        val_evaluator=dict(type="Accuracy"),
        train_cfg=dict(max_epochs=1),
        optimizer=dict(type="SGD", lr=0.5),
        accelerator="cpu",
        loggers=[],
        work_dir=work_dir,
        **options,
    )
    metrics = runner.train()
    runner.close()
    state = runner.model.state_dict()
    whole = {name: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for name, v in state.items()}
    return whole, metrics["accuracy"]


def on_ranks(work_dir: str, **options: Any) -> tuple[dict[str, Tensor], float]:
    return train(work_dir, Classifier(), ROWS, **options)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_rows_of_lists_train_a_model_that_returns_its_loss(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    truth, right = plain(Classifier(), ROWS)
    run = on_ranks if strategy == "single" else lambda *a, **k: two_ranks(on_ranks, *a, **k)[0]
    weights, accuracy = run(str(tmp_path), strategy=strategy)
    torch.testing.assert_close(weights, truth, rtol=1e-5, atol=1e-6)
    assert accuracy == pytest.approx(right)


def test_rows_are_filled_up_to_the_longest() -> None:
    batch = RowCollate(pad_token_id=9)(
        [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_of_one_length_get_no_mask() -> None:
    batch = RowCollate()([{"input_ids": [1, 2], "x": 0.5}, {"input_ids": [3, 4], "x": 1.5}])
    assert set(batch) == {"input_ids", "x"} and batch["x"].tolist() == [0.5, 1.5]


def test_what_cannot_be_put_together_is_told_by_its_column() -> None:
    with pytest.raises(DataError, match=r"column 'text' is text \('hello'\).*dataset\.map"):
        RowCollate()([{"text": "hello"}])
    with pytest.raises(DataError, match=r"rows of 1 to 2 numbers.*pad_token_id=model\.config\.pad_token_id"):
        RowCollate()([{"input_ids": [1]}, {"input_ids": [1, 2]}])
    with pytest.raises(DataError, match="did you mean 'labels'"):
        RowCollate(columns=["label"])([{"labels": 1}])


def test_transformers_and_datasets_themselves_train_so(tmp_path: Path) -> None:
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    table = pytest.importorskip("datasets.table").InMemoryTable
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    # With a fingerprint of its own, as making one pickles what pyarrow has not always let be pickled.
    rows = datasets.Dataset(table.from_pydict(columns), fingerprint="rows")
    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2)
    still = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = transformers.BertConfig(vocab_size=20, hidden_size=8, intermediate_size=16, **sizes, **still)

    def model() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = transformers.BertForSequenceClassification(config)
        return made

    truth, right = plain(model(), ROWS)
    weights, accuracy = train(str(tmp_path), model(), rows)
    torch.testing.assert_close(weights, truth, rtol=1e-3, atol=1e-5)
    assert accuracy == pytest.approx(right)
