"""Search hyperparameters: `python -m training.experiments.sweep RECIPE --space SPACE --trials N --storage URL`.

Each trial trains the recipe with other values and is judged on pairs held out of the training data. The study lives in
the storage: a sweep that was killed goes on, and several processes may share one.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import get_args

from optuna.exceptions import ExperimentalWarning, OptunaError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from tinyrm.errors import InvalidInput, TinyRMError
from training.experiments.space import Space
from training.experiments.study import Sampler, SweepOptions, sweep
from training.loading import find_recipe, load_recipe
from training.recipe import ClozeRecipe

PAPER_PROTOCOL = """\
########################################################################################################
# --paper-protocol: hyperparameters are chosen on {path}.
# Whatever is reported on these pairs afterwards is a selected figure, not a measured one. This is for
# replication of the paper alone; nothing that it selects may be compared with other models.
########################################################################################################"""


def main() -> int:
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat and TPE's groups; both are pinned by tests
    try:
        study = sweep(
            _recipe(arguments.recipe),
            Space.load(arguments.space) if arguments.space else Space(),
            SweepOptions(
                data_dir=arguments.data, storage=arguments.storage, trials=arguments.trials,
                sampler=arguments.sampler, seed=arguments.seed, paper_protocol=_warned(arguments.paper_protocol),
            ),
        )  # fmt: skip
        best = study.best_trial
        print(f"trial {best.number}: {study.user_attrs['identity']['objective']} {best.value:.4f} with {best.params}")
    except (OptunaError, SQLAlchemyError) as error:
        reason = str(error).partition("\n")[0]
        print(f"training.experiments.sweep: storage {arguments.storage}: {reason}", file=sys.stderr)
        return 1
    except (TinyRMError, ValidationError, OSError) as error:
        print(f"training.experiments.sweep: {error}", file=sys.stderr)
        return 1
    return 0


def _recipe(name: str) -> ClozeRecipe:
    recipe = load_recipe(find_recipe(name))
    if type(recipe) is not ClozeRecipe:
        raise InvalidInput(f"{name} has task {recipe.task!r}; only task 'cloze' is swept")
    return recipe


def _warned(path: Path | None) -> Path | None:
    if path:
        print(PAPER_PROTOCOL.format(path=path), file=sys.stderr)
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.experiments.sweep", description=__doc__)
    parser.add_argument(
        "recipe", help="a cloze recipe, by file or by name; what the space does not name stays as it says"
    )
    parser.add_argument("--space", type=Path, help="ranges to search, see training/spaces/; default: the learning rate")
    parser.add_argument("--trials", type=_positive, required=True, help="finished trials to have in the end")
    parser.add_argument("--storage", required=True, help="where the study is kept, such as sqlite:///sweep.db")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the recipe's data files")
    parser.add_argument("--sampler", choices=get_args(Sampler), default="tpe", help="tpe, or a Gaussian process")
    parser.add_argument("--seed", type=int, default=17, help="of the sampler")
    parser.add_argument(
        "--paper-protocol", type=Path, metavar="PAIRS",
        help="select on these evaluation pairs, as the paper did: for replication only",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
