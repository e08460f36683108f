"""Runs that go on from weights which were given (`--init`): what these score before training, whether the guard stops
the run, and whether training paid. All of it is read from the rows of metrics.jsonl, so that a run that is resumed
decides as one that never stopped."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simdino.config import RunConfig
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
    """Return the verdict on a run; on one from given weights, with what training paid and with what the guard did.

    own_after: the step after which its encoders were its own, see `RunMetadata.own_after`."""
    own = [row for row in rows if row.get("knn") is None or row["step"] == 0 or row["step"] > own_after]
    verdict = judge(own, method)
    if run.init is None:
        return verdict
    paid, why = gain(own, kept=own_after < 0), guard_stop(rows, run, method)
    if why is not None:
        status, sentence = "stopped by the guard", f"Stopped by the guard: {why}. Lower --lr or --layer-decay."
        return Verdict(status=status, sentence=f"{sentence}{paid}")
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
