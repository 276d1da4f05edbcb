"""`psr-lens run` as a user calls it, and the settings of a quick run."""

import yaml
from typer.testing import CliRunner

from psr_lens.apps.cli import app

QUICK = {
    "A-PSR": {"regression_steps": 3},
    "joint": {"solver": "joint", "epochs": 3, "layers": 1, "batch_size": 4},
    "S-Const DiM": {"solver": "dim", "layers": 1},
}


def run(*arguments):
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def written(tmp_path, settings, name="given.yaml"):
    (tmp_path / name).write_text(yaml.safe_dump(settings, sort_keys=False))
    return tmp_path / name
