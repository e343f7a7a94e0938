package hammer

import (
	"bytes"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
)

// planted is a target with a fault that one mutation of its corpus shows.
func planted(how string) func(F) {
	return func(f F) {
		f.Add([]byte("length:\x00\x05hello"), uint8(200), true)
		f.Fuzz(func(t *testing.T, b []byte, n uint8, ok bool) {
			if !wrong(b, n, ok) {
				return
			}
			switch how {
			case "fatal":
				t.Fatal("planted")
			case "error":
				t.Error("planted")
			case "panic":
				_ = b[len(b)]
			}
		})
	}
}

func wrong(b []byte, n uint8, ok bool) bool {
	return bytes.HasPrefix(b, []byte("length:\x00\x06")) && n != 7 && ok
}

const plant = "HAMMER_PLANT"

// TestPlanted fails, but only where TestFindings runs it.
func TestPlanted(t *testing.T) {
	how, asked := os.LookupEnv(plant)
	if !asked {
		how = "nothing"
	}
	Test(t, "FuzzPlanted", planted(how))
}

func TestFindings(t *testing.T) {
	for _, how := range []string{"fatal", "error", "panic"} {
		t.Run(how, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPlanted$", "-test.v", "-hammer=1000000")
			cmd.Env = append(os.Environ(), plant+"="+how)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the fault was not found:\n%s", out)
			}
			text := string(out)
			at := strings.Index(text, header)
			if at < 0 {
				t.Fatalf("no input was told:\n%s", text)
			}
			lines := strings.Split(text[at:], "\n")[:4]
			for i := range lines {
				lines[i] = strings.TrimSpace(lines[i])
			}
			f := &collector{TB: t}
			planted(how)(f)
			args, err := decode(strings.Join(lines, "\n"), f.types())
			if err != nil || !wrong(args[0].([]byte), args[1].(uint8), args[2].(bool)) {
				t.Fatalf("the input that was told is none that fails: %v, %v\n%s", args, err, text)
			}
			if how == "panic" && !strings.Contains(text, "planted") {
				t.Errorf("no stack:\n%s", text)
			}
		})
	}
}

var mixed = []any{[]byte("a\x00\xff\"\n"), "b\x80ü", byte(0), byte('x'), byte(0xff), int(-5), int64(1 << 40), uint16(9), uint64(1<<64 - 1), true}

func typesOf(args []any) (types []reflect.Type) {
	for _, a := range args {
		types = append(types, reflect.TypeOf(a))
	}
	return types
}

func TestCorpusFilesAreReadAsTheyAreWritten(t *testing.T) {
	got, err := decode(encode(mixed), typesOf(mixed))
	if err != nil || !reflect.DeepEqual(got, mixed) {
		t.Errorf("got %#v, %v", got, err)
	}
	for n := range 256 {
		want := []any{byte(n)}
		if got, err := decode(encode(want), typesOf(want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("byte %#x: got %v, %v", n, got, err)
		}
	}
}

func TestWrongCorpusFilesAreRefused(t *testing.T) {
	for _, tc := range []struct{ name, text string }{
		{"another version", "go test fuzz v2\nuint16(1)\nstring(\"a\")"},
		{"too few values", header + "\nuint16(1)"},
		{"too many values", header + "\nuint16(1)\nstring(\"a\")\nstring(\"b\")"},
		{"another type", header + "\nuint8(1)\nstring(\"a\")"},
		{"a number out of range", header + "\nuint16(70000)\nstring(\"a\")"},
		{"no quotes", header + "\nuint16(1)\nstring(a)"},
		{"no end", header + "\nuint16(1)\nstring(\"a\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := decode(tc.text, typesOf([]any{uint16(0), ""})); err == nil {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestInputs(t *testing.T) {
	in := inputs{seed: 3, corpus: [][]any{mixed, mixed}}
	if got := in.at(1); !reflect.DeepEqual(got, mixed) {
		t.Errorf("the corpus does not come first: %v", got)
	}
	corpus := encode(mixed)
	changed := make([]bool, len(mixed))
	for i := range uint64(5000) {
		args := in.at(i)
		if !reflect.DeepEqual(args, in.at(i)) {
			t.Fatalf("input %d differs from itself", i)
		}
		if !reflect.DeepEqual(typesOf(args), typesOf(mixed)) {
			t.Fatalf("input %d has other types: %#v", i, args)
		}
		for j := range args {
			changed[j] = changed[j] || !reflect.DeepEqual(args[j], mixed[j])
		}
		if b := args[0].([]byte); len(b) > maxBytes {
			t.Fatalf("%d bytes", len(b))
		} else if len(b) > 0 {
			b[0]++ // not the corpus's
		}
	}
	if encode(mixed) != corpus {
		t.Error("the corpus was changed")
	}
	for j, ok := range changed {
		if !ok {
			t.Errorf("value %d never changed", j)
		}
	}
	if other := (&inputs{seed: 4, corpus: in.corpus}); reflect.DeepEqual(other.at(2), in.at(2)) && reflect.DeepEqual(other.at(3), in.at(3)) {
		t.Error("another seed makes the same inputs")
	}
}

func TestHalfOfTheInputsAreMended(t *testing.T) {
	in := inputs{corpus: [][]any{{uint16(1)}}, mends: []Mend{func(args []any) { args[0] = uint16(7777) }}}
	mended := 0
	for i := range uint64(1000) {
		if in.at(i)[0] == uint16(7777) {
			mended++
		}
	}
	if mended < 400 || mended > 600 {
		t.Errorf("%d of 1000", mended)
	}
}

func TestBodiesOfAnyTypeAreCalled(t *testing.T) {
	var got []any
	callOf(func(_ *testing.T, b []byte) { got = []any{b} })(t, []any{[]byte("a")})
	if !reflect.DeepEqual(got, []any{[]byte("a")}) {
		t.Errorf("bytes: %v", got)
	}
	callOf(func(_ *testing.T, s string) { got = []any{s} })(t, []any{"b"})
	if !reflect.DeepEqual(got, []any{"b"}) {
		t.Errorf("string: %v", got)
	}
	callOf(func(_ *testing.T, s string, n int64, ok bool) { got = []any{s, n, ok} })(t, []any{"c", int64(3), true})
	if !reflect.DeepEqual(got, []any{"c", int64(3), true}) {
		t.Errorf("mixed: %v", got)
	}
}
