"""What comes out where: one JSON object or sentences on stdout, progress on stderr, silence when asked for."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
import threading
from pathlib import Path

import pytest
import yaml
from cli_runner import DIGITS, CommandLine
from crafted_timm import crafted_probabilities

from sam_bench import __version__, api
from sam_bench.records import EvaluationRecord, ModelCard, read_record
from sam_bench.training import load_recipe, recipe_names
from sam_bench.zoo import Zoo

_METHODS = Path(__file__).parents[2] / "docs" / "methods.md"

_EVALUATE = ["evaluate", "tiny", "--attack", "fgsm", "--n-examples", "8"]


def test_train_prints_the_card_as_one_json_object(cli: CommandLine) -> None:
    printed = cli.done(*DIGITS, "--name", "run", "--json").json
    assert printed["card_path"] == "model_zoo/digits-8px/Linf/run.json"
    assert ModelCard.model_validate(printed["card"]) == read_record(cli.folder / printed["card_path"], ModelCard)
    assert printed["card"]["command"] == f"sam-bench {' '.join(DIGITS)} --name run --json"


def test_train_ends_with_the_accuracy_and_what_to_do_next(cli: CommandLine) -> None:
    first, second = cli.done(*DIGITS, "--name", "run", "--zoo", "my zoo").out.splitlines()
    assert re.fullmatch(r"run: clean accuracy \d+\.\d\d%, 1 pass per image", first)
    assert second == "next: sam-bench evaluate run --attack autoattack --eps 8/255 --zoo 'my zoo'"


@pytest.mark.parametrize(
    ("arguments", "following"),
    [
        (["--recipe", "at-l2-128", "--steps", "1"], "run --attack autoattack --norm L2 --eps 128/255"),
        (["--recipe", "fast-at", "--eps", "4/255"], "run --attack autoattack --eps 4/255"),
        (["--recipe", "fast-at", "--eps", "0"], "run --attack autoattack --eps 8/255"),
        (["--recipe", "fast-at", "--threat", "L2"], "run --attack autoattack --norm L2 --eps 0.5"),
        (
            ["--recipe", "fast-at", "--eps", "2", "--allow-large-eps"],
            "run --attack autoattack --eps 2 --allow-large-eps",
        ),
        (["--data-dir", "my data"], "run --attack autoattack --eps 8/255 --data-dir 'my data'"),
        (
            ["--dataset-name", "other"],
            "run --attack autoattack --eps 8/255 --dataset digits --dataset-name other",
        ),
    ],
)
def test_what_to_do_next_is_an_attack_in_the_models_own_threat_model(
    cli: CommandLine, arguments: list[str], following: str
) -> None:
    last = cli.done(*DIGITS, "--name", "run", *arguments).out.splitlines()[-1]
    assert last == f"next: sam-bench evaluate {following}"


def test_what_to_do_next_names_one_model_where_two_have_the_name(cli: CommandLine) -> None:
    cli.done(*DIGITS, "--name", "run")
    trained = cli.done(*DIGITS, "--name", "run", "--threat", "L2", "--run-dir", "runs/other")
    following = "sam-bench evaluate digits-8px/L2/run --attack autoattack --norm L2 --eps 0.5"
    assert trained.out.splitlines()[-1] == f"next: {following}"
    evaluate = following.replace("autoattack", "fgsm").split()[1:]
    assert cli.done(*evaluate, "--n-examples", "4", "--json").json["model"] == "digits-8px/L2/run"


def test_train_says_at_the_start_what_it_does_and_why(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # else a busy machine adds a line
    said = cli.done(*DIGITS, "--recipe", "sam", "--rho", "0.1", "--name", "run", "--validation", "8").err.splitlines()
    assert said[0] == "run: weights sam (rho 0.1); 1 epoch, batch size 128"
    assert re.fullmatch(
        r"preactresnet10 with [\d,]+ parameters on 24 images of digits-8px, 8 more held out for validation", said[1]
    )
    assert re.fullmatch(
        r"device \S+ \(.+\), precision fp32 \(asked for\), "
        r"not compiled \(the run takes about \d+ s, too few .+\), seed 0",
        said[2],
    )
    assert said[3].startswith("train run 1/1, ") and "validation" in said[3]
    assert said[4].endswith("registered as model_zoo/digits-8px/Linf/run.json")


@pytest.mark.parametrize("command", [[*DIGITS, "--name", "run"], _EVALUATE])
def test_quiet_leaves_stderr_empty(with_tiny: CommandLine, command: list[str]) -> None:
    outcome = with_tiny.done(*command, "--quiet")
    assert outcome.err == ""
    assert outcome.out != ""
    if command == _EVALUATE:
        assert json.loads(with_tiny.done(*command, "--quiet", "--json").out)


def test_evaluate_prints_its_record_as_one_json_object(with_tiny: CommandLine) -> None:
    printed = with_tiny.done(*_EVALUATE, "--eps", "2/255", "--json").json
    record = read_record(with_tiny.folder / "evaluations/tiny/fgsm-Linf-2over255-n8.json", EvaluationRecord)
    assert EvaluationRecord.model_validate(printed) == record
    assert (record.model, record.n_examples, str(record.eps)) == ("tiny", 8, "2/255")


def test_a_quick_look_does_not_overwrite_a_fuller_evaluation(with_tiny: CommandLine) -> None:
    for changed in ([], ["--n-examples", "4"], ["--attack", "pgd", "--steps", "1"], ["--seed", "1"]):
        with_tiny.done(*_EVALUATE, *changed)
    with_tiny.done(*_EVALUATE, "--attack", "pgd", "--steps", "2")
    names = {path.name for path in (with_tiny.folder / "evaluations/tiny").iterdir()}
    assert names == {
        "fgsm-Linf-8over255-n8.json",
        "fgsm-Linf-8over255-n8-seed1.json",
        "fgsm-Linf-8over255-n4.json",
        "pgd-steps1-Linf-8over255-n8.json",
        "pgd-steps2-Linf-8over255-n8.json",
    }
    first = with_tiny.folder / "evaluations/tiny/fgsm-Linf-8over255-n8.json"
    assert read_record(first, EvaluationRecord).seed == 0


def test_evaluate_prints_several_radii_as_one_json_object(with_tiny: CommandLine) -> None:
    printed = with_tiny.done(*_EVALUATE, "--eps", "1/255,2/255", "--json").json
    assert [record["eps"] for record in printed["records"]] == ["1/255", "2/255"]


def test_evaluate_says_the_accuracies_and_under_what(with_tiny: CommandLine) -> None:
    outcome = with_tiny.done(*_EVALUATE)
    assert re.fullmatch(
        r"tiny: clean accuracy \d+\.\d\d%, robust accuracy \d+\.\d\d% \(fgsm, Linf 8/255, 8 examples, \d+ s\)\n",
        outcome.out,
    )
    assert "record written to evaluations/tiny/fgsm-Linf-8over255-n8.json" in outcome.err


def test_zoo_commands_print_json_and_sentences(with_tiny: CommandLine) -> None:
    cards = with_tiny.done("zoo", "list", "--json").json
    assert (cards["zoo"], [card["name"] for card in cards["models"]]) == ("model_zoo", ["tiny"])
    assert with_tiny.done("zoo", "show", "tiny", "--json").json == cards["models"][0]
    verified = with_tiny.done("zoo", "verify", "--json").json
    assert verified == {"zoo": "model_zoo", "models": [{"name": "digits-8px/Linf/tiny", "problems": []}]}

    assert "digits-8px/Linf/tiny" in with_tiny.done("zoo", "list").out
    shown = with_tiny.done("zoo", "show", "tiny").out
    assert "timm.create_model('tiny_digits_8px_linf', pretrained=True)" in shown
    assert cards["models"][0]["weights"]["sha256"] in shown
    assert shown.splitlines()[-1].startswith("    RobustBench cannot load it: digits-8px is none of its data sets (")
    zoo = Zoo(with_tiny.folder / "model_zoo")
    card = zoo.find("tiny")
    zoo.save(zoo.load(card), card.model_copy(update={"name": "like-cifar10", "robustbench_dataset": "cifar10"}))
    last = with_tiny.done("zoo", "show", "like-cifar10").out.splitlines()[-1]
    assert last == "    robustbench.utils.load_model('like-cifar10', dataset='cifar10', threat_model='Linf')"
    Path("model_zoo/digits-8px/Linf/like-cifar10.json").unlink()
    assert with_tiny.done("zoo", "verify").out.endswith("1 of 1 models in model_zoo are whole\n")


def test_recipe_commands_print_json_and_sentences(cli: CommandLine) -> None:
    listed = cli.done("recipes", "list", "--json").json["recipes"]
    assert [recipe["name"] for recipe in listed] == recipe_names()
    passes = {recipe["name"]: recipe["passes"] for recipe in listed}
    assert (passes["standard"], passes["sam"], passes["at"], passes["trades"]) == (1, 2, 11, 12.5)
    text = cli.done("recipes", "list").out
    for recipe in listed:
        assert recipe["summary"] in text and recipe["source"] in text
        assert cli.done("recipes", "show", recipe["name"], "--json").json["summary"] == recipe["summary"]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_is_shown_can_be_given_back(cli: CommandLine, name: str) -> None:
    shown = cli.done("recipes", "show", name).out
    (cli.folder / f"{name}.yaml").write_text(shown)
    assert load_recipe(Path(f"{name}.yaml")) == load_recipe(name)
    # The JSON is YAML too, and complete: it can be given back as well.
    (cli.folder / "full.yaml").write_text(cli.done("recipes", "show", name, "--json").out)
    assert load_recipe(Path("full.yaml")) == load_recipe(name)

    shorter = yaml.safe_load(shown) | {"epochs": 1}
    (cli.folder / "mine.yml").write_text(yaml.safe_dump(shorter))
    # What begins late in a long run has to begin at once in one of an epoch.
    at_once = {"swa": ["--average-every", "step"], "trades-awp": ["--start-epoch", "0"]}.get(name, [])
    command = [part for part in DIGITS if part not in ("--epochs", "1")]
    card = cli.done(*command, "--recipe", "mine.yml", *at_once, "--json").json
    assert card["card"]["recipe"]["name"] == "mine"
    assert card["card"]["recipe"]["weights"]["method"] == load_recipe(name).weights.method


def test_the_recipe_in_the_documentation_is_shown_and_trains(cli: CommandLine) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", _METHODS.read_text(encoding="utf-8"), re.DOTALL)
    Path("gentle.yaml").write_text(text)
    assert cli.done("recipes", "show", "gentle.yaml").out == text
    assert cli.done("recipes", "show", "gentle.yaml", "--json").json["name"] == "gentle"
    card = cli.done(*DIGITS, "--recipe", "gentle.yaml", "--json").json["card"]
    assert (card["recipe"]["inputs"]["method"], card["recipe"]["weights"]["method"]) == ("fgsm", "sam")


def test_from_evaluation_to_leaderboard_each_step_prints_json(with_tiny: CommandLine) -> None:
    evaluate = ["evaluate", "tiny", "--attack", "autoattack", "--eps", "0.9", "--n-examples", "4"]
    evaluated = with_tiny.done(*evaluate, "--output", "aa.json", "--json").json
    assert evaluated["robust_accuracy"] == 0 < evaluated["clean_accuracy"]
    submitted = with_tiny.done("leaderboard", "submit", "tiny", "aa.json", "--json").json
    assert submitted["entry"] == "leaderboards/digits-8px/Linf/tiny.json"
    assert json.loads(submitted["model_info"])["autoattack_acc"] == "0.00"
    built = with_tiny.done("leaderboard", "build", "--json").json
    assert {"md", "tex", "csv", "html"} <= built.keys()
    assert all((with_tiny.folder / path).is_file() for path in built.values())

    shown = with_tiny.done("leaderboard", "build")
    assert "| tiny |" in shown.out and shown.err.startswith("written: leaderboards/leaderboard.md")
    again = with_tiny.done("leaderboard", "submit", "tiny", "aa.json")
    assert "[New Model]" in again.out and "entry written to leaderboards/digits-8px/Linf/tiny.json" in again.err


def test_a_record_over_fewer_images_replaces_a_row_only_with_the_option_that_says_so(with_tiny: CommandLine) -> None:
    evaluate = ["evaluate", "tiny", "--attack", "autoattack", "--eps", "0.9"]
    for count in (4, 3):
        with_tiny.done(*evaluate, "--n-examples", str(count), "--output", f"{count}.json")
    with_tiny.done("leaderboard", "submit", "tiny", "4.json")
    message = with_tiny.refused("leaderboard", "submit", "tiny", "3.json")
    assert "3.json is over only 3 test examples, but the row autoattack at Linf 0.9 of leaderboards/" in message
    assert "tiny.json over 4: add --replace" in message
    again = with_tiny.done("leaderboard", "submit", "tiny", "3.json", "--replace")
    assert "note: replaced the row autoattack at Linf 0.9 (4 test examples" in again.err


def test_submit_needs_an_autoattack_record_of_these_weights(with_tiny: CommandLine) -> None:
    with_tiny.done(*_EVALUATE, "--output", "fgsm.json")
    message = with_tiny.refused("leaderboard", "submit", "tiny", "fgsm.json")
    assert message.startswith("sam-bench: tiny has no AutoAttack (standard) record in Linf")
    assert "evaluate it with autoattack in Linf at eps 8/255" in message
    with_tiny.done(*DIGITS, "--name", "other")
    message = with_tiny.refused("leaderboard", "submit", "other", "fgsm.json")
    assert "fgsm.json evaluates checkpoint " in message and "evaluate this model's own weights" in message


def test_autoattacks_doubts_are_shown_as_warnings_even_when_quiet(cli: CommandLine) -> None:
    evaluate = [
        "evaluate",
        f"timm:{crafted_probabilities.__name__}",
        "--attack",
        "autoattack",
        "--eps",
        "0.9",
        "--quiet",
    ]
    outcome = cli.done(*evaluate, "--dataset", "digits-8px", "--n-examples", "20", "--json")
    assert outcome.err.startswith("warning: probabilities: the model's outputs are non-negative and sum to one")
    assert outcome.err.splitlines() == [f"warning: {warning}" for warning in outcome.json["warnings"]]


def test_doctor_prints_its_findings_and_fails_only_when_something_is_wrong(cli: CommandLine) -> None:
    outcome = cli("doctor", "--json")
    findings = outcome.json["findings"]
    assert {"Python", "versions", "device", "precision", "data folder", "zoo"} <= {each["what"] for each in findings}
    assert outcome.code == int(any(each["status"] == "wrong" for each in findings))
    assert all(each["mend"] for each in findings if each["status"] == "wrong")
    text = cli("doctor")
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in text.out.splitlines() if "->" not in line] == [
        each["what"] for each in findings
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["quickstart"],
        ["train"],
        ["evaluate"],
        ["recipes"],
        ["recipes", "list"],
        ["recipes", "show"],
        ["zoo"],
        ["zoo", "list"],
        ["zoo", "show"],
        ["zoo", "verify"],
        ["leaderboard"],
        ["leaderboard", "build"],
        ["leaderboard", "submit"],
        ["doctor"],
    ],
)
def test_every_command_has_help(cli: CommandLine, command: list[str]) -> None:
    for flag in ("--help", "-h"):
        outcome = cli.done(*command, flag)
        assert outcome.out.startswith(f"Usage: sam-bench {' '.join(command)} ")
        assert outcome.err == ""


@pytest.mark.parametrize("group", [["zoo"], ["leaderboard"], ["recipes"], ["analyze"]])
def test_a_group_says_what_each_command_does_in_a_whole_sentence(cli: CommandLine, group: list[str]) -> None:
    shown = cli.done(*group, "--help").out.partition("Commands:\n")[2]
    for said in re.split(r"\n  (?=\w)", "\n" + shown)[1:]:
        name, text = said.split(maxsplit=1)
        whole = " ".join(cli.done(*group, name, "--help").out.split())
        assert " ".join(text.split()).endswith(".") and "..." not in text
        assert " ".join(text.split()) in whole, name


def test_the_version_is_the_packages(cli: CommandLine) -> None:
    assert cli.done("--version").out == f"sam-bench, version {__version__}\n"


def test_the_default_name_tells_runs_apart_and_is_one_robustbench_keeps(cli: CommandLine) -> None:
    names = [
        cli.done(*DIGITS, *options, "--quiet", "--json").json["card"]["name"]
        for options in ([], ["--recipe", "sam"], ["--recipe", "sam", "--rho", "0.1"], ["--width", "3"])
    ]
    assert len(set(names)) == 4
    assert not any("." in name for name in names)
    assert all(name.startswith(("standard-", "sam-")) and "preactresnet10" in name for name in names)


def test_on_a_terminal_progress_is_a_bar(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    theirs, ours = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(theirs, 4096)
            except OSError:  # Linux says so when the other side has hung up
                return
            if not part:
                return
            shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(ours, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        outcome = cli(*DIGITS, "--name", "run")
    reader.join()
    os.close(theirs)
    text = b"".join(shown).decode()
    assert outcome.code == 0
    assert "\x1b[" in text and "━" in text and "1/1" in text and "left" in text
    assert "run: clean accuracy" in outcome.out and "\x1b" not in outcome.out


def test_the_api_has_what_the_command_line_lists() -> None:
    assert api.attack_names() == sorted(api.attack_names()) and {"autoattack", "pgd", "fgsm"} <= set(api.attack_names())
