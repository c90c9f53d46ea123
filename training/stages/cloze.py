"""The reward stage: preference pairs -> a checkpoint, or an adapter, that fills the mask with the better choice."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, EvalPrediction, PreTrainedModel, set_seed

from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.modernbert.files import checkpoint_folder, commit_of
from tinyrm.modernbert.heads import load_head
from tinyrm.modernbert.sets import set_config
from tinyrm.negatives import Pool
from tinyrm.pairs import PreferencePair
from tinyrm.spec import HELD_OUT_FILE, read_run
from training.arguments import training_arguments
from training.data.collate import PairDataset, PairSampling, RowCollator, longest_first
from training.data.groups import GroupCollator, GroupDataset, groups_of, with_distractors
from training.data.mixture import load_all
from training.data.negatives import kinds_of, made_pairs
from training.data.soft import SoftCollator, SoftPairs, has_labels
from training.data.split import balanced, split_by_prompt
from training.model.adapter import add_dora, freeze_lowest, set_attention_dropout
from training.model.heads import (
    Readout,
    collator_for,
    encoder_for,
    read_sets,
    readout,
    refuse_other_head,
    run_model,
    set_encoder,
    swap_disagreement,
)
from training.model.losses import choice_loss, soft_cross_entropy
from training.model.places import HeadAtPlaces, refuse_flat
from training.model.precision import read_in_fp32
from training.output import begin, pinned, prepare_output, write_run
from training.processes import on_main
from training.recipe import ClozeRecipe
from training.trainer import LengthGroupedTrainer

log = logging.getLogger(__name__)


def train_cloze(
    recipe: ClozeRecipe,
    data_dir: Path,
    *,
    resume: bool,
    fresh: bool = False,
    make_trainer: "Callable[..., ClozeTrainer] | None" = None,
) -> dict[str, float]:
    """Train and write weights or adapter, tokenizer, spec, held-out pairs and a record of the run.

    resume, fresh: as `training.output.prepare_output` has them.
    make_trainer: gets the arguments of `ClozeTrainer` and may change them, so that other stages add their parts.

    Returns the metrics of the held-out pairs.
    """
    arguments = training_arguments(recipe, recipe.rows_per_pair)
    # What a set on the hub gives is part of the run's identity.
    mixture = on_main(lambda: load_all(recipe.sources, data_dir))
    start = prepare_output(recipe, mixture.sha256, resume=resume, fresh=fresh)
    fixed = pinned(recipe, start)
    set_seed(recipe.optimization.seed)
    refuse_other_head(recipe)
    tokenizer, special = load_tokenizer(fixed.model, fixed.revision)
    encoder = Encoder(tokenizer, recipe.spec.template, special, recipe.training_tokens)
    learn, held_out, pool = divided(recipe, mixture.loaded.pairs)
    shown = show(recipe, learn, held_out, pool, encoder=encoder, tokenizer=tokenizer)
    trainer = (make_trainer or ClozeTrainer)(
        label_ids=encoder.label_ids,
        label_loss=recipe.loss == "labels",
        consistency_weight=recipe.consistency_weight,
        read=None if recipe.head == "cloze" else readout(recipe.head),
        recipe=recipe,
        model=learning_model(fixed),
        args=arguments,
        train_dataset=shown.learn,
        eval_dataset=shown.held_out,
        data_collator=shown.collator,
        compute_metrics=labelled_metrics if has_labels([*learn, *held_out]) else preference_metrics,
    )
    begin(recipe.output_dir, start)
    log.info("learning from %d pairs, %d held out; the run is in %s", len(learn), len(held_out), recipe.output_dir)
    trainer.train(resume_from_checkpoint=start.checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model(_internal_call=True)  # it is pushed when the folder is complete
    if trainer.is_world_process_zero():
        recipe.spec.save(recipe.output_dir)
        # What export and the model card need to know of this run, and of the run that made its base.
        run = {
            **start.identity,
            "recipe": recipe.model_dump(mode="json"),
            "data_revisions": mixture.commits,
            "data": {name: {"pairs": len(part.pairs), "dropped": part.dropped} for name, part in mixture.parts.items()},
            "dropped": mixture.loaded.dropped,
            "negatives": kinds_of(learn),
            "held_out": metrics | ({"chosen_on": ["checkpoint"]} if trainer.args.load_best_model_at_end else {}),
            "base": read_run(Path(recipe.model)) or None,
        }
        with (recipe.output_dir / HELD_OUT_FILE).open("w", encoding="utf-8") as file:
            file.writelines(pair.model_dump_json() + "\n" for pair in held_out)
        AutoTokenizer.from_pretrained(checkpoint_folder(fixed.model, fixed.revision)).save_pretrained(recipe.output_dir)
        write_run(recipe.output_dir, run)  # last: with it the run has ended
    trainer.publish()
    return metrics


class Shown(NamedTuple):
    """Pairs as a head reads them, and what makes batches of them."""

    learn: PairDataset | SoftPairs | GroupDataset
    held_out: PairDataset | SoftPairs | GroupDataset
    collator: RowCollator | SoftCollator | GroupCollator


def show(
    recipe: ClozeRecipe,
    learn: list[PreferencePair],
    held_out: list[PreferencePair],
    pool: Pool,
    *,
    encoder: Encoder,
    tokenizer: Tokenizer,
) -> Shown:
    """Return the pairs as the recipe's head reads them. pool: what distractors are taken from."""
    seed, special = recipe.optimization.seed, encoder.special
    # The spec's instruction and both orders, however training samples; by length, so that little is padding.
    by_length, as_spec = longest_first(held_out), PairSampling(recipe.spec, seed)
    if recipe.head == "set":
        of_sets = set_encoder(encoder, tokenizer)
        groups = groups_of(learn, recipe.max_responses, seed)
        if recipe.distractors:
            groups = with_distractors(groups, pool, recipe.distractors, seed)
        return Shown(
            GroupDataset(groups, of_sets, sampling(recipe)),
            GroupDataset(groups_of(by_length, 2, seed), of_sets, as_spec),
            GroupCollator(special.pad, labelled=has_labels([*learn, *held_out])),
        )
    texts = encoder_for(recipe.head, encoder, tokenizer)
    collator = collator_for(recipe.head, encoder, flat=recipe.is_flat)
    to_learn, to_measure = PairDataset(learn, texts, sampling(recipe)), PairDataset(by_length, texts, as_spec)
    if has_labels([*learn, *held_out]):
        return Shown(SoftPairs(to_learn), SoftPairs(to_measure), SoftCollator(collator))
    return Shown(to_learn, to_measure, collator)


