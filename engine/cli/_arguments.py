"""The command line's grammar: the fixed commands, and the options a predictor's signature adds to them.

Words are parsed twice. The first parser knows the commands and stops at the tag; the second one is made for the
predictor that was found, and reads what follows. Nothing is abbreviated, so that an option added to a predictor never
changes what a script meant. Nothing here runs a predictor or prints.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs

from engine._errors import printable, quote
from engine._predictors.parameter import Parameter
from engine.cli import _values
from engine.cli._show import text_of
from engine.cli._values import UnreadableError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Mapping, Sequence

    from engine._predictors.profile import Profile

RESERVED: Final = ("help", "inputs", "json", "runner")  # options of `create` and `stream` themselves
_RESERVED_BY_BENCH: Final = ("concurrency", "help", "html", "inputs", "json", "n", "runner")

_SHORT: Final = 100  # characters of a default that still fit a line

_VALUES: Final = """\
how text becomes a value:
  By the type of the input: numbers, true/false, the value or name of an enum, JSON for lists and mappings; text where
  the type is str; JSON if it parses, else text, where there is no type. @FILE gives what the file holds: its bytes for
  bytes, its text for str, else its JSON. @@TEXT is the text @TEXT. A later value replaces an earlier one.
"""
_CLASHES: Final = """\
inputs called {names} or {last}:
  These names are taken by options: give such an input as -i NAME=VALUE, which works for every input.
"""
_MEASURED: Final = """\
what is measured:
  For each runner: the first call, with set-up and whatever had to be started or imported for it; after it, by the
  clock of the reader of the partials, the time to the first partial, the gaps between partials, the whole call, and
  the calls a second. Runners take turns, in nine rounds or as many as there are calls for, and garbage is collected
  before each. Without --n it is two seconds of calls, 20,000 at most and nine at least. What fails at first ends the
  command; a later call that fails has no times, but is counted, and its error is told with status 1 in the end.
  Ctrl-C ends it early, and shows what was measured so far.

runners:
  Without --runner: the predictor's default place, thread and process, each once. The default is inline, or the loop of
  the engine for an async predictor, where thread would be the same place; an author's own choice counts. What cannot
  be carried to a worker is left out and named. Set-up that runners share is in the first call of the first of them.
  There are as many workers as processors: with more calls at one time, the others wait, which is measured as well.

files:
  --json writes one document: its format number, versions, processor and counts; for each runner the spreads (median,
  quartiles as low and high, count) of first, gap, total and rate, and for each round the numbers themselves, a number
  a call. Times are in seconds. --html writes a page that needs nothing else. With - for either, there is no table.
"""
_EXITS: Final = """\
exit status:
  0 done, 1 the prediction failed, 2 usage (unknown tag, bad input, bad option), 130 interrupted,
  141 the output has no reader any more. Results go to stdout, everything else to stderr.
"""


def _reserved(command: str | None) -> tuple[str, ...]:
    return _RESERVED_BY_BENCH if command == "bench" else RESERVED


def _clashes(command: str | None = None) -> str:
    *names, last = _reserved(command)
    return _CLASHES.format(names=", ".join(names), last=last)


class UsageError(Exception):
    """Raised when the command line cannot be followed; the text is for its author."""


class Finished(Exception):  # noqa: N818 - no error: an answer
    """Raised when a parser has the answer itself, as for `--help` and `--version`; its text is that answer."""


class _Parser(argparse.ArgumentParser):
    """argparse without abbreviations, which raises where argparse would print and leave the process."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` shows what there is)")

    def print_help(self, file: object = None) -> NoReturn:  # noqa: ARG002 - argparse's own
        raise Finished(self.format_help())

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Name the first word that has no meaning, and the option it may have been meant for."""
        from difflib import get_close_matches

        word = next((each for each in words if each.startswith("-")), words[0]).partition("=")[0]
        if not word.startswith("-"):
            self.error(f"{quote(word)} is one word too many")
        near = get_close_matches(word, self._option_string_actions, 1)
        self.error(f"there is no option {quote(word)}{f'; did you mean {near[0]}?' if near else ''}")


class _Version(argparse.Action):
    """Gives the installed version, which is looked up only then."""

    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("predictor-engine")
        except PackageNotFoundError:  # the package was copied, not installed
            found = "of unknown version"
        raise Finished(f"engine {found}\n")


# The fixed part


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command and, up to its tag, its options; what follows the tag stays in `rest`.

    Raises:
        UsageError: the words have no meaning.
        Finished: they asked for help or the version.
    """
    parser, commands = _commands()
    found, unknown = parser.parse_known_args(words)
    if unknown:
        commands.get(found.command, parser).refuse(unknown)
    return found


