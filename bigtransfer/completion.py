"""What a shell needs to complete `bit`'s commands, flags and their values: a script made from the configurations. No torch here.

One idea for three shells: a command has words to choose from (flags, and of a flag with choices these); everything else is a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from bigtransfer import config
from bigtransfer.config.fields import Field

SHELLS = ("bash", "zsh", "fish")

_HOW = {
    "bash": 'eval "$(bit --completion bash)"     # a line for ~/.bashrc',
    "zsh": 'eval "$(bit --completion zsh)"      # a line for ~/.zshrc, after compinit',
    "fish": "bit --completion fish | source      # a line for ~/.config/fish/config.fish",
}


def script(shell: str, commands: Mapping[str, str], everywhere: Sequence[str]) -> str:
    """The script for one of `SHELLS`. commands: name -> what it does; everywhere: flags that every command takes."""
    made = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return f"# {_HOW[shell]}\n{made(commands, everywhere)}"


def _groups(commands: Iterable[str]) -> dict[str, list[str]]:
    """The commands of two words: first word -> the second ones."""
    found: dict[str, list[str]] = {}
    for first, second in (command.split() for command in commands if " " in command):
        found.setdefault(first, []).append(second)
    return found


def _first_words(commands: Mapping[str, str]) -> dict[str, str]:
    """What can be typed first -> what it does."""
    groups = {first: f"{first}: {', '.join(seconds)}" for first, seconds in _groups(commands).items()}
    return {command.split()[0]: groups.get(command.split()[0], summary) for command, summary in commands.items()}


def _flags(field: Field) -> list[str]:
    """What can be typed for a field."""
    if field.positional:
        return []
    return [field.flag, field.flag.replace("--", "--no-", 1)] if field.type is bool else [field.flag]


def _fields(command: str) -> list[Field]:
    return config.fields_of(config.of_command(command))


def _values(command: str) -> dict[str, str]:
    """Flag -> what it may be given, of those with choices, as words of a shell."""
    return {one.flag: " ".join(map(str, one.choices)) for one in _fields(command) if one.choices and not one.positional}


def _bash(commands: Mapping[str, str], everywhere: Sequence[str]) -> str:
    lines = [
        "_bit() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    COMPREPLY=($(compgen -W "{" ".join(_first_words(commands))} --help --version --completion" -- "$current"))',
        "    return",
        "  fi",
        '  local command="${COMP_WORDS[1]}"',
    ]
    for first, seconds in _groups(commands).items():
        lines += [
            f'  if [ "$command" = {first} ]; then',
            f'    if [ "$COMP_CWORD" -eq 2 ]; then COMPREPLY=($(compgen -W "{" ".join(seconds)}" -- "$current")); return; fi',
            '    command="$command ${COMP_WORDS[2]}"',
            "  fi",
        ]
    lines.append('  case "$command $previous" in')
    for command in commands:
        for flag, values in _values(command).items():
            lines.append(f'    "{command} {flag}") COMPREPLY=($(compgen -W "{values}" -- "$current")); return ;;')
    lines += [
        f'    "--completion "*) COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$current")); return ;;',
        "  esac",
        '  case "$current" in -*) ;; *) return ;; esac',
        '  case "$command" in',
    ]
    for command in commands:
        flags = [flag for field in _fields(command) for flag in _flags(field)]
        lines.append(f'    "{command}") COMPREPLY=($(compgen -W "{" ".join([*flags, *everywhere])}" -- "$current")) ;;')
    lines += ["  esac", "}", "complete -o default -F _bit bit"]  # where nothing is found: files
    return "\n".join(lines) + "\n"


def _zsh(commands: Mapping[str, str], everywhere: Sequence[str]) -> str:
    lines = ["_bit() {", "  local -a commands=("]
    lines += [f"    {shlex.quote(f'{name}:{summary}')}" for name, summary in _first_words(commands).items()]
    lines += [
        "  )",
        "  if (( CURRENT == 2 )); then _describe command commands; return; fi",
        "  local command=$words[2]",
        "  shift words; (( CURRENT-- ))",
    ]
    for first, seconds in _groups(commands).items():
        lines += [
            f"  if [[ $command == {first} ]]; then",
            f"    if (( CURRENT == 2 )); then compadd {' '.join(seconds)}; return; fi",
            '    command="$command $words[2]"',
            "    shift words; (( CURRENT-- ))",
            "  fi",
        ]
    lines.append('  case "$command" in')
    for command in commands:
        lines.append(f"    {shlex.quote(command)}) _arguments -S \\")
        for field in _fields(command):
            for flag in _flags(field):
                value = (
                    ""
                    if field.type is bool
                    else ":value:" + (f"({' '.join(map(str, field.choices))})" if field.choices else "_files")
                )
                lines.append(f"      {shlex.quote(f'*{flag}[{_short(field)}]{value}')} \\")
        lines += [f"      '*{flag}' \\" for flag in everywhere]
        lines.append("      '*:file:_files' ;;")
    lines += ["  esac", "}", "compdef _bit bit"]
    return "\n".join(lines) + "\n"


def _fish(commands: Mapping[str, str], everywhere: Sequence[str]) -> str:
    first = "not __fish_seen_subcommand_from " + " ".join(_first_words(commands))
    lines = [f"complete -c bit -n {shlex.quote(first)} -f"]
    for command, summary in _first_words(commands).items():
        lines.append(f"complete -c bit -n {shlex.quote(first)} -a {command} -d {shlex.quote(summary)}")
    for group, seconds in _groups(commands).items():
        none_yet = f"__fish_seen_subcommand_from {group}; and not __fish_seen_subcommand_from {' '.join(seconds)}"
        lines.append(f"complete -c bit -n {shlex.quote(none_yet)} -f -a {shlex.quote(' '.join(seconds))}")
    for command in commands:
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.split())
        if command in [second for seconds in _groups(commands).values() for second in seconds]:
            seen += f"; and not __fish_seen_subcommand_from {' '.join(_groups(commands))}"
        here = shlex.quote(seen)
        for field in _fields(command):
            for flag in _flags(field):
                line = f"complete -c bit -n {here} -l {flag.removeprefix('--')} -d {shlex.quote(_short(field))}"
                if field.choices:
                    line += f" -x -a {shlex.quote(' '.join(map(str, field.choices)))}"
                elif field.type is not bool:
                    line += " -r"
                lines.append(line)
        lines += [f"complete -c bit -n {here} -l {flag.removeprefix('--')}" for flag in everywhere]
    return "\n".join(lines) + "\n"


def _short(field: Field) -> str:
    """The first sentence of a field's help, without what the scripts give a meaning to."""
    text = " ".join(field.help.split()).split(". ")[0].split("; ")[0].rstrip(".")
    return "".join(" " if c in "[]:'\"\\`$" else c for c in text)