def divided(
    recipe: ClozeRecipe, pairs: list[PreferencePair]
) -> tuple[list[PreferencePair], list[PreferencePair], Pool]:
    """Return pairs to learn from, made-up ones last; pairs held out; and what made-up responses are taken from.

    Raises InvalidInput if either side is empty, or only ties are held out.
    """
    seed = recipe.optimization.seed
    learn, held_out = split_by_prompt(pairs, recipe.held_out_fraction, seed)
    if not learn or not held_out:
        raise InvalidInput(f"{len(pairs)} pairs are too few: {len(learn)} to learn from, {len(held_out)} held out")
    if all(pair.is_tie for pair in held_out):
        raise InvalidInput(
            f"all {len(held_out)} held-out pairs are ties, on which nothing is right; add pairs with a better response"
        )
    # Balanced after the split, so that the held-out pairs do not depend on it.
    learn = balanced(learn, recipe.balance, seed)
    pool = Pool(learn)
    if recipe.negatives:
        learn += made_pairs(pool, recipe.negatives.beside(len(learn)), recipe.negatives.kinds, seed)
    return learn, held_out, pool


def learning_model(recipe: ClozeRecipe) -> PreTrainedModel | PeftModel:
    """Return the masked LM, or its body with a head, with frozen layers or with DoRA above them, read in fp32."""
    if recipe.head != "cloze":
        sets = None
        if recipe.sets:
            _, special = load_tokenizer(recipe.model, recipe.revision)
            sets = set_config(recipe.sets, special)
        loaded = load_head(
            recipe.head,
            recipe.model,
            revision=recipe.revision,
            new_head=recipe.new_head,
            sets=sets,
            attention=recipe.attention,
        )
    else:
        loaded = load_masked_lm(
            recipe.model, revision=recipe.revision, new_head=recipe.new_head, attention=recipe.attention
        )
    if recipe.is_flat:
        refuse_flat(loaded.config)
    if recipe.head != "set":
        HeadAtPlaces(loaded, mean=recipe.head == "pair-mean")
    if recipe.attention_dropout is not None:
        set_attention_dropout(loaded, recipe.attention_dropout)
    model = with_learning_parts(loaded, recipe)
    if isinstance(model, PeftModel):
        # An adapter names its base; with the commit, whoever loads it gets the base that it was trained on.
        model.peft_config["default"].revision = commit_of(checkpoint_folder(recipe.model, recipe.revision))
    read_in_fp32(model)
    return model


