"""A command with groups of options is, to its user, one with the same options written out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from psr_lens.apps.cli import app
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import ChatOptions, LoadingOptions, ResponseOptions

SourceArgument = Annotated[Path, typer.Argument(help="What to read.")]
NameOption = Annotated[str, typer.Option("--from", "-f", help="What it is called.")]
ShadeOption = Annotated[list[str] | None, typer.Option(help="A shade; repeatable.")]
LoudOption = Annotated[bool, typer.Option("--loud/--quiet", help="How it sounds.")]
CountOption = Annotated[int, typer.Option(help="How many.", min=1)]


@dataclass(frozen=True)
class SourceOptions:
    """An argument and an option without a default, and options with one."""

    source: SourceArgument
    name: NameOption
    shade: ShadeOption = None


@dataclass(frozen=True)
class SoundOptions:
    """Options with a default, and a rule about both."""

    loud: LoudOption = True
    count: CountOption = 3

    def __post_init__(self):
        if self.count > 5 and self.loud:
            raise typer.BadParameter("got too much noise", param_hint="--count")


@dataclass(frozen=True)
class MadeOptions:
    """A default that is made, and a field that is no option."""

    parts: Annotated[list[int], typer.Option(help="Parts.")] = field(default_factory=lambda: [1, 2])
    total: int = field(init=False, default=0)


GIVEN = []


def grouped(
    *, first: Annotated[str, typer.Option(help="The first.")] = "a", source: SourceOptions, last: int = 0, sound: SoundOptions
):
    """Do it."""
    GIVEN.append((first, source, last, sound))


def written_out(
    source: SourceArgument,
    name: NameOption,
    first: Annotated[str, typer.Option(help="The first.")] = "a",
    shade: ShadeOption = None,
    last: int = 0,
    loud: LoudOption = True,
    count: CountOption = 3,
):
    """Do it."""
    if count > 5 and loud:
        raise typer.BadParameter("got too much noise", param_hint="--count")
    GIVEN.append((first, SourceOptions(source, name, shade), last, SoundOptions(loud, count)))


def made(parts: MadeOptions):
    GIVEN.append(parts.parts)


def call(command, *arguments):
    """The exit code, the output, and what the command was called with."""
    GIVEN.clear()
    one = typer.Typer()
    one.command("it")(command)
    result = CliRunner().invoke(one, arguments, prog_name="it", env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output, list(GIVEN)


ARGUMENTS = [
    ("x", "--from", "y"),
    ("x", "-f", "y", "--shade", "red", "--shade", "blue", "--quiet", "--count", "9", "--last", "4", "--first", "b"),
    ("x",),
    ("--from", "y"),
    ("x", "--from", "y", "--count", "0"),
    ("x", "--from", "y", "--count", "many"),
    ("x", "--from", "y", "--count", "6"),
    ("x", "--from", "y", "--cuont", "2"),
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_values_defaults_and_errors_are_those_of_the_options_written_out(arguments):
    assert call(flat_options(grouped), *arguments) == call(written_out, *arguments)


def test_values_reach_the_fields_of_their_groups():
    of_source, of_sound = SourceOptions(Path("x"), "y"), SoundOptions(True, 3)
    assert call(flat_options(grouped), *ARGUMENTS[0]) == (0, "", [("a", of_source, 0, of_sound)])
    of_source, of_sound = SourceOptions(Path("x"), "y", ["red", "blue"]), SoundOptions(False, 9)
    assert call(flat_options(grouped), *ARGUMENTS[1]) == (0, "", [("b", of_source, 4, of_sound)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ARGUMENTS[2], "Missing option '--from' / '-f'."),
        (ARGUMENTS[3], "Missing argument"),
        (ARGUMENTS[4], "Invalid value for '--count': "),
        (ARGUMENTS[6], "Invalid value for --count: got too much noise"),
    ],
)
def test_an_invalid_group_is_reported_as_typer_reports_an_invalid_value(arguments, message):
    code, output, given = call(flat_options(grouped), *arguments)
    assert (code, given) == (2, [])
    assert output.startswith("Usage: it [OPTIONS]")
    assert message in output


def test_help_shows_the_fields_in_the_places_of_their_groups():
    code, output, _ = call(flat_options(grouped), "--help")
    shown = [
        output.index(each)
        for each in ("What to read.", "The first.", "What it is called.", "A shade", "--last", "--loud", "How many.")
    ]
    assert (code, shown) == (0, sorted(shown))
    assert "Do it." in output
    plain = call(written_out, "--help")[1]
    assert sorted(output.splitlines()) == sorted(
        plain.splitlines()
    )  # its order is that of Python: `--from` goes before what has a default


def test_a_default_may_be_made_and_a_field_may_be_no_option():
    assert call(flat_options(made)) == (0, "", [[1, 2]])
    assert call(flat_options(made), "--parts", "7") == (0, "", [[7]])
    assert call(flat_options(made), "--total", "7")[0] == 2


def test_two_options_of_one_name_are_refused_where_the_command_is_defined():
    def of_groups(sound: SoundOptions, again: SoundOptions): ...

    def beside_a_group(count: int, sound: SoundOptions): ...

    for command, name in ((of_groups, "loud"), (beside_a_group, "count")):
        with pytest.raises(TypeError, match=f"^{command.__name__}: got two options with the name '{name}', expected one$"):
            flat_options(command)


def test_a_default_of_a_whole_group_is_refused_where_the_command_is_defined():
    def louder(sound: SoundOptions = SoundOptions(count=4)): ...

    with pytest.raises(TypeError, match=r"^louder: got a default for the group 'sound', expected defaults of its fields alone$"):
        flat_options(louder)


def test_commands_list_options_that_belong_together_side_by_side():
    commands = typer.main.get_command(app).commands
    together = {ResponseOptions: ["fit", "transfer", "capture"], ChatOptions: ["run", "play", "generate"], LoadingOptions: ["play"]}
    for group, names in together.items():
        wanted = list(group.__dataclass_fields__)
        for name in names:
            options = [option.name for option in commands[name].params]
            begin = options.index(wanted[0])
            assert options[begin : begin + len(wanted)] == wanted, name
