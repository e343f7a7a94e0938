package hygiene

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"
)

// maxLines is how long a Go file may be.
const maxLines = 600

// unfinished matches marks of unfinished work. It is put together so that it
// does not match its own source.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`)

// machinePath matches places on somebody's machine, for the same reason in
// parts.
var machinePath = regexp.MustCompile(`(?:^|[\s"'=:` + "`" + `(])/(?:wo` + `rk|ho` + `me|ro` + `ot|tm` + `p)/\w`)

func TestFilesAreShort(t *testing.T) {
	for _, f := range repository(t) {
		for _, s := range f.sources {
			report(t, tooLong(s.path, s.text))
		}
	}
}

func TestEveryPackageIsDocumentedOnce(t *testing.T) {
	for _, f := range repository(t) {
		report(t, packageDocs(f))
	}
}

func TestNothingIsLeftUnfinished(t *testing.T) {
	for _, name := range textFiles(t) {
		report(t, matches(name, contents(t, name), unfinished, "unfinished"))
	}
}

func TestNoMachineIsNamed(t *testing.T) {
	for _, name := range textFiles(t) {
		report(t, matches(name, contents(t, name), machinePath, "a path of one machine"))
	}
}

func TestTooLongCountsLines(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		lines      int
		want       string
	}{
		{"a file of 600 lines", "a.go", 600, ""},
		{"a file of 601 lines", "a.go", 601, "601 lines"},
		{"a test of 601 lines", "a_test.go", 601, "601 lines"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, tooLong(tc.file, bytes.Repeat([]byte("\n"), tc.lines)), tc.want)
		})
	}
}

func TestPackageDocsSeesWhatIsMissing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"a library", map[string]string{"x/a.go": "// Package x is.\npackage x", "x/b.go": "package x"}, ""},
		{"a command", map[string]string{"cmd/x/main.go": "// Command x does.\npackage main"}, ""},
		{"none", map[string]string{"x/a.go": "package x"}, "no package comment"},
		{"in a test only", map[string]string{"x/a.go": "package x", "x/a_test.go": "// Package x is.\npackage x"}, "no package comment"},
		{"two", map[string]string{"x/a.go": "// Package x is.\npackage x", "x/b.go": "// Package x is.\npackage x"}, "2 package comments"},
		{"of another name", map[string]string{"x/a.go": "// Package y is.\npackage x"}, "Package x "},
		{"of another command", map[string]string{"cmd/x/a.go": "// Package main is.\npackage main"}, "Command x "},
		{"a folder of tests", map[string]string{"x/a_test.go": "package x"}, "no package comment"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &folder{}
			for name, text := range tc.files {
				f.path = path.Dir(name)
				f.sources = append(f.sources, parse(t, name, text))
			}
			expect(t, packageDocs(f), tc.want)
		})
	}
}

func TestMatchesSeesMarksAndPaths(t *testing.T) {
	mark, place := "TO"+"DO", "/wo"+"rk/main"
	for _, tc := range []struct {
		name, text string
		re         *regexp.Regexp
		want       string
	}{
		{"a mark", "x = 1 // " + mark + " later", unfinished, "a.go:1"},
		{"a mark in the second line", "\n# " + mark + ": y", unfinished, "a.go:2"},
		{"a template of a file name", "mktemp -d lab.XXXX" + "XX", unfinished, ""},
		{"a fuzz target", "FuzzXxx", unfinished, ""},
		{"a path", `dir := "` + place + `"`, machinePath, "a.go:1"},
		{"a path in an assignment", "DIR=" + place, machinePath, "a.go:1"},
		{"a relative path", "net" + place, machinePath, ""},
		{"a system path", `"/var/lib/firezone/gateway_id"`, machinePath, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, matches("a.go", []byte(tc.text), tc.re, "found"), tc.want)
		})
	}
}

func tooLong(name string, text []byte) []string {
	if n := bytes.Count(text, []byte("\n")); n > maxLines {
		return []string{fmt.Sprintf("%s has %d lines, split it by concept (at most %d)", name, n, maxLines)}
	}
	return nil
}

func packageDocs(f *folder) []string {
	want := "Package " + path.Base(f.path) + " "
	var docs []string
	for _, s := range f.sources {
		if s.isTest() {
			continue
		}
		name := s.ast.Name.Name
		if want = "Package " + name + " "; name == "main" {
			want = "Command " + path.Base(f.path) + " "
		}
		if s.ast.Doc != nil {
			docs = append(docs, s.ast.Doc.Text())
		}
	}
	switch {
	case len(docs) == 0:
		return []string{f.path + " has no package comment"}
	case len(docs) > 1:
		return []string{fmt.Sprintf("%s has %d package comments", f.path, len(docs))}
	case !strings.HasPrefix(docs[0], want):
		return []string{fmt.Sprintf("the package comment of %s begins with %q, want %q", f.path, strings.SplitAfter(docs[0], " ")[0], want)}
	}
	return nil
}

func matches(name string, text []byte, re *regexp.Regexp, what string) []string {
	var problems []string
	for i, line := range bytes.Split(text, []byte("\n")) {
		if m := re.Find(line); m != nil {
			problems = append(problems, fmt.Sprintf("%s:%d %s: %s", name, i+1, what, bytes.TrimSpace(m)))
		}
	}
	return problems
}
