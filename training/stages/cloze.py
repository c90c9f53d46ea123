"""The reward stage: preference pairs -> a checkpoint, or an adapter, that fills the mask with the better choice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, EvalPrediction, PreTrainedModel, set_seed

from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.pairs import PreferencePair
from tinyrm.spec import HELD_OUT_FILE, read_run
from training.data.collate import PairCollator, PairDataset, Showing
from training.data.mixture import Mixture, load_all
from training.data.split import balanced, split_by_prompt
from training.model.adapter import add_dora, freeze_lowest
from training.model.heads import (
    Readout,
    RowCollator,
    encoder_for,
    load_head,
    readout,
    refuse_other_head,
    swap_disagreement,
    two_way_loss,
)
from training.output import file_hashes, identity, prepare_output, write_run
from training.recipe import ClozeRecipe
from training.trainer import JsonLog, LengthGroupedTrainer, training_arguments


def train_cloze(
    recipe: ClozeRecipe, data_dir: Path, *, resume: bool, make_trainer: "Callable[..., ClozeTrainer] | None" = None
) -> dict[str, float]:
    """Train and write weights or adapter, tokenizer, spec, held-out pairs and a record of the run.

    make_trainer: gets what `ClozeTrainer` would get and may change it; how other stages put in what they add.
    Returns the metrics of the held-out pairs.
    """
    hashes = pair_hashes(recipe, data_dir)
    checkpoint = prepare_output(recipe, hashes, resume=resume)
    set_seed(recipe.optimization.seed)
    refuse_other_head(recipe)
    tokenizer, special = load_tokenizer(recipe.model)
    encoder = Encoder(tokenizer, recipe.spec.template, special, recipe.train_max_tokens or recipe.spec.max_tokens)
    texts = encoder_for(recipe.head, encoder, tokenizer)
    mixture = load_all(recipe.sources, data_dir)
    learn, held_out = _split(recipe, mixture.loaded.pairs)
    trainer = (make_trainer or ClozeTrainer)(
        label_ids=encoder.label_ids,
        label_loss=recipe.loss == "labels",
        consistency_weight=recipe.consistency_weight,
        read=None if recipe.head == "cloze" else readout(recipe.head),
        optimization=recipe.optimization,
        model=learning_model(recipe),
        args=training_arguments(recipe.output_dir, recipe.optimization, recipe.rows_per_pair),
        train_dataset=PairDataset(learn, texts, showing(recipe)),
        eval_dataset=PairDataset(held_out, texts, Showing(recipe.spec, recipe.optimization.seed)),
        data_collator=_collator(recipe, encoder),
        compute_metrics=preference_metrics,
        callbacks=[JsonLog(recipe.output_dir / "log.jsonl")],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        _record(recipe, hashes, mixture, held_out, metrics)
        _save_tokenizer(recipe)
    return metrics


def learning_model(recipe: ClozeRecipe) -> nn.Module:
    """The masked LM, or its body with a head, with frozen layers, or with DoRA above them."""
    if recipe.head != "cloze":
        return with_learning_parts(load_head(recipe.head, recipe.model), recipe)
    # Given labels, a sparse model runs its vocabulary-sized head at the labelled positions only: here, the masks.
    return with_learning_parts(load_masked_lm(recipe.model, sparse_prediction=True), recipe)


def with_learning_parts(model: PreTrainedModel, recipe: ClozeRecipe) -> nn.Module:
    """The model, adapted or frozen as the recipe says; what requires a gradient learns."""
    if recipe.dora:
        return add_dora(model, recipe.dora, recipe.frozen_layers)
    freeze_lowest(model, recipe.frozen_layers, embeddings=recipe.freeze_embeddings)
    return model


def showing(recipe: ClozeRecipe) -> Showing:
    """How the recipe shows its pairs in training; held-out ones have the spec's instruction and both orders."""
    return Showing(
        spec=recipe.spec,
        seed=recipe.optimization.seed,
        default_rate=recipe.default_instruction_rate,
        prefixes=recipe.prefixes,
        coin_pairs=None if recipe.orders == "both" else recipe.coin_pairs,
    )


