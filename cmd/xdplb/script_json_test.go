package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// jsonCommand compares the values at a path of the JSON printed last with words, in order. A path is made of
// names, indexes and * for all, with dots between them; .keys at its end gives the names in an object.
func jsonCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: json PATH VALUE...")
	}
	var got []string
	for _, v := range lookup(printed(ts), strings.Split(args[0], ".")) {
		got = append(got, text(v))
	}
	if slices.Equal(got, args[1:]) == neg {
		ts.Fatalf("%s: %s, %swant %s", args[0], strings.Join(got, " "), map[bool]string{true: "do not "}[neg], strings.Join(args[1:], " "))
	}
}

// sumCommand compares two sums of numbers and of all the numbers at paths: sum A + B = C + 5.
func sumCommand(ts *testscript.TestScript, neg bool, args []string) {
	at := slices.IndexFunc(args, func(s string) bool { return s == "=" || s == "<" || s == ">" })
	if at < 1 || at+1 == len(args) {
		ts.Fatalf("usage: sum A + B... =|<|> C + D...")
	}
	value := printed(ts)
	left, right := total(ts, value, args[:at]), total(ts, value, args[at+1:])
	holds := map[string]bool{"=": left == right, "<": left < right, ">": left > right}[args[at]]
	if holds == neg {
		ts.Fatalf("%s: %v and %v", strings.Join(args, " "), left, right)
	}
}

func printed(ts *testscript.TestScript) (value any) {
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &value))
	return value
}

func lookup(value any, path []string) []any {
	if len(path) == 0 {
		return []any{value}
	}
	var found []any
	switch v := value.(type) {
	case map[string]any:
		if path[0] == "keys" {
			for _, key := range slices.Sorted(maps.Keys(v)) {
				found = append(found, key)
			}
			return found
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if path[0] == "*" || path[0] == key {
				found = append(found, lookup(v[key], path[1:])...)
			}
		}
	case []any:
		for i, element := range v {
			if path[0] == "*" || path[0] == strconv.Itoa(i) {
				found = append(found, lookup(element, path[1:])...)
			}
		}
	}
	return found
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	out, _ := json.Marshal(v)
	return string(out)
}

func total(ts *testscript.TestScript, value any, words []string) (sum float64) {
	for _, word := range words {
		if word == "+" {
			continue
		}
		if n, err := strconv.ParseFloat(word, 64); err == nil {
			sum += n
			continue
		}
		found := lookup(value, strings.Split(word, "."))
		if len(found) == 0 {
			ts.Fatalf("%s: nothing there", word)
		}
		for _, v := range found {
			n, ok := v.(float64)
			if !ok {
				ts.Fatalf("%s: %s is no number", word, text(v))
			}
			sum += n
		}
	}
	return sum
}
