"""Print the oldest version of every dependency that pyproject.toml allows, as pip's requirements: `torch>=2.9` is the
newest patch of 2.9.

    python .ci/oldest.py
"""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

for one in PROJECT["dependencies"]:
    name, floor = re.fullmatch(r"([\w-]+)>=([\d.]+)", one).groups()
    print(f"{name}=={floor}.*")
