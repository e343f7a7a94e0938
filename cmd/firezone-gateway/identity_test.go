package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// The identity of testMachine, by an independent implementation of HMAC-SHA256.
const (
	testMachine  = "0123456789abcdef0123456789abcdef\n"
	testIdentity = "eeefe5d1cb3807dfc3ae24794878ec3147027390d839d1d718d8e42bcfde3336"
)

var generated = regexp.MustCompile(`^[0-9a-f]{64}$`)

func testSource(t *testing.T) identitySource {
	dir := t.TempDir()
	return identitySource{StateFile: filepath.Join(dir, "lib", "firezone", "gateway_id"), MachineID: filepath.Join(dir, "machine-id"), link: os.Link}
}

func put(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestIdentityPrecedence(t *testing.T) {
	for _, tc := range []struct {
		name, configured, state, machine, want string
	}{
		{"configured first", "mine", `{"id":"stored"}`, testMachine, "mine"},
		{"then stored", "", `{"id":"stored"}`, testMachine, "stored"},
		{"with unknown fields and space", "", " {\"x\":1, \"id\": \"stored\"}\n", testMachine, "stored"},
		{"then derived, the newline included", "", "", testMachine, testIdentity},
		{"a stored plain text is passed over", "", "stored", testMachine, testIdentity},
		{"a stored empty id is passed over", "", `{"id":""}`, testMachine, testIdentity},
		{"a stored number is passed over", "", `{"id":7}`, testMachine, testIdentity},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testSource(t)
			if tc.state != "" {
				put(t, s.StateFile, tc.state)
			}
			put(t, s.MachineID, tc.machine)
			got, err := s.resolve(tc.configured)
			if err != nil || got != tc.want {
				t.Errorf("resolve = %q, %v; want %q", got, err, tc.want)
			}
			if _, err := os.Stat(s.StateFile); tc.state == "" && err == nil {
				t.Error("an identity was stored that did not have to be")
			}
		})
	}
}

func TestIdentityIsGeneratedOnce(t *testing.T) {
	for name, machine := range map[string]string{"without machine id": "-", "blank machine id": "\n", "before the first boot": "uninitialized\n"} {
		t.Run(name, func(t *testing.T) {
			s := testSource(t)
			if machine != "-" {
				put(t, s.MachineID, machine)
			}
			first, err := s.resolve("")
			if err != nil || !generated.MatchString(first) {
				t.Fatalf("resolve = %q, %v", first, err)
			}
			if again, err := s.resolve(""); err != nil || again != first {
				t.Errorf("the second time %q, %v; want %q", again, err, first)
			}
			put(t, s.MachineID, testMachine)
			if again, err := s.resolve(""); err != nil || again != first {
				t.Errorf("with a machine id %q, %v; want the stored %q", again, err, first)
			}
			raw, err := os.ReadFile(s.StateFile)
			if want := `{"id":"` + first + `"}`; err != nil || string(raw) != want {
				t.Errorf("file holds %q, %v; want %q", raw, err, want)
			}
		})
	}
}

func TestIdentityFilePermissions(t *testing.T) {
	for _, mask := range []int{0o022, 0o077, 0} {
		s := testSource(t)
		old := syscall.Umask(mask)
		_, err := s.resolve("")
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]fs.FileMode{filepath.Dir(s.StateFile): fs.ModeDir | 0o770, s.StateFile: 0o640} {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != want {
				t.Errorf("umask %03o: %s is %v, want %v", mask, filepath.Base(name), info.Mode(), want)
			}
		}
		entries, err := os.ReadDir(filepath.Dir(s.StateFile))
		if err != nil || len(entries) != 1 {
			t.Errorf("directory holds %v, %v; want the identity only", entries, err)
		}
	}
}

