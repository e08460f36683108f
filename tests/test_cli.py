"""The command line with what people really type: one clear line and exit code 2 for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from simdino.cli import COMMANDS, cli, main
from simdino.cli.terminal import CommandTable
from simdino.evaluate import PROTOCOLS
from simdino.show import PICTURES

LENGTH = "--steps 4 --batch 8 --threads 1 --evaluate-every 2"
TINY = f"{LENGTH} --encoder vit_toy --patch-size 4 --precision float32".split()
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Ended:
    """`simdino WORDS` in this process."""
    capsys.readouterr()
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    return Ended(code, *capsys.readouterr())


def write_images(folder: Path, count: int, *, size: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main(["pretrain", "digits", *TINY, "--out", str(folder)])
    return folder


def damaged(run: Path, copy: Path, kind: str) -> Path:
    """A copy of the run before its last step, its one checkpoint damaged."""
    shutil.copytree(run, copy)
    *others, newest, finished = sorted((copy / "checkpoints").iterdir())
    for other in (*others, finished):
        shutil.rmtree(other)
    state = newest / "state.pt"
    content = bytearray(state.read_bytes())
    if kind == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif kind == "no state":
        state.unlink()
    elif kind == "no manifest":
        (newest / "manifest.json").unlink()
    elif kind == "manifest of nothing":
        (newest / "manifest.json").write_text("[]")
    elif kind == "foreign":
        config = json.loads((copy / "config.json").read_text())
        config["config"]["loss"]["rho"] = 3.25
        (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def indices(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and bad data, runs and folders by name."""
    top = tmp_path_factory.mktemp("places")
    (top / "empty").mkdir()
    (top / "no_run").mkdir()
    (top / "foreign").mkdir()
    (top / "foreign" / "thesis.tex").write_text("years of work")
    (top / "file").write_text("a file")
    (top / "words.safetensors").write_text("no tensors")
    (top / "text_only").mkdir()
    (top / "text_only" / "readme.txt").write_text("no images here")
    (top / "disguised").mkdir()
    for i in range(30):
        (top / "disguised" / f"{i}.jpg").write_text("no JPEG")
    for name in ("a", "b"):
        write_images(top / "labelled" / name, 15)
    write_images(top / "flat", 30)
    kinds = ("truncated", "flipped", "no state", "no manifest", "manifest of nothing", "foreign")
    states = {f"run_{kind.replace(' ', '_')}": damaged(run, top / f"run_{kind}", kind) for kind in kinds}
    (top / "odd_config").mkdir()
    (top / "odd_config" / "config.json").write_text('{"config": {"run": 3}}')
    (top / "old_config").mkdir()
    (top / "old_config" / "config.json").write_text('{"config": {}}')
    folders = {path.name.split(".")[0]: path for path in top.iterdir() if not path.name.startswith("run_")}
    return {**folders, **states, "run": run, "top": top}


