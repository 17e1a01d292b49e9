"""The commands by name: the module of one is imported when it is called, not for the help of all."""

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup


class Command(NamedTuple):
    """A command, as the help of all lists it."""

    panel: str
    """Its panel there."""
    function: str
    """Module and function in `fieldmark.cli.commands`, as `data.check`; the command has the function's name."""
    summary: str
    """One line."""
    examples: tuple[str, ...]
    """Command lines without `fieldmark`, for the end of its own help."""

    @property
    def name(self) -> str:
        return self.function.split(".")[1]


@functools.cache
def build_command(command: Command) -> Any:
    """Import the function and make a command of its parameters."""
    module, name = command.function.split(".")
    function = getattr(import_module(f"fieldmark.cli.commands.{module}"), name)
    app = typer.Typer(rich_markup_mode="rich", add_completion=False)
    lines = ["Examples:", *(f"  [bold]fieldmark {escape(example)}[/bold]" for example in command.examples)]
    app.command(command.name, short_help=command.summary, epilog="\n".join(lines))(function)
    return typer.main.get_command(app)


class LazyGroup(TyperGroup):
    """A group whose `commands` are names and summaries; `get_command` builds the command itself."""

    entries: ClassVar[Sequence[Command]] = ()
    """The commands, which a subclass names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.by_name = {entry.name: entry for entry in self.entries}
        for name, entry in self.by_name.items():
            self.add_command(TyperCommand(name, short_help=entry.summary, rich_help_panel=entry.panel))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, which is imported now; None if there is none."""
        entry = self.by_name.get(cmd_name)
        return None if entry is None else build_command(entry)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of all: of each command the summary."""
        overview = TyperGroup(
            name=self.name,
            commands=dict(self.commands),
            params=self.params,
            help=self.help,
            epilog=self.epilog,
            rich_markup_mode=self.rich_markup_mode,
        )
        overview.format_help(ctx, formatter)