def with_learning_parts(model: PreTrainedModel, recipe: ClozeRecipe) -> PreTrainedModel | PeftModel:
    """Return the model, adapted or frozen as the recipe says; parameters that require a gradient learn."""
    if recipe.dora:
        return add_dora(model, recipe.dora, recipe.frozen_layers)
    freeze_lowest(model, recipe.frozen_layers, embeddings=recipe.freeze_embeddings)
    return model


def sampling(recipe: ClozeRecipe) -> PairSampling:
    """Return how the recipe shows its pairs in training."""
    return PairSampling(
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
        """Return the loss and the label logits at the mask [rows, 2]."""
        logits = run_model(model, inputs)
        label_logits = logits[:, self.label_ids]
        if self.label_loss:
            return choice_loss(label_logits, inputs), label_logits
        if "targets" in inputs:
            log_q = logits.float().log_softmax(dim=-1)[:, self.label_ids]
            return soft_cross_entropy(log_q, inputs["targets"], inputs["weights"]), label_logits
        right = torch.tensor(self.label_ids, device=logits.device)[inputs["is_second"].long()]
        return nn.functional.cross_entropy(logits, right), label_logits

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, z [pairs, 2] of (chosen first, chosen second), and labels, which the Trainer requires.

        The labels are the pairs' probabilities [pairs], or 0 of plain verdicts.
        """
        with torch.no_grad():
            loss, logits = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        z = (logits[:, 0] - logits[:, 1]).float().view(-1, 2)
        if "targets" not in inputs:
            return loss.detach(), z, torch.zeros(len(z), device=z.device)
        targets = inputs["targets"].to(z.device)
        of_pairs = targets[:, 0, 1] if self.read is read_sets else targets.view(-1, 2)[:, 0]
        return loss.detach(), z, of_pairs


def preference_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute metrics of plain verdicts from z = logit(first) - logit(second), [pairs, 2]; see `measured`."""
    margins = np.asarray(prediction.predictions)
    return measured(margins, np.ones(len(margins)))


def labelled_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute metrics of pairs whose probabilities are the labels, [pairs], and count the ties among them."""
    targets = np.asarray(prediction.label_ids)
    return {**measured(np.asarray(prediction.predictions), targets), "ties": float(np.sum(targets == 0.5))}


def measured(margins: NDArray[np.floating], targets: NDArray[np.floating]) -> dict[str, float]:
    """Compute metrics from z = logit(first) - logit(second), with the chosen response first and second.

    Right is z > 0 with the chosen response first, and z < 0 with it second. A tie of the model is half right, as in
    evaluation; a tie of the data has no right response and is left out of both accuracies. `nll` is the mean of
    cross-entropy with P(chosen is better), both orders averaged, at temperature 1: of a verdict, of -log P. Weights do
    not count here, only in the loss.

    margins: z, [pairs, 2].
    targets: [pairs], the probability that the chosen response is the better one; 1 of a verdict.
    """
    chosen_first, chosen_second = margins.T
    targets = targets.astype(margins.dtype)
    is_verdict = targets != 0.5
    first, second = chosen_first[is_verdict], chosen_second[is_verdict]
    towards_better = np.sign(targets[is_verdict] - 0.5)
    both = (chosen_second - chosen_first) / 2
    return {
        "accuracy": float(np.mean(credit((first - second) * towards_better))),
        "accuracy_one_order": float(np.mean(credit(np.array([first, -second]) * towards_better))),
        "nll": float(np.mean(targets * np.logaddexp(0, both) + (1 - targets) * np.logaddexp(0, -both))),
        "swap_consistency": float(np.mean(chosen_first * chosen_second <= 0)),
        "first_position_margin": float(np.mean((chosen_first + chosen_second) / 2)),
    }


def credit(margins: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return 1 for a margin towards the right response, 0 for one towards the other, one half for a tie."""
    return np.heaviside(margins, 0.5)
