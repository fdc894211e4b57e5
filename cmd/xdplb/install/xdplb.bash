# bash completion of xdplb, as printed by: xdplb completion bash
# The program itself knows the words; status 3 says that a file's name is wanted.
_xdplb() {
	local line=${COMP_LINE:0:COMP_POINT} word before words status=0
	word=${line##*[[:space:]]}
	# readline replaces only what is behind the last : or = of a word; in quotes all of it, and no choice begins with a quote
	before=${word%"${word##*["$COMP_WORDBREAKS"]}"}
	words=$("$1" __complete "$line" 2>/dev/null) || status=$?
	case $status in
	0) mapfile -t COMPREPLY < <(printf '%s' "$words") ;;
	3) COMPREPLY=() && compopt -o default 2>/dev/null ;;
	*) COMPREPLY=() ;;
	esac
	COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -F _xdplb xdplb
