"""Runs that are measured by a score: by that of weights which were given (`--init`), what these score before training,
whether the guard stops the run, and whether training paid; by a mark (`--stop-below`), whether it is reached. All of it
is read from the rows of metrics.jsonl, so that a run that is resumed decides as one that never stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from simdino.config import RunConfig
from simdino.marks import METRICS, NEVER, read_marks
from simdino.methods.method import Method
from simdino.runs.verdict import Verdict, judge, standard_error

Row = dict[str, Any]
ALARMS = ("collapse", "over-expansion")
LEFT = 1.0  # points of k-NN under which nothing is left to gain


def advice(row: Row, run: RunConfig) -> list[str]:
    """Return what is known before step 1 of the weights that a run goes on from, for a person.

    row: their evaluation, with knn_random and feature_rank_random, those of the same encoder with random weights. That
    training pays cannot be told from scores before it; what can be told is what they leave to gain."""
    evaluated = (run.steps - 1) // run.evaluate_every  # before the last step, after which nothing is left to stop
    guard = f"in {run.guard} evaluations in a row" if 0 < run.guard <= evaluated else ""
    if row.get("knn") is None:
        lines = [
            f"given     effective rank {row['feature_rank']:.0f} with the weights in {run.init}, "
            f"{row['feature_rank_random']:.0f} with random weights of the same encoder",
            "given     There are no labels to score them by: a low rank would mean that images get nearly the same "
            "feature, a high one does not mean that training pays.",
        ]
        end = f"; the run stops when it collapses or over-expands {guard}" if guard else ""
        return [*lines, f"guard     Without labels no encoder can be called the best and none is kept as such{end}"]
    start, others = (
        row["knn"],
        {"random weights of the same encoder": row["knn_random"], "raw pixels": row["knn_pixels"]},
    )
    name, error = max(others, key=others.__getitem__), standard_error(row["knn"], row["queries"])
    if start <= others[name] + error:
        told = f"They are no better than {name} here: training has much to gain, perhaps no less from random weights."
    elif 100 - start <= max(LEFT, 2 * error):
        told = f"They leave {100 - start:.1f} points to gain by this score: most likely they are best used as they are."
    else:
        told = f"They are {start - others[name]:.1f} points above {name}; whether training adds to that, it must show."
    end = f", and the run stops when k-NN is under {start - error:.1f} % {guard}" if guard else ""
    return [
        f"given     k-NN {start:.1f} % with the weights in {run.init}; "
        + ", ".join(f"{score:.1f} % with {other}" for other, score in others.items()),
        f"given     {told}",
        f"guard     The score to beat is {start:.1f} %: encoder-best.safetensors is these weights until then{end}",
    ]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a run ends before its last step, and what lets it go on."""

    status: Literal["stopped by the guard", "stopped below a mark"]
    why: str
    cure: str
    option: str  # of `simdino pretrain --resume`

    def all_the_same(self, folder: object) -> str:
        """Return how the run in a folder goes on nevertheless."""
        return f"To go on all the same: simdino pretrain --resume {folder} {self.option}"


def early_stop(rows: Sequence[Row], run: RunConfig, method: Method) -> Stop | None:
    """Return what ends a run after the last of these rows, its guard or a mark; None where it goes on."""
    if (why := guard_stop(rows, run, method)) is not None:
        cure = "Lower --lr or --layer-decay."
        return Stop(status="stopped by the guard", why=why, cure=cure, option="--guard 0")
    if (why := mark_stop(rows, run)) is not None:
        cure = "Look at the verdicts of runs that were better, and begin again with other settings."
        return Stop(status="stopped below a mark", why=why, cure=cure, option=f"--stop-below {NEVER}")
    return None


