package hammer

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// header is the first line of a file that go test writes under testdata/fuzz.
const header = "go test fuzz v1"

// readCorpus returns the committed inputs of the target called name.
func readCorpus(t testing.TB, name string, types []reflect.Type) [][]any {
	files, err := filepath.Glob(filepath.Join("testdata", "fuzz", name, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var corpus [][]any
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		args, err := decode(string(text), types)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		corpus = append(corpus, args)
	}
	return corpus
}

// encode writes args as go test does.
func encode(args []any) string {
	var b strings.Builder
	b.WriteString(header + "\n")
	for _, a := range args {
		switch a := a.(type) {
		case []byte:
			fmt.Fprintf(&b, "[]byte(%q)\n", a)
		case string:
			fmt.Fprintf(&b, "string(%q)\n", a)
		case byte:
			fmt.Fprintf(&b, "byte(%q)\n", a)
		default:
			fmt.Fprintf(&b, "%T(%v)\n", a, a)
		}
	}
	return b.String()
}

// decode reads what encode and go test write.
func decode(text string, types []reflect.Type) ([]any, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != header || len(lines) != 1+len(types) {
		return nil, fmt.Errorf("not an input of %d values", len(types))
	}
	var args []any
	for i, want := range types {
		v, err := value(lines[1+i], want)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", 2+i, err)
		}
		args = append(args, v)
	}
	return args, nil
}

// value reads one line, which must be of the wanted type.
func value(line string, want reflect.Type) (any, error) {
	typ, literal, ok := strings.Cut(line, "(")
	literal, closed := strings.CutSuffix(literal, ")")
	if typ == "byte" {
		typ = "uint8"
	}
	if wanted := want.String(); !ok || !closed || typ != wanted && !(typ == "[]byte" && wanted == "[]uint8") {
		return nil, fmt.Errorf("%s is no %s", line, want)
	}
	v := reflect.New(want).Elem()
	var err error
	switch kind := want.Kind(); {
	case kind == reflect.Slice || kind == reflect.String:
		var s string
		s, err = strconv.Unquote(literal)
		v.Set(reflect.ValueOf(s).Convert(want))
	case kind == reflect.Bool:
		var b bool
		b, err = strconv.ParseBool(literal)
		v.SetBool(b)
	case v.CanInt():
		var n int64
		n, err = strconv.ParseInt(literal, 0, want.Bits())
		v.SetInt(n)
	case v.CanUint():
		var n uint64
		if n, err = character(literal); err != nil {
			n, err = strconv.ParseUint(literal, 0, want.Bits())
		}
		v.SetUint(n)
	default:
		err = fmt.Errorf("no values of %s", want)
	}
	return v.Interface(), err
}

// character reads a byte written as a character.
func character(literal string) (uint64, error) {
	s, err := strconv.Unquote(literal)
	if err != nil || literal[0] != '\'' {
		return 0, strconv.ErrSyntax
	}
	if r, n := utf8.DecodeRuneInString(s); n == len(s) && r < 256 && r != utf8.RuneError {
		return uint64(r), nil
	}
	return uint64(s[0]), nil
}
