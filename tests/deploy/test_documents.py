"""docs/kubernetes.md, docs/rollout.md and docs/sizing.md: what they name exists, and what they show can be done."""

import re
import subprocess
from functools import cache
from itertools import pairwise

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.conftest import REPOSITORY
from tests.deploy.manifests import FOLDER, adapter_rules, applied, exposed
from tests.deploy.programs import CHART, helm, program, rendered
from tests.deploy.test_helm import NOT_BUILT_IN
from tests.deploy.validation import NEWEST, OLDEST, validate
from tests.support.pages import Block, Command, all_blocks, commands_of
from tools.sizing_table import LOAD, SECTION, latency_multiples, section

PAGES = ("docs/kubernetes.md", "docs/rollout.md", "docs/sizing.md")
TEXT = {page: (REPOSITORY / page).read_text() for page in PAGES}
BLOCKS = [block for block in all_blocks() if block.page in PAGES]
VALUES = [block for block in BLOCKS if block.note == "values"]
each_page = pytest.mark.parametrize("page", PAGES)


@each_page
def test_a_page_names_only_what_exists(page: str) -> None:
    text = TEXT[page]
    settings = {name.removeprefix(PREFIX).lower() for name in re.findall(r"TINYRM_[A-Z][A-Z_]*[A-Z]", text)}
    # A variable that Kubernetes adds, and one of clients.
    assert settings - {"service_host", "api_key"} <= set(Settings.model_fields)
    derived = {rule.metric for rule in adapter_rules()} | {"tinyrm_track"}
    # These two are there when a model is loaded, and when work was refused.
    named = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\btinyrm_[a-z_]+\b", text)}
    known = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed()} | exposed()
    assert named - {"tinyrm_model_info", "tinyrm_shed_requests_total"} <= known | derived
    files = {file.name for file in FOLDER.rglob("*.yaml")} | {"values.yaml"}
    assert set(re.findall(r"[\w-]+\.yaml", text)) <= files


def test_the_manifests_of_the_kustomization_that_need_something_are_named() -> None:
    needed = {
        "kustomization.yaml",
        "prometheus-adapter-values.yaml",
        "servicemonitor.yaml",
        "hpa.yaml",
        "deployment.yaml",
    }
    assert needed <= set(re.findall(r"[\w-]+\.yaml", TEXT["docs/kubernetes.md"]))


@pytest.mark.parametrize("block", VALUES, ids=str)
def test_values_that_a_page_shows_render_valid_objects(block: Block) -> None:
    # Images as volumes are younger, as the page states.
    version = NEWEST if "reference:" in block.text else OLDEST
    for (kind, _), one in rendered(yaml.safe_load(block.text)).items():
        # Dashboards are the same with all values.
        if kind not in {*NOT_BUILT_IN, "ConfigMap"}:
            validate(one, version)


def test_every_yaml_block_is_one_of_values() -> None:
    assert [str(block) for block in BLOCKS if block.language == "yaml" and block not in VALUES] == []
    assert len(VALUES) > 8


def commands(first: str) -> list[tuple[Command, list[str]]]:
    shell = [block for block in BLOCKS if block.language == "bash"]
    found = [(command, words) for block in shell for command in commands_of(block) for words in command.programs]
    return [(command, words) for command, words in found if words[0] == first]


@cache
def help_of(name: str, *verbs: str) -> str:
    done = subprocess.run([program(name), *verbs, "--help"], capture_output=True, text=True, check=True, timeout=60)
    options = subprocess.run([program(name), "options"], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + options.stdout


@pytest.mark.parametrize("name", ["helm", "kubectl"])
def test_a_command_has_only_options_that_its_help_lists(name: str) -> None:
    checked = 0
    for command, words in commands(name):
        depth = {"create": 3 if "secret" in words else 2, "rollout": 2}.get(words[1], 1)
        verbs = words[1 : 1 + depth]
        for option in [word.split("=")[0] for word in words if word.startswith("-") and word != "-k"]:
            assert re.search(rf"{option}\b", help_of(name, *verbs)), f"{option} in {command}"
            checked += 1
    assert checked > 5


def test_the_chart_takes_the_values_that_a_command_sets() -> None:
    """Behind the values of the page's last canary, as `--values values.yaml` gives them."""
    (canary,) = [block for block in VALUES if "&bundles" in block.text]
    checked = 0
    for _, words in commands("helm"):
        if "deploy/helm/tinyrm" in words:
            sets = [after for word, after in pairwise(words) if word == "--set"]
            options = [part for one in sets for part in ("--set", one)]
            objects = rendered(yaml.safe_load(canary.text) if "--values" in words else {}, *options)
            assert objects.one("Deployment", "tinyrm")
            checked += len(sets)
    assert checked >= 4


def test_the_refusal_that_the_page_shows_is_the_one_that_helm_prints() -> None:
    (shown,) = [block for block in BLOCKS if block.text.startswith("Error: values don't meet")]
    done = helm("template", "tinyrm", CHART, "--set", "autoscaling.maxReplica=3")
    assert shown.text.strip() in done.stderr


def test_the_selectors_that_a_page_uses_find_pods() -> None:
    labels = applied()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for _, words in commands("kubectl"):
        if "--selector" in words:
            key, _, value = words[words.index("--selector") + 1].partition("=")
            assert labels[key] == value


def test_the_table_of_sizes_follows_from_the_measured_runs() -> None:
    found = SECTION.search(TEXT["docs/sizing.md"])
    assert found
    assert found[2] == section(), "run `python -m tools.sizing_table`"


def test_a_queue_with_one_server_waits_as_the_formula_of_its_mean_predicts() -> None:
    """The mean of M/D/1 is known: the simulation must have it, and the percentiles lie on both sides of it."""
    p50, p99 = latency_multiples()
    mean = 1 + LOAD / (2 * (1 - LOAD))
    assert 1 < p50 < mean < p99 < 15