def mark_stop(rows: Sequence[Row], run: RunConfig) -> str | None:
    """Return which mark a run has not reached, of those that these rows decide; None where it goes on. A mark is
    decided by the first evaluation from its step on; at its end a run is not stopped."""
    if not rows or rows[-1]["step"] >= run.steps:
        return None
    for mark in read_marks(run.stop_below):
        measured = (row for row in rows if row["step"] >= mark.step and row.get(mark.metric) is not None)
        first = next(measured, None)
        if first is not None and first[mark.metric] < mark.value:
            unit = " %" if mark.metric == "knn" else ""
            found = f"{METRICS[mark.metric]} was {first[mark.metric]:.1f}{unit} after step {first['step']}"
            return f"{found}, below the mark of {mark.value:g}{unit} at {mark.step}"
    return None


def guard_stop(rows: Sequence[Row], run: RunConfig, method: Method) -> str | None:
    """Return why the guard stops a run after the last of these rows; None where it goes on.

    The last `run.guard` evaluations must all be bad: with labels, k-NN more than a standard error below that of the
    given weights; without, a verdict of collapse or over-expansion on the rows until then."""
    guard, found = run.guard, [i for i, row in enumerate(rows) if "loss" not in row]
    if run.init is None or not guard or len(found) <= guard or rows[found[-1]]["step"] >= run.steps:
        return None
    first, last = rows[found[0]], found[-guard:]
    if first.get("knn") is None:
        names = [judge(rows[: i + 1], method).status for i in last]
        ill = all(name in ALARMS for name in names)
        return f"the features have shown {names[-1]} in {guard} evaluations in a row" if ill else None
    start, error = first["knn"], standard_error(first["knn"], first.get("queries"))
    if any(rows[i]["knn"] >= start - error for i in last):
        return None
    return (
        f"k-NN has been more than a standard error ({error:.1f}) below the {start:.1f} % of the given weights in "
        f"{guard} evaluations in a row"
    )


def conclude(rows: Sequence[Row], run: RunConfig, method: Method, *, own_after: int = 0) -> Verdict:
    """Return the verdict on a run, with what ended it early; on one from given weights, with what training paid.

    own_after: the step after which its encoders were its own, see `RunMetadata.own_after`."""
    own = [row for row in rows if row.get("knn") is None or row["step"] == 0 or row["step"] > own_after]
    verdict, stop = judge(own, method), early_stop(rows, run, method)
    paid = "" if run.init is None else gain(own, kept=own_after < 0)
    if stop is not None:
        sentence = f"{stop.status.capitalize()}: {stop.why}. {stop.cure}"
        verdict = Verdict(status=stop.status, sentence=sentence)
    return replace(verdict, sentence=f"{verdict.sentence}{paid}")


def gain(rows: Sequence[Row], *, kept: bool) -> str:
    """Return what training paid in k-NN over the given weights, as a sentence after a space; nothing without two
    scores.

    kept: whether encoder-best.safetensors may be those weights. The standard error is that of a difference between
    scores of different images; both are of the same ones, which makes it smaller in truth."""
    scores = [(row["step"], row["knn"]) for row in rows if row.get("knn") is not None]
    if len(scores) < 2:
        return ""
    queries = next((row["queries"] for row in rows if row.get("queries")), None)
    (_, start), (last, end) = scores[0], scores[-1]
    error = (standard_error(start, queries) ** 2 + standard_error(end, queries) ** 2) ** 0.5
    way = "above" if end >= start else "below"
    told = f"k-NN is {abs(end - start):.1f} points {way} the {start:.1f} % of the weights that were given"
    best, score = max(scores, key=lambda one: (one[1], -one[0]))
    if abs(end - start) <= error:
        told = f"Training made no difference that can be measured: {told}, within the standard error of {error:.1f}."
    else:
        told = f"Training paid: {told}." if end > start else f"Training did not pay: {told}."
    if best == scores[0][0]:
        return f" {told} Keep the weights that were given{'; encoder-best.safetensors holds them' * kept}."
    return f" {told}" + (
        "" if best == last else f" The best, {score:.1f} % after step {best}, is encoder-best.safetensors."
    )