def _commands() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="engine",
        description="Runs predictors that are installed, and shows what they produce.",
        epilog=f"{_clashes()}\n{_EXITS}",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    added = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    commands: dict[str, _Parser] = {}
    for name, text in (("list", "list the predictors there are"), ("show", "show a predictor's inputs and options")):
        commands[name] = added.add_parser(name, help=text, description=f"{text.capitalize()}.")
        commands[name].add_argument("--json", action="store_true", help="print JSON, one document a line")
    commands["show"].add_argument("tag", metavar="TAG", help="@owner/name; the @ may be left out")
    for name, text in (
        ("create", "run a predictor and print its result"),
        ("stream", "run a predictor and print every partial as it is produced"),
        ("bench", "measure a predictor, wherever it can run"),
    ):
        commands[name] = added.add_parser(
            name,
            usage=f"engine {name} [options] TAG [--INPUT VALUE ...]",
            help=text,
            description=f"{text.capitalize()}. `engine {name} TAG --help` shows the predictor's own options.",
            epilog=f"{_MEASURED if name == 'bench' else ''}\n{_VALUES}\n{_clashes(name)}\n{_EXITS}".lstrip(),
        )
        _add_run_options(commands[name], name)
        commands[name].add_argument("tag", metavar="TAG", help="@owner/name; the @ may be left out")
        commands[name].add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser, commands


def _add_run_options(parser: argparse._ActionsContainer, command: str) -> None:
    """The options that commands take before and behind the tag; a default would undo what stood before it."""
    absent = argparse.SUPPRESS
    parser.add_argument(
        "-i",
        action=_Given,
        dest="given",
        default=absent,
        metavar="NAME=VALUE",
        help="give an input, whatever it is called; NAME=@FILE gives what a file holds",
    )
    parser.add_argument(
        "--inputs",
        default=absent,
        metavar="JSON",
        help="give inputs as one JSON object, as @FILE, or as - for stdin; single inputs go before it",
    )
    is_bench = command == "bench"
    parser.add_argument(
        "--runner",
        action="append" if is_bench else "store",
        default=absent,
        metavar="NAME",
        help=f"where it runs: inline, thread, process, or a plugin's{'; may be given several times' * is_bench}",
    )
    if is_bench:
        _add_bench_options(parser)
        return
    parser.add_argument(
        "--json",
        action="store_true",
        default=absent,
        help="print a JSON document a line, the last of which has the event done or error",
    )


def _add_bench_options(parser: argparse._ActionsContainer) -> None:
    for name, word, text in (
        ("--n", "N", "calls for each runner; by default as many as take about two seconds"),
        ("--concurrency", "C", "calls at one time, each read by a thread of its own; default 1"),
        ("--json", "FILE", "write all that was measured as one JSON document; - is stdout"),
        ("--html", "FILE", "write a page with drawings; - is stdout"),
    ):
        parser.add_argument(name, default=argparse.SUPPRESS, metavar=word, help=text)


