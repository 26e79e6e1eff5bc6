# Tab completion of the commands of lesionseg, their settings, and the options of groups.
# Bash: source scripts/completion.bash    Zsh: run `autoload -U bashcompinit && bashcompinit` first.

# Print a line `key=` or `group=option` for each setting of a command, as its help lists them.
_lesionseg_settings() {
  lesionseg "$1" --help=all 2>/dev/null | awk '
    /^Group /        { section = $2; print section "=" }
    /^  [a-z_]+=/    { print $1 }
    /^  [a-z_]+:/    { section = substr($1, 1, length($1) - 1); print section "=" }
    /^    [a-z_]+:/  { print section "." substr($1, 1, length($1) - 1) "=" }'
}

# Complete the word at the cursor ($2; $3 is the word before): a command, a setting or an option.
_lesionseg() {
  local words key=""
  [[ $3 == "=" ]] && key=${COMP_WORDS[COMP_CWORD - 2]}      # `model=u` is three words
  [[ ${COMP_WORDS[COMP_CWORD]} == "=" ]] && key=$3
  if ((COMP_CWORD == 1)); then
    words=$(lesionseg --help | awk '/^  [a-z]/ { print $1 " " }')
  elif [[ -n $key ]]; then  # without an option, `-o default` completes names of files
    words=$(_lesionseg_settings "${COMP_WORDS[1]}" | sed -n "s/^$key=\(..*\)/\1 /p")
  else
    words=$(_lesionseg_settings "${COMP_WORDS[1]}" | grep '=$' | sort -u)
  fi
  local IFS=$'\n'
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}

complete -o default -o nospace -F _lesionseg lesionseg
