package dns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWatchedReadsAChangedFileAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	parsed := 0
	w := watched[string]{path: path, parse: func(b []byte) string { parsed++; return string(b) }}
	expect := func(when, want string, wantErr error) {
		t.Helper()
		got, err := w.get()
		if got != want || !errors.Is(err, wantErr) {
			t.Fatalf("%s: got %q, %v, want %q", when, got, err, want)
		}
	}
	old := time.Now().Add(-time.Hour)
	age := func(at time.Time) {
		t.Helper()
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	expect("before there is a file", "", fs.ErrNotExist)
	replace(t, path, "one")
	expect("a new file", "one", nil)
	age(old)
	expect("a settled file", "one", nil)
	count := parsed
	expect("a settled file that did not change", "one", nil)
	if parsed != count {
		t.Error("a file without change was parsed again")
	}
	replace(t, path, "two")
	age(old)
	expect("a replaced file of the same size and time", "two", nil)
	if err := os.WriteFile(path, []byte("six"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("a file written in place", "six", nil)
	young := time.Now().Add(time.Hour) // however long the test takes
	age(young)
	expect("a young file", "six", nil)
	if err := os.WriteFile(path, []byte("ten"), 0o600); err != nil {
		t.Fatal(err)
	}
	age(young)
	expect("a file written twice within a tick of the clock", "ten", nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("while the file is gone", "ten", fs.ErrNotExist)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := w.get(); got != "ten" || err == nil {
		t.Fatalf("a directory in its place: %q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "target")
	replace(t, target, "link")
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	expect("a link to another file", "link", nil)
	replace(t, target, "behind")
	expect("a change behind the link", "behind", nil)
}

func TestWatchedReadsNoEndlessFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	replace(t, path, strings.Repeat("x", maxFile+1))
	w := watched[int]{path: path, parse: func(b []byte) int { return len(b) }}
	if got, err := w.get(); got != maxFile || err != nil {
		t.Errorf("%d bytes, %v", got, err)
	}
}
