"""Print pip's constraints for the lowest versions that `pyproject.toml` allows: `make test-lowest` runs on them."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
    if bound := re.match(r"([\w-]+)>=([\w.]+)", requirement):
        print("==".join(bound.groups()))
