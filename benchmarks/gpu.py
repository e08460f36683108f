"""Everything that needs a GPU, in one command of less than eight minutes on an H200, the most important first.

    python benchmarks/gpu.py --data imagenette128.zip
    python benchmarks/gpu.py --data imagenette128.zip --out "$OUT" --parts checks step
    python benchmarks/gpu.py --device cpu --toy --out gpu-toy            # the same at toy size, anywhere

It runs from a bare checkout: nothing of it is installed, and a part whose packages are missing says so in a line. Each
part writes gpu_PART.json in --out as it ends; called again, a part whose file is whole is not run again (--again).

checks: every check of tests/gpu. step: seconds, images/s and MFU of the step of ViT-S/16 and ViT-B/16 with 2 x 224 +
8 x 96 px, eager and compiled, bfloat16; MFU is the operations of `step.forward_operations` a second over the dense
bfloat16 rate of the GPU's data sheet. views: images/s of the photometric half on the device. end_to_end: data alone,
step alone, and `pretrain` with workers, with its data wait. imagenette: 128 px for as long as is left, then k-NN.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
for folder in ("benchmarks", "tests/gpu", "src"):
    sys.path.insert(0, str(ROOT / folder))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])  # of workers

KNN_SECONDS = 45  # kept at the end for scoring
SHAPES = {"vit_small": ("small", 256), "vit_base": ("base", 128)}  # name in step.py, images


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the parts are told."""

    data: str
    device: str
    toy: bool
    out: Path
    until: float  # of time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


Save = Callable[[dict[str, Any]], None]
Part = Callable[[Setting, Save], dict[str, Any]]


def checks(setting: Setting, save: Save) -> dict[str, Any]:
    """Each check's seconds, or what it found."""
    from checks import CHECKS, SLOW_ON_A_CPU

    rows: dict[str, Any] = {}
    for name, check in CHECKS.items():
        if setting.toy and name in SLOW_ON_A_CPU:
            continue
        started = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                check(setting.device, Path(folder))
            rows[name] = {"passed": True, "seconds": time.perf_counter() - started}
        except Exception as error:  # one check that fails must not hide the others
            rows[name] = {"passed": False, "error": last_line(error), "where": traceback.format_exc()[-1500:]}
        print(f"  {name}: {'passed' if rows[name]['passed'] else rows[name]['error']}", flush=True)
        save({"checks": rows})
    return {"checks": rows, "failed": [name for name, row in rows.items() if not row["passed"]]}


def steps(setting: Setting, save: Save) -> dict[str, Any]:
    """Steps of ViT-S and ViT-B, eager and then compiled."""
    import torch
    from step import SHAPES as OF_STEP
    from step import forward_operations, ours

    rows: list[dict[str, Any]] = []
    peak = peak_rate(setting)
    OF_STEP["toy"] = {"width": 64, "depth": 2, "heads": 2, "size": 32, "local": 16, "locals": 2, "patch": 8}
    shapes = {"toy": ("toy", 8)} if setting.toy else SHAPES
    for compiled in (False,) if setting.toy else (False, True):
        for encoder, (shape, batch) in shapes.items():
            started = time.perf_counter()
            run = ours(OF_STEP[shape], batch, precision="bfloat16", device=setting.device, compiled=compiled)
            for _ in range(3):
                run()
            setting.wait()
            warm, seconds = time.perf_counter() - started, []
            for _ in range(3 if setting.toy else 15):
                started = time.perf_counter()
                run()
                setting.wait()
                seconds.append(time.perf_counter() - started)
            rate = forward_operations(OF_STEP[shape]) * batch / median(seconds)
            rows.append({
                "encoder": encoder, "batch": batch, "compiled": compiled, "seconds": median(seconds),
                "slowest": max(seconds), "warm_up_seconds": warm, "images_per_second": batch / median(seconds),
                "operations_per_second": rate, "mfu": rate / peak if peak else None,
                "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if peak else None,
            })  # fmt: skip
            print(f"  {rows[-1]}", flush=True)
            save({"rows": rows})
            del run
            if setting.device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return {"rows": rows}


def peak_rate(setting: Setting) -> float | None:
    """Dense bfloat16 operations a second of the GPU by its data sheet; None for one that is not listed, and a CPU."""
    from simdino.peaks import peak_of

    peak = peak_of(setting.device, "bfloat16") if setting.device.startswith("cuda") else None
    return peak and peak.flops