class _Given(argparse.Action):
    """Collects inputs in the order they are written, as `(name, text)`; made new each time, never shared."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.given = [*getattr(namespace, "given", ()), self.pair(parser, values, option_string)]

    def pair(self, parser: argparse.ArgumentParser, text: Any, _option: str | None) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            parser.error(f"-i takes NAME=VALUE, not {quote(text)}")
        return name, value


class _GivenByName(_Given):
    """Collects the value of an option made of a parameter."""

    def pair(self, _parser: argparse.ArgumentParser, text: Any, _option: str | None) -> tuple[str, str]:
        return self.dest, text


class _GivenAsFlag(_Given):
    """Collects the value of an option made of a `bool`: `--name`, `--no-name` or `--name VALUE`."""

    def pair(self, parser: argparse.ArgumentParser, text: Any, option: str | None) -> tuple[str, str]:
        if option == _negative(self.dest):
            if text is not None:
                parser.error(f"{option} takes no value, and {quote(text)} follows it")
            return self.dest, "false"
        return self.dest, "true" if text is None else text


# The predictor's part


def option_of(name: str) -> str:
    """The option of a parameter: `max_tokens` gives `--max-tokens`; its own spelling is understood too."""
    return f"--{name}" if name.startswith("_") else f"--{name.replace('_', '-').rstrip('-')}"


def _negative(name: str) -> str:
    return f"--no-{option_of(name)[2:]}"


def inputs_of(asked: argparse.Namespace, profile: Profile) -> tuple[dict[str, Any], argparse.Namespace]:
    """Read what follows the tag, and turn it into inputs.

    Args:
        asked: what the first parser found.
        profile: the predictor's.

    Returns:
        The inputs, and the options of the command, wherever they stood.

    Raises:
        UsageError: the words have no meaning, or a value does not convert; every such value is named.
        Finished: they asked for help.
    """
    parser, valued = _parser_of(asked.command, profile)
    found, unknown = parser.parse_known_args(_joined(asked.rest, valued), asked)
    if unknown:
        parser.refuse(unknown)
    parameters = {each.name: each for each in profile.signature.parameters if each.kind != "var-keyword"}
    inputs = _mapping(getattr(found, "inputs", None))
    values = {name: _fitted(parameters.get(name), value) for name, value in inputs.items()}
    values |= _converted(getattr(found, "given", ()), profile.signature.parameters)
    return values, found


def _parser_of(command: str, profile: Profile) -> tuple[_Parser, set[str]]:
    """The parser of what follows the tag, and those of its options that a value has to follow."""
    parser = _Parser(
        prog=f"engine {command} {profile.tag}",
        usage=f"engine {command} {profile.tag} [options]",
        description=_plain(profile.description),
        epilog=_epilog(profile, _reserved(command)),
        add_help=False,
    )
    group = parser.add_argument_group("inputs")
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this and exit")
    _add_run_options(options, command)
    valued = {f"--{each}" for each in _reserved(command)} - {"--help"} - (set() if command == "bench" else {"--json"})
    strings = _strings(profile.signature.parameters, _reserved(command))
    for parameter in profile.signature.parameters:
        if strings.get(parameter.name):
            valued |= _add_input(group, parameter, strings[parameter.name])
    return parser, valued


def _strings(parameters: Iterable[Parameter], reserved: Iterable[str]) -> dict[str, list[str]]:
    """The option strings of each parameter; one that several could have goes to the parameter it spells exactly."""
    named = [each for each in parameters if each.kind != "var-keyword"]
    taken = {f"--{name}" for name in reserved}
    strings: dict[str, list[str]] = {each.name: [] for each in named}

    def claim(name: str, string: str) -> None:
        if string not in taken:
            taken.add(string)
            strings[name].append(string)

    for each in named:
        claim(each.name, f"--{each.name}")
    for each in named:
        claim(each.name, option_of(each.name))
    for each in named:
        if _values.is_flag(each) and strings[each.name]:
            claim(each.name, _negative(each.name))
    return strings


def _add_input(group: argparse._ActionsContainer, parameter: Parameter, strings: list[str]) -> set[str]:
    """Add the options of one parameter, and give those a value has to follow; help shows one spelling."""
    is_flag = _values.is_flag(parameter)
    best = option_of(parameter.name) if option_of(parameter.name) in strings else strings[0]
    shown = [best, *(each for each in strings if is_flag and each == _negative(parameter.name))]
    about = _about(parameter).replace("%", "%%")  # argparse would fill it in
    other = [each for each in strings if each not in shown]
    for some, told in ((shown, about), (other, argparse.SUPPRESS)):
        if some:
            group.add_argument(
                *some,
                action=_GivenAsFlag if is_flag else _GivenByName,
                nargs="?" if is_flag else None,
                dest=parameter.name,
                default=argparse.SUPPRESS,
                metavar="BOOL" if is_flag else "VALUE",
                help=told,
            )
    return set() if is_flag else set(strings)


def default_text(parameter: Parameter) -> str:
    """A parameter's default as one would write it, where that is short."""
    shown = quote(parameter.default)
    return printable(text_of(parameter.default)) if len(shown) < _SHORT else shown