class ClozeTrainer(LengthGroupedTrainer):
    """Cross-entropy at the mask, or what `read` makes of a batch.

    In evaluation rows come in pairs, chosen first and chosen second.
    """

    def __init__(
        self,
        *,
        label_ids: tuple[int, int],
        label_loss: bool,
        consistency_weight: float = 0.0,
        read: Readout | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.label_ids = list(label_ids)
        self.label_loss = label_loss
        self.consistency_weight = consistency_weight
        self.read = read or self.read_mask
        # Every micro batch has the same number of masks: the mean of means is the mean.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        loss, label_logits = self.read(model, inputs)
        if self.consistency_weight:
            loss = loss + self.consistency_weight * swap_disagreement(label_logits)
        return (loss, label_logits) if return_outputs else loss

    def read_mask(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and the label logits at the mask [rows, 2]."""
        outputs = model(**inputs)
        label_logits = outputs.logits[:, self.label_ids]
        second_is_right = (inputs["labels"] == self.label_ids[1]).any(dim=1)
        loss = two_way_loss(label_logits, second_is_right) if self.label_loss else outputs.loss
        return loss, label_logits

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, z [pairs, 2] of (chosen first, chosen second), and labels that the Trainer needs but nobody reads."""
        with torch.no_grad():
            loss, logits = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        z = (logits[:, 0] - logits[:, 1]).float().view(-1, 2)
        return loss.detach(), z, torch.zeros(len(z), device=z.device)


def preference_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """From z = logit(first) - logit(second), [pairs, 2]; right is + with the chosen first, - with it second."""
    chosen_first, chosen_second = np.asarray(prediction.predictions).T
    return {
        "accuracy": float(np.mean(chosen_first - chosen_second > 0)),
        "accuracy_one_order": float(np.mean([chosen_first > 0, chosen_second < 0])),
        "swap_consistency": float(np.mean((chosen_first > 0) != (chosen_second > 0))),
        "first_position_margin": float(np.mean((chosen_first + chosen_second) / 2)),
    }


def _split(recipe: ClozeRecipe, pairs: list[PreferencePair]) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(learn from, held out). Balancing comes second: who is held out does not depend on it."""
    seed = recipe.optimization.seed
    learn, held_out = split_by_prompt(pairs, recipe.held_out_fraction, seed)
    if not learn or not held_out:
        raise InvalidInput(f"{len(pairs)} pairs are too few: {len(learn)} to learn from, {len(held_out)} held out")
    return balanced(learn, recipe.balance, seed), held_out


def _collator(recipe: ClozeRecipe, encoder: Encoder) -> PairCollator | RowCollator:
    special = encoder.special
    if recipe.head == "cloze":
        return PairCollator(special.pad, special.mask, encoder.label_ids)
    return RowCollator(special.pad, marker_id=special.cls if recipe.head == "tokens" else None)


def _record(
    recipe: ClozeRecipe,
    hashes: Mapping[str, str],
    mixture: Mixture,
    held_out: list[PreferencePair],
    metrics: dict[str, float],
) -> None:
    """What export and the model card need to know of this run, and of the run that made its base."""
    recipe.spec.save(recipe.output_dir)
    run = {
        **identity(recipe, hashes),
        "recipe": recipe.model_dump(mode="json"),
        "data": {name: {"pairs": len(part.pairs), "dropped": part.dropped} for name, part in mixture.parts.items()},
        "dropped": mixture.loaded.dropped,
        "held_out": metrics,
        "base": read_run(Path(recipe.model)) or None,
    }
    write_run(recipe.output_dir, run)
    with (recipe.output_dir / HELD_OUT_FILE).open("w", encoding="utf-8") as file:
        file.writelines(pair.model_dump_json() + "\n" for pair in held_out)


def pair_hashes(recipe: ClozeRecipe, data_dir: Path) -> dict[str, str]:
    """Of the files that the recipe learns from."""
    return file_hashes(data_dir, (source.path for source in recipe.sources))


def _save_tokenizer(recipe: ClozeRecipe) -> None:
    AutoTokenizer.from_pretrained(recipe.model).save_pretrained(recipe.output_dir)
