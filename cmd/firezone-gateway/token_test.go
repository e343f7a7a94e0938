package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestToken(t *testing.T) {
	dir := t.TempDir()
	file, full, empty, unset := filepath.Join(dir, "token"), filepath.Join(dir, "full"), filepath.Join(dir, "empty"), filepath.Join(dir, "unset")
	put(t, file, "\n from-file\r\n")
	put(t, filepath.Join(full, "FIREZONE_TOKEN"), " \tfrom-credential\n\n")
	put(t, filepath.Join(empty, "FIREZONE_TOKEN"), " \n")
	put(t, filepath.Join(dir, "blank"), "\n")
	put(t, filepath.Join(unset, "OTHER"), "x")
	put(t, filepath.Join(dir, "great"), strings.Repeat("x", fileLimit))
	put(t, filepath.Join(dir, "large"), strings.Repeat("x", fileLimit+1))
	put(t, filepath.Join(dir, "huge", "FIREZONE_TOKEN"), strings.Repeat("x", fileLimit+1))
	t.Chdir(dir)
	for _, tc := range []struct {
		name, value, credentials string
		want, wantErr            string
	}{
		{"as it is", "value", "", "value", ""},
		{"with white space around it", " value\n", "", "value", ""},
		{"from a file", file, "", "from-file", ""},
		{"from a file by a relative name", "token", "", "from-file", ""},
		{"from a file whose name has white space around it", file + "\n", "", "from-file", ""},
		{"from a credential", "", full, "from-credential", ""},
		{"blank, so from a credential", " \n", full, "from-credential", ""},
		{"the value wins over the credential", "value", full, "value", ""},
		{"nothing at all", "", "", "", "no token"},
		{"credentials without ours", "", unset, "", "no token"},
		{"credentials that do not exist", "", filepath.Join(dir, "nowhere"), "", "no token"},
		{"an empty credential", "", empty, "", "is empty"},
		{"a credential that is a directory", "", filepath.Join(dir, "nested"), "", "is a directory"},
		{"a blank file", filepath.Join(dir, "blank"), "", "", "is empty"},
		{"a path that does not exist", "/nonexistent/token", "", "", "names no file"},
		{"a directory", dir, "", "", "names no file"},
		{"a terminal or another device", "/dev/null", "", "", "names no file"},
		{"a file of the greatest size", filepath.Join(dir, "great"), "", strings.Repeat("x", fileLimit), ""},
		{"a file that is too large", filepath.Join(dir, "large"), "", "", "more than 65536 bytes"},
		{"a credential that is too large", "", filepath.Join(dir, "huge"), "", "more than 65536 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.HasSuffix(tc.credentials, "nested") {
				if err := os.MkdirAll(filepath.Join(tc.credentials, "FIREZONE_TOKEN"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, err := resolveToken(tc.value, tc.credentials)
			if got != tc.want {
				t.Errorf("got %.20q of %d bytes, want %.20q of %d", got, len(got), tc.want, len(tc.want))
			}
			if (err != nil) != (tc.wantErr != "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error %v, want %q", err, tc.wantErr)
			}
		})
	}
	if _, err := resolveToken("", ""); !errors.Is(err, errNoToken) {
		t.Errorf("error %v, want errNoToken", err)
	}
}

// write lets a program of its own write to a pipe that the gateway reads.
func write(t *testing.T, name string, content []byte) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		// A reader that has read enough goes away.
		if _, err := f.Write(content); err != nil && !errors.Is(err, syscall.EPIPE) {
			t.Error(err)
		}
		f.Close()
	})
	t.Cleanup(wg.Wait)
}

func TestTokenFromAPipe(t *testing.T) {
	for _, tc := range []struct {
		name, content, want, wantErr string
	}{
		{"with white space around it", "\n piped\r\n", "piped", ""},
		{"as large as can be", strings.Repeat("x", fileLimit), strings.Repeat("x", fileLimit), ""},
		{"that is too large", strings.Repeat("x", 4*fileLimit), "", "more than 65536 bytes"},
		{"that says nothing", "", "", "is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "pipe")
			if err := syscall.Mkfifo(name, 0o600); err != nil {
				t.Fatal(err)
			}
			write(t, name, []byte(tc.content))
			checkToken(t, name, tc.want, tc.wantErr)
		})
	}
	t.Run("that is a file descriptor, as of a process substitution", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := w.WriteString("substituted\n"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		checkToken(t, "/dev/fd/"+strconv.Itoa(int(r.Fd())), "substituted", "")
		runtime.KeepAlive(r)
	})
	t.Run("as a credential", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mkfifo(filepath.Join(dir, "FIREZONE_TOKEN"), 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "FIREZONE_TOKEN"), []byte("piped"))
		if got, err := resolveToken("", dir); got != "piped" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestTokenFromAPipeIsBoundInTime(t *testing.T) {
	defer func(d time.Duration) { pipePatience = d }(pipePatience)
	pipePatience = 100 * time.Millisecond
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("when nobody writes", func(t *testing.T) { checkToken(t, name, "", "nobody wrote") })
	t.Run("when the writer does not end", func(t *testing.T) {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(bytes.Repeat([]byte("x"), 10)); err != nil {
			t.Fatal(err)
		}
		checkToken(t, name, "", "nobody wrote")
	})
}

func checkToken(t *testing.T, value, want, wantErr string) {
	t.Helper()
	got, err := resolveToken(value, "")
	if got != want {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	if (err != nil) != (wantErr != "") || err != nil && !strings.Contains(err.Error(), wantErr) {
		t.Errorf("error %v, want %q", err, wantErr)
	}
}