def _about(parameter: Parameter) -> str:
    facts = parameter.expects
    if parameter.required:
        facts += ", required"
    elif parameter.kind != "var-positional":
        facts += f", default {default_text(parameter)}"
    return printable(f"{parameter.description}  [{facts}]" if parameter.description else f"[{facts}]")


def _epilog(profile: Profile, reserved: Iterable[str]) -> str:
    parameters = profile.signature.parameters
    rest = [each.name for each in parameters if each.kind == "var-keyword"]
    hidden = [each for each in parameters if each.name in reserved and each.kind != "var-keyword"]
    texts = [f"-i {each.name}=VALUE\n  an input whose name is that of an option  {_about(each)}" for each in hidden]
    if rest or not profile.signature.readable:
        texts.append("-i NAME=VALUE\n  any other input")
    return _plain("\n".join([*texts, "", _VALUES]))


def _plain(text: str) -> str:
    """`text` with nothing a terminal would obey, and nothing argparse would fill in."""
    text = printable(text)
    return text.replace("%", "%%") if "%(prog)" in text else text


def _joined(words: Sequence[str], valued: set[str]) -> list[str]:
    """Tie `--name -3` and `--name -x` together: argparse would take such a value for an option.

    What begins with `--`, or is an option of one letter, is left as it is: more likely the value was left out there.
    """
    joined: list[str] = []
    for word in words:
        is_dashed = len(word) > 1 and word[0] == "-" and word[1] not in "-ih"
        if is_dashed and joined and joined[-1] in valued:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


# Values


def _mapping(text: str | None) -> dict[str, Any]:
    """What `--inputs` gives."""
    if text is None:
        return {}
    try:
        found = _values.json_of(_read_stdin() if text == "-" else _text_of(text))
    except UnreadableError as error:
        raise UsageError(f"--inputs: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f'--inputs must be one JSON object such as {{"name": "value"}}, not {quote(found)}')
    return found


def _text_of(text: str) -> str:
    return _values.text_in(text[1:]) if text.startswith("@") else text


def _read_stdin() -> str:
    import sys

    stdin: io.TextIOBase | Any = sys.stdin
    if stdin is None:
        raise UnreadableError("there is no stdin to read")
    try:
        return str(stdin.read())
    except UnicodeDecodeError as error:
        raise UnreadableError(f"stdin is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UnreadableError(f"stdin cannot be read ({error.strerror})") from None


def _fitted(parameter: Parameter | None, value: Any) -> Any:
    return value if parameter is None else _values.value_of_json(parameter, value)


def _converted(given: Iterable[tuple[str, str]], parameters: Iterable[Parameter]) -> Mapping[str, Any]:
    named = {each.name: each for each in parameters if each.kind != "var-keyword"}
    rest = next((each for each in parameters if each.kind == "var-keyword"), None)
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, text in dict(given).items():
        try:
            values[name] = _value(name, text, named.get(name, rest))
        except UnreadableError as error:
            problems[name] = str(error)
    if problems:
        raise UsageError("; ".join(problems.values()))
    return values


def _value(name: str, text: str, parameter: Parameter | None) -> Any:
    """An input that is not declared is read too: the engine refuses it, with the names it may have been meant for."""
    wanted = Parameter(name, "keyword-only") if parameter is None else attrs.evolve(parameter, name=name)
    return _values.value_of(wanted, text)
