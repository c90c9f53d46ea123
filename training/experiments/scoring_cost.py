"""What the teachers of a distillation would have to score, before they do. Needs no network."""

from collections.abc import Iterator
from pathlib import Path

from tinyrm.bundle import read_manifest
from tinyrm.errors import TinyRMError
from tinyrm.flops import executed_flops
from tinyrm.manifest import MANIFEST_FILE
from tinyrm.modernbert.checkpoint import read_geometry
from tinyrm.spec import trained_head
from training.data.targets import read_targets
from training.experiments.plan import Plan, find_config, operations
from training.model.teachers import GivenTargets, teacher_at
from training.recipe import DistilRecipe, Teacher


def render_teachers(plan: Plan, recipe: DistilRecipe) -> str:
    """Return the cost of scoring each pair once by each of its teachers, as text for a terminal."""
    lines = [line for teacher in recipe.all_teachers() for line in describe_teacher(plan, recipe, teacher)]
    return "\n  ".join([f"teachers, scored once into {recipe.targets_folder}:", *lines])


def describe_teacher(plan: Plan, recipe: DistilRecipe, teacher: Teacher) -> Iterator[str]:
    """Raises InvalidInput if the teacher's sizes are not known."""
    pairs = sum(
        count
        for given in plan.sources
        for domain, count in (given.domains or {}).items()
        if teacher in recipe.teachers_of(recipe.spec.default_domain if domain == "none" else domain)
    )
    yield f"{teacher.path}: {pairs:,} pairs" if pairs else f"{teacher.path}: pairs not known before they are read"
    if Path(teacher.path).is_file():
        yield "  a file of targets: nothing to score"
        return
    folder = Path(teacher.path)
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        geometry, graph, max_tokens = manifest.geometry, manifest.graph, manifest.spec.max_tokens
        reads_sets = manifest.reads == "set"
    else:
        geometry, graph, max_tokens = read_geometry(find_config(teacher.path)), "plain", recipe.spec.max_tokens
        reads_sets = trained_head(folder) == "set"
    tokens = min(round(plan.lengths.mean), max_tokens)
    kept = number_kept(recipe, teacher)
    count, sequences = (1, "one sequence") if reads_sets else (2, "two sequences")
    flops = count * executed_flops(geometry, tokens, graph)
    yield f"  {sequences} a pair, {operations(flops)} at {tokens:,} tokens each; {kept:,} of its targets are kept"
    if rest := max(0, pairs - kept):
        yield f"  {operations(flops * rest)} for the other {rest:,} pairs, if those kept are of this data"


def number_kept(recipe: DistilRecipe, teacher: Teacher) -> int:
    """Return how many targets of a teacher are kept; 0 for one that does not exist yet."""
    try:
        found = teacher_at(teacher)
        return 0 if isinstance(found, GivenTargets) else len(read_targets(recipe.targets_folder / found.identity()))
    except (TinyRMError, OSError):
        return 0