BAD_WORDS = {
    # data
    "missing path": ("pretrain {top}/nowhere", "there is no file or folder"),
    "mistyped built-in set": ("pretrain digit", "did you mean the built-in set 'digits'?"),
    "empty folder": ("pretrain {empty}", "is empty"),
    "no image file": ("pretrain {text_only}", "has no image file"),
    "no readable image": ("pretrain {disguised}", "none of the"),
    "images smaller than a patch": ("pretrain {flat} --patch-size 16", "smaller than a patch: give --patch-size 4"),
    "batch larger than the data": ("pretrain {flat} --batch 64", "--batch 64 is larger than the data: "),
    "inspect: missing path": ("inspect {top}/nowhere", "there is no file or folder"),
    # words
    "unknown option": ("pretrain digits --stps 3", "'--steps'"),
    "unknown value": ("pretrain digits --scope globl", "did you mean global?"),
    "no number": ("pretrain digits --steps many", "'many' is not a valid integer"),
    "unknown command": ("pretrian digits", "no such command 'pretrian'; did you mean pretrain?"),
    "unknown protocol": ("evaluate kn {run}", "no such command 'kn'; did you mean knn?"),
    "unknown encoder": ("pretrain digits --encoder vit_tny", "did you mean vit_tiny?"),
    "neither data nor run": ("pretrain", "give DATA for a new run, or --resume RUN"),
    "two lengths": ("pretrain digits --steps 3 --epochs 1", "give one of --steps and --epochs"),
    "crops not divisible by the patch": ("pretrain digits --patch-size 3", "not divisible by --patch-size 3"),
    "image not divisible by the patch": ("pretrain digits --image-size 9", "crops of 9 px are not divisible"),
    "gamma is no rule": ("pretrain digits --gamma balancd", "--gamma 'balancd' must be a number or balanced"),
    "gamma below 0": ("pretrain digits --gamma -1", "--gamma -1.0 must be 0 or more"),
    "gamma is no number": ("pretrain digits --gamma nan", "--gamma nan must be 0 or more"),
    "shards that do not divide": ("pretrain digits --scope shards --batch 100", "not divisible into shards of 64"),
    "unknown device": ("pretrain digits --device tpu9", "--device 'tpu9' is none of"),
    **{
        f"--{name} {value}": (f"pretrain digits --{name} {value}", f"--{name} {value} must be")
        for name, value in (
            ("steps", 0), ("epochs", 0.0), ("epochs", "nan"), ("minutes", -1.0), ("lr", "nan"), ("lr", 0.0),
            ("eps", 0.0), ("rho", 0.0), ("drop-path", 1.0), ("momentum", 1.0), ("micro-batch", 0), ("workers", -1),
            ("threads", 0), ("checkpoint-every", 0), ("evaluate-every", -5), ("max-broken", 2.0), ("local-views", -1),
        )
    },
    **{f"--batch {size}": (f"pretrain digits --batch {size}", "must be 2 or more") for size in (-3, 0, 1)},
    "--patch-size 0": ("pretrain digits --patch-size 0", "must be 1 or more"),
    "--image-size 0": ("pretrain digits --image-size 0", "must be 1 or more"),
    # run folders
    "--out of another run": ("pretrain digits --out {run}", "holds a run: `simdino pretrain --resume {run}`"),
    "--out with foreign files": ("pretrain digits --out {foreign}", "is neither empty nor a run"),
    "--out among the images": ("pretrain {labelled} --out {labelled}/run", "lies inside the images in {labelled}"),
    "--out below a file": ("pretrain digits --out {file}/run", "cannot be written"),
    "--out is a file": ("pretrain digits --out {file}", "cannot be written"),
    "--out with too long a name": ("pretrain digits --out " + 300 * "x", "cannot be written: File name too long"),
    "resume: no folder": ("pretrain --resume {top}/nowhere", "is not a run: it has no config.json"),
    "resume: no run": ("pretrain --resume {no_run}", "is not a run: it has no config.json"),
    "resume: a file": ("pretrain --resume {file}", "is not a run"),
    "resume: configuration is damaged": ("pretrain --resume {odd_config}", "config has no data, views, encoder"),
    "resume: configuration is of another version": ("pretrain --resume {old_config}", "does not fit this version"),
    "resume: state truncated": ("pretrain --resume {run_truncated}", "is damaged: state.pt does not match"),
    "resume: one bit flipped": ("pretrain --resume {run_flipped}", "is damaged: state.pt does not match"),
    "resume: no state": ("pretrain --resume {run_no_state}", "is damaged: state.pt does not match"),
    "resume: no manifest": ("pretrain --resume {run_no_manifest}", "is damaged: manifest.json is missing"),
    "resume: odd manifest": ("pretrain --resume {run_manifest_of_nothing}", "is damaged: manifest.json is missing"),
    "resume: other configuration": ("pretrain --resume {run_foreign}", "belongs to another configuration"),
    "resume: with another option": ("pretrain --resume {run} --lr 0.1", "--lr has no effect here: --resume goes on"),
    "prolong: a cosine": ("pretrain --resume {run} --steps 9", "--steps has no effect here: {run} has"),
    "cool down: a cosine": ("pretrain --resume {run} --cool-down 9", "--cool-down has no effect here: {run} has"),
    "cool down: by what": ("pretrain --resume {run} --cool-down many", "'many' is not a valid integer"),
    "cool down: by nothing": ("pretrain --resume {run} --cool-down 0", "--cool-down 0 must be 1 or more"),
    "cool down: which run": ("pretrain digits --cool-down 3", "--cool-down has no effect here: it needs --resume RUN"),
    "cool down: two lengths": ("pretrain --resume {run} --cool-down 3 --steps 9", "contradict each other"),
    "--at alone": ("pretrain --resume {run} --at 3", "--at has no effect here: it needs --cool-down"),
    "--at without a run": ("pretrain digits --at 3", "--at has no effect here: it needs --resume RUN"),
    "resume: with --guard": ("pretrain --resume {run} --guard 0", "--guard has no effect here: {run} began without"),
    "unknown schedule": ("pretrain digits --schedule wds", "did you mean wsd?"),
    "no share": ("pretrain digits --set optim.cooldown=1.5", "optim.cooldown 1.5 must be 0 or more, at most 1"),
    "a mark of nothing": ("pretrain digits --stop-below 40", "--stop-below '40' must be METRIC VALUE at STEP"),
    "a mark of no metric": ("pretrain digits --stop-below=kn_40_at_2", "must be METRIC VALUE at STEP"),
    "resume: a mark of nothing": ("pretrain --resume {run} --stop-below 40", "must be METRIC VALUE at STEP"),
    "two budgets": ("pretrain digits --images 100 --flops 1e9", "give one of --images and --flops, not 2"),
    "too few images": ("pretrain digits --images 3 --batch 4", "--images 3 is less than one step"),
    "plan: an unknown GPU": ("plan digits --gpu H10", "did you mean H100?"),
    "plan: an odd share": ("plan digits --utilisation 2", "--utilisation 2.0 must be above 0, at most 1"),
    "plan: a folder": ("plan digits --out x", "No such option '--out'"),
    "--guard -1": ("pretrain digits --guard -1", "--guard -1 must be 0 or more"),
    "resume: with --out": ("pretrain --resume {run} --out x", "--out has no effect here"),
    # encoders
    "k larger than the bank": ("evaluate knn {run} --data {labelled} --k 5000", "--k 5000 must be between 1 and"),
    "k is 0": ("evaluate knn {run} --k 0", "0 must be 1 or more"),
    "no labels": ("evaluate knn {run} --data {flat}", "knn needs labels of at least two classes"),
    "encoder is nowhere": ("evaluate knn {top}/nowhere --data digits", "no encoder at"),
    "encoder is no tensors": ("embed {words} digits", "is not a readable safetensors file"),
    "embed: --out below a file": ("embed {run} digits --split val --out {file}/x.parquet", "cannot be written"),
    "report: no run": ("report {no_run}", "has no config.json"),
    "report: missing": ("report {top}/nowhere", "is not a folder"),
    "inspect: sheet of an unknown kind": ("inspect digits --sheet x.xyz", "does not end in .png"),
    "positions of checkpoints": (
        "evaluate health {run} --checkpoints --positions plain",
        "says its own rule for positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_WORDS)
def test_a_mistake_ends_with_one_clear_line_and_exit_code_2(
    name: str, indices: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = BAD_WORDS[name]
    ended = call(capsys, *(word.format_map(indices) for word in words.split(" ")))
    assert ended.err.startswith("simdino: ")
    assert message.format_map(indices) in ended.err
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_minutes_for_no_step_are_told_in_one_line_after_the_probe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = call(capsys, "pretrain", "digits", "--minutes", "0.001", "--out", str(tmp_path / "short"))
    probed, line = ended.err.splitlines()
    assert (ended.code, probed.split()[0]) == (2, "timing")
    assert line.startswith("simdino: --minutes 0.001 is too short here")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["pretrain --resume {odd_config}", "embed {run}"])
def test_the_same_holds_for_python_m_simdino(words: str, indices: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "simdino", *words.format_map(indices).split(" ")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr.startswith("simdino: ")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


def test_a_full_disk_ends_with_one_line_and_exit_code_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("simdino.show.report.write_report", full)
    ended = call(capsys, "report", run)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"simdino: [Errno 28] No space left on device: '{tmp_path}'\n"


def test_scores_are_kept_in_the_run_and_printed_even_where_it_cannot_be_written_to(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "evaluations.jsonl").unlink(missing_ok=True)
    words = ["evaluate", "knn", copy, "--no-baselines"]
    ended = call(capsys, *words)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads((copy / "evaluations.jsonl").read_text())["data"] == "digits"
    (copy / "evaluations.jsonl").unlink()
    (copy / "evaluations.jsonl").mkdir()
    again = call(capsys, *words)
    assert (again.code, again.out) == (0, ended.out)
    assert again.err == f"the scores are not kept: {copy}/evaluations.jsonl cannot be written: Is a directory\n"


WITHOUT_EFFECT = {
    "--gamma released --rho 2": "--rho has no effect with --gamma released",
    "--gamma 0.5 --rho 2": "--rho has no effect with --gamma 0.5",
    "--evaluate-every 1 --checkpoint-every 2": "--checkpoint-every has no effect: each evaluation (every 1 steps)",
    "--batch 32 --micro-batch 32": "--micro-batch has no effect: the batch of 32 is no larger",
    "--guard 2": "--guard has no effect without --init",
    "--parallel fsdp": "--parallel fsdp has no effect: one process holds everything anyway",
    "--set optim.cooldown=0.5": "optim.cooldown has no effect with --schedule cosine: that must be wsd",
    "--schedule wsd --set optim.final_weight_decay=0.1": "optim.final_weight_decay has no effect with --schedule wsd",
    "--batch 64 --scope shards": "--scope shards has no effect: the batch of 64 is one shard",
}


@pytest.mark.parametrize("words", WITHOUT_EFFECT)
def test_an_option_without_effect_is_named_in_one_line(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("simdino.pretraining"), "pretrain", lambda *_, **__: sys.exit(0))
    ended = call(capsys, "pretrain", "digits", *TINY, *words.split(), "--out", tmp_path / "run")
    said = [line for line in ended.err.splitlines() if "no effect" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: " + WITHOUT_EFFECT[words])


def test_options_with_an_effect_are_not_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("simdino.pretraining"), "pretrain", lambda *_, **__: sys.exit(0))
    words = "--rho 2 --scope shards --batch 128 --micro-batch 64 --checkpoint-every 3 --evaluate-every 5"
    assert "no effect" not in call(capsys, "pretrain", "digits", *words.split(), "--out", tmp_path / "run").err


def json_commands(run: Path, folder: Path) -> dict[str, list[object]]:
    return {
        "pretrain": ["pretrain", "digits", *TINY, "--out", folder / "run"],
        "resume": ["pretrain", "--resume", run],
        "evaluate": ["evaluate", "knn", run, "--no-baselines"],
        "health": ["evaluate", "health", run, "--images", 40, "--view-images", 8, "--views", 4],
        "checkpoints": ["evaluate", "health", run, "--checkpoints", "--images", 20, "--view-images", 4, "--views", 2],
        "attention": ["show", "attention", run, "digits", "--count", 2, "--out", folder / "attention"],
        "pca": ["show", "pca", run, "digits", "--count", 2, "--out", folder / "pca"],
        "masks": ["show", "masks", run, "digits", "--count", 1, "--size", 16, "--out", folder / "masks"],
        "neighbours": ["show", "neighbours", run, "digits", "--count", 2, "--out", folder / "neighbours"],
        "embed": ["embed", run, "digits", "--split", "val", "--out", folder / "features.parquet"],
        "inspect": ["inspect", "digits", "--sheet", folder / "sheet.png"],
        "report": ["report", run, "--out", folder / "page.html"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", json_commands(Path(), Path()))
def test_json_is_one_object_on_stdout_and_the_rest_on_stderr(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = call(capsys, *json_commands(run, tmp_path)[name], "--json")
    assert ended.code == 0, ended.err
    assert isinstance(json.loads(ended.out), dict)
    assert ended.out.count("\n") == 1


def test_of_several_processes_only_the_first_talks(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    ended = call(capsys, "inspect", "digits", "--json")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_first_sentence_of_each(name: str) -> None:
    assert COMMANDS[name][1].rstrip(".") == command(name).get_short_help_str(limit=1000).rstrip(".")


def test_the_list_of_commands_needs_none_of_them() -> None:
    code = (
        "import sys\nfrom simdino.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'simdino.config' not in sys.modules and 'simdino.cli.training' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout


def every_command() -> list[list[str]]:
    below = [*(["evaluate", name] for name in PROTOCOLS), *(["show", name] for name in PICTURES)]
    return [[], *([name] for name in COMMANDS), *below]


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_has_an_example_whose_words_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys, *words, "--help")
    assert ended.code == 0
    assert "Example: simdino " in ended.out
    example = " ".join(ended.out.split("Example: ")[1].split())
    first = command(example.split()[1])
    commands = [first, *getattr(first, "commands", {}).values()]
    if isinstance(first, CommandTable):
        commands += [first.get_command(click.Context(first), example.split()[2])]
    known = {option for one in commands for parameter in one.params for option in parameter.opts}
    assert {word for word in example.split() if word.startswith("--")} <= known


def test_help_and_typing_errors_answer_without_importing_torch() -> None:
    code = (
        "import sys\nfrom simdino.cli import main\nfrom simdino.evaluate import PROTOCOLS\n"
        "for words in (['--help'], ['pretrain', '--help'], ['pretrain', '--stps'], ['embed', '--help'],\n"
        "    *(['evaluate', name, '--help'] for name in PROTOCOLS), ['show', 'pca', '--help'],\n"
        "    ['evaluate', 'knn', 'run', '--temprature', '1']):\n"
        "    try: main(words)\n    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_names_every_command_with_its_whole_sentence(
    indices: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        ("--help", "Count, measure and check the images of DATA; show the recipe"),
        ("evaluate --help", "A linear head on frozen patch tokens that tells the class of each pixel: mIoU"),
    ):
        said = " ".join(call(capsys, *words.split()).out.split())
        assert sentence in said and "..." not in said.partition("Commands:")[2]