// TestIdentityDirectoryGetsItsMode is about one that exists, whatever the
// identity comes from, and before the file in it is read (dataplane §8.2).
func TestIdentityDirectoryGetsItsMode(t *testing.T) {
	for _, tc := range []struct {
		name, configured, state, machine string
		old, want                        fs.FileMode
	}{
		{"generated", "", "", "", 0o755, 0o770},
		{"derived", "", "", testMachine, 0o755, 0o770},
		{"stored", "", `{"id":"stored"}`, testMachine, 0o700, 0o770},
		{"stored in a directory of the right mode", "", `{"id":"stored"}`, "", 0o770, 0o770},
		{"configured, which needs no directory", "mine", "", "", 0o755, 0o755},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testSource(t)
			dir := filepath.Dir(s.StateFile)
			if err := os.MkdirAll(dir, tc.old); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, tc.old); err != nil {
				t.Fatal(err)
			}
			if tc.state != "" {
				put(t, s.StateFile, tc.state)
			}
			put(t, s.MachineID, tc.machine)
			if _, err := s.resolve(tc.configured); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != tc.want {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestIdentityIsStoredWithoutHardLinks(t *testing.T) {
	s := testSource(t)
	s.link = func(string, string) error { return syscall.EPERM }
	first, err := s.resolve("")
	if err != nil || !generated.MatchString(first) {
		t.Fatalf("resolve = %q, %v", first, err)
	}
	if again, err := s.resolve(""); err != nil || again != first {
		t.Errorf("the second time %q, %v; want %q", again, err, first)
	}
	info, err := os.Stat(s.StateFile)
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(s.StateFile)); err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v; want the identity only", entries, err)
	}
	put(t, s.StateFile, "plain")
	if id, err := s.resolve(""); err == nil || !strings.Contains(err.Error(), "is not of the form") {
		t.Errorf("a file of another form leads to %q, %v", id, err)
	}
	if raw, err := os.ReadFile(s.StateFile); err != nil || string(raw) != "plain" {
		t.Errorf("the file was overwritten: %q, %v", raw, err)
	}
}

func TestIdentityIsTheSameForAllWhoGenerateAtOnce(t *testing.T) {
	s := testSource(t)
	ids, errs := make([]string, 16), make([]error, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i], errs[i] = s.resolve("") })
	}
	wg.Wait()
	for i := range ids {
		if errs[i] != nil || ids[i] != ids[0] {
			t.Errorf("%q, %v; the first got %q", ids[i], errs[i], ids[0])
		}
	}
}

func TestIdentityErrors(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setUp func(t *testing.T, s identitySource)
		want  string
	}{
		{"a file of another form is never overwritten", func(t *testing.T, s identitySource) { put(t, s.StateFile, "plain") }, "is not of the form"},
		{"the file is a directory", func(t *testing.T, s identitySource) {
			if err := os.MkdirAll(s.StateFile, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "read identity"},
		{"the directory is a file", func(t *testing.T, s identitySource) { put(t, filepath.Dir(s.StateFile), "") }, "not a directory"},
		{"the directory is a file, though there is a machine id", func(t *testing.T, s identitySource) {
			put(t, filepath.Dir(s.StateFile), "")
			put(t, s.MachineID, testMachine)
		}, "not a directory"},
		{"the directory's parent is a dangling link", func(t *testing.T, s identitySource) {
			lib := filepath.Dir(filepath.Dir(s.StateFile))
			if err := os.Symlink(filepath.Join(lib, "nowhere"), lib); err != nil {
				t.Fatal(err)
			}
		}, "identity"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testSource(t)
			tc.setUp(t, s)
			id, err := s.resolve("")
			if err == nil {
				t.Fatalf("resolve = %q", id)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "FIREZONE_ID") {
				t.Errorf("error %q does not say %q and the way out", err, tc.want)
			}
			if id, err := s.resolve("configured"); id != "configured" || err != nil {
				t.Errorf("the way out leads to %q, %v", id, err)
			}
		})
	}
}

func FuzzStoredIdentity(f *testing.F) {
	for _, text := range []string{`{"id":"x"}`, `{"id":""}`, `{"id":1}`, "plain", "", `[]`, `{"id":"a"}{"id":"b"}`, "null"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := testSource(t)
		put(t, s.StateFile, string(raw))
		put(t, s.MachineID, testMachine)
		id, err := s.resolve("")
		if err != nil {
			t.Fatal(err)
		}
		if id == testIdentity {
			return
		}
		var state map[string]any
		if json.Unmarshal(raw, &state) != nil || id == "" {
			t.Errorf("identity %q from %q", id, raw)
		}
	})
}
