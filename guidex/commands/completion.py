"""`guidex completion`: shells complete commands, options, keys, groups and presets."""

from collections.abc import Mapping, Sequence

from guidex.config.presets import KINDS, nearest, options, preset
from guidex.errors import UsageError

_BASH = """\
# guidex for bash: source <(guidex completion bash)
_guidex() {
    local word="${COMP_LINE:0:COMP_POINT}" words
    word="${word##* }"
    case "${COMP_WORDS[1]}" in
%(cases)s
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="%(commands)s"
    [[ "$word" == *=* ]] || words=$(tr ' ' '\\n' <<< "$words" | grep -v '=.')
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    # What readline replaces begins behind the last "=".
    [[ "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%"${word##*=}"}"}")
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2> /dev/null
}
complete -o default -F _guidex guidex
"""
_ZSH = """\
# guidex for zsh: source <(guidex completion zsh)
_guidex() {
    local all
    case "$words[2]" in
%(cases)s
    esac
    (( CURRENT == 2 )) && all="%(commands)s"
    [[ $PREFIX == *=* ]] && compadd -- ${(M)${=all}:#*=?*}
    compadd -S '' -- ${(M)${=all}:#*=}
    compadd -- ${${=all}:#*=*}
    _files
}
compdef _guidex guidex
"""
_FISH = """\
# guidex for fish: guidex completion fish | source
complete -c guidex -n __fish_use_subcommand -f -a "%(commands)s"
%(cases)s
"""
_SHELLS = {
    "bash": (_BASH, '        {command}) words="{words}" ;;'),
    "zsh": (_ZSH, '        {command}) all="{words}" ;;'),
    "fish": (_FISH, 'complete -c guidex -n "__fish_seen_subcommand_from {command}" -a "{words}"'),
}


def completion(words: Sequence[str], commands: Mapping[str, Sequence[str]]) -> str:
    """The script for a shell; `commands` are the options of each command."""
    if len(words) != 1 or words[0] not in _SHELLS:
        raise UsageError(f"name a shell{nearest(' '.join(words), _SHELLS)}")
    script, case = _SHELLS[words[0]]
    lines = []
    for command, own in commands.items():
        known = [*(f"--{option}" for option in own), "--help", *_words(command)]
        lines.append(case.format(command=command, words=" ".join(known)))
    return script % {"commands": " ".join(commands), "cases": "\n".join(lines)}


def _words(command: str) -> list[str]:
    """What may follow a command."""
    fixed = {"list": [*KINDS, "layers"], "models": options("model"), "completion": [*_SHELLS]}
    root = preset("", {"fetch": "sweep"}.get(command, command))
    groups = {name for one in root.get("defaults", []) if isinstance(one, dict) for name in one}
    chosen = [group for group in KINDS.values() if group.partition("/")[0] in groups]
    keys = [key for key, value in root.items() if key != "defaults" and not isinstance(value, dict)]
    presets = [f"{group}={name}" for group in chosen for name in options(group)]
    return [*fixed.get(command, []), *(f"{key}=" for key in [*chosen, *keys]), *presets]