def views(setting: Setting, save: Save) -> dict[str, Any]:
    """The photometric half on the device: uint8 crops there already, and brought there from memory."""
    import numpy as np
    import torch

    from simdino.config import ViewsConfig
    from simdino.data.photometric import photometric
    from simdino.rng import sample_keys

    batch, sizes = (8, {2: 32, 4: 16}) if setting.toy else (256, {2: 224, 8: 96})
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(batch)))
    crops = {
        count: torch.randint(0, 256, (count, batch, 3, size, size), dtype=torch.uint8) for count, size in sizes.items()
    }
    if setting.device.startswith("cuda"):
        crops = {count: crop.pin_memory() for count, crop in crops.items()}
    there = {count: crop.to(setting.device) for count, crop in crops.items()}
    law = {"config": ViewsConfig(), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    rows = {}
    for name, given in (("crops on the device", there), ("crops in memory", crops)):
        seconds = []
        for _ in range(3 if setting.toy else 12):
            started = time.perf_counter()
            for count, crop in given.items():
                on_device = crop.to(setting.device, non_blocking=True)
                photometric(on_device, keys, first=0 if count == 2 else 2, **law)
            setting.wait()
            seconds.append(time.perf_counter() - started)
        rows[name] = {"batch": batch, "seconds": median(seconds), "images_per_second": batch / median(seconds)}
        print(f"  {name}: {rows[name]}", flush=True)
    return {"rows": rows}


def end_to_end(setting: Setting, save: Save) -> dict[str, Any]:
    """Data alone, step alone, and a run with its data wait, at the sizes of ImageNet."""
    from end_to_end import WARM, data_alone, step_alone

    import simdino as sd
    from simdino.assembly import build
    from simdino.options import Options
    from simdino.recipes import resolve
    from simdino.saved import read_rows
    from simdino.train.parallel import Processes

    count = 12 if setting.toy else 60
    size = (
        {"encoder": "vit_pico", "batch": 32}
        if setting.toy
        else {"encoder": "vit_small", "batch": 256, "image_size": 224}
    )
    options = Options(device=setting.device, steps=count, evaluate_every=count, **size)
    config = resolve(setting.data, options)
    batch, parts = config.run.batch, build(config, Processes())
    batches, last = data_alone(parts, count, setting.wait)
    row: dict[str, Any] = {"batch": batch, "workers": config.speed.workers, "data_images_per_second": batch * batches}
    save({"row": row})
    row["step_images_per_second"] = batch * step_alone(parts, last, config, count, setting.wait)
    save({"row": row})
    del parts, last
    with tempfile.TemporaryDirectory() as folder:
        run = sd.pretrain(config, Path(folder) / "run", log=lambda _: None)
        rows = read_rows(run.folder / "speed.jsonl")
    first, end = next(found for found in rows if found["step"] > WARM), rows[-1]
    row["run_images_per_second"] = batch * (end["step"] - first["step"]) / (end["seconds"] - first["seconds"])
    row["data_wait"] = median(found["data_wait"] for found in rows)
    print(f"  {row}", flush=True)
    return {"row": row, "config": config.as_dict()}


def imagenette(setting: Setting, save: Save) -> dict[str, Any]:
    """A run at 128 px for what is left, and k-NN of its encoder beside random weights and pixels."""
    import simdino as sd
    from simdino.options import Options
    from simdino.plan import plan

    seconds = setting.left - KNN_SECONDS
    if seconds < 15:
        raise TimeoutError(f"{max(0, setting.left):.0f} s are left: call again with --parts imagenette")
    toy = {"steps": 10, "encoder": "vit_pico", "batch": 32}
    options = Options(device=setting.device, **toy if setting.toy else {"minutes": seconds / 60, "image_size": 128})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run = sd.pretrain(plan(setting.data, options, out), out)
        found: dict[str, Any] = {
            "steps": run.config.run.steps, "summary": run.summary(), "verdict": run.verdict.sentence,
            "rows": run.rows[-5:], "config": run.config.as_dict(), "seconds": seconds,
        }  # fmt: skip
        save(found)
        found["knn"] = sd.evaluate.knn.run(out, setting.data, device=setting.device).as_dict()
    print(f"  {found['knn']}", flush=True)
    return found


PARTS: dict[str, Part] = {
    "checks": checks, "step": steps, "views": views, "end_to_end": end_to_end, "imagenette": imagenette,
}  # fmt: skip
"""The most important first."""


def last_line(error: BaseException) -> str:
    """An error's kind and the first line of its words."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def write(path: Path, found: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(found, indent=1, default=str))
    aside.replace(path)


def run_part(name: str, setting: Setting, *, again: bool) -> bool:
    """Run a part unless its file is whole; whether it is now."""
    path = setting.out / f"gpu_{name}.json"
    if path.is_file() and not again and json.loads(path.read_text()).get("whole"):
        print(f"{name}: in {path} already", flush=True)
        return True
    from simdino.runs.folder import machine, source_revision

    made = {"machine": machine(), "source_revision": source_revision(), "device": setting.device, "toy": setting.toy}
    print(f"{name}: {setting.left:.0f} s left", flush=True)
    started, found = time.perf_counter(), dict[str, Any]()

    def save(rows: dict[str, Any], **more: Any) -> None:
        found.update(rows)
        write(path, {**made, "seconds_taken": time.perf_counter() - started, **found, **more})

    try:
        rows = PARTS[name](setting, save)
    except ImportError as error:
        save({}, whole=False, error=f"needs a package that is not here: {error}")
        print(f"{name}: needs a package that is not here: {error}", flush=True)
        return False
    except Exception as error:  # the next part may work
        save({}, whole=False, error=last_line(error), where=traceback.format_exc()[-3000:])
        print(f"{name}: {last_line(error)}", flush=True)
        return False
    failed = rows.get("failed", [])
    save(rows, whole=not failed)
    print(f"{name}: {'failed ' + ', '.join(failed) if failed else 'done'}", flush=True)
    return not failed


def main() -> int:
    """The exit status: 0 where every part is whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="imagenette128.zip", help="of the last two parts; digits with --toy")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=7.5, help="in all; the last part takes what is left")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--toy", action="store_true", help="everything small, on digits: to try the script")
    parser.add_argument("--again", action="store_true", help="run parts whose files are whole too")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        data="digits" if given.toy else given.data, device=given.device, toy=given.toy, out=given.out,
        until=time.monotonic() + 60 * given.minutes,
    )  # fmt: skip
    whole = [run_part(name, setting, again=given.again) for name in PARTS if name in given.parts]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
