"""Check that pip finds a wheel of every dependency, pinned by constraints.txt, for every Python of `requires-python`.

    python .ci/wheels.py

Nothing is installed. pydensecrf2 is left out: it comes as source alone.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE_ALONE = {"crf"}


def main() -> int:
    """The exit status: 0 where every Python has its wheels."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [one for name in extras.keys() - SOURCE_ALONE for one in extras[name]]
    first, last = map(int, re.findall(r"3\.(\d+)", project["requires-python"]))
    missing = 0
    for minor in range(first, last):
        with tempfile.TemporaryDirectory() as nowhere:
            options = ["--dry-run", "--quiet", "--only-binary", ":all:", "--python-version", f"3.{minor}"]
            pins = ["--target", nowhere, "--constraint", str(ROOT / "constraints.txt")]
            command = [sys.executable, "-m", "pip", "install", *options, *pins, *wanted]
            found = subprocess.run(command, check=False, capture_output=True, text=True)
        print(f"Python 3.{minor}: {'every wheel is there' if found.returncode == 0 else found.stderr}", flush=True)
        missing += found.returncode != 0
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
