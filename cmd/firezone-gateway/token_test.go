package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestToken(t *testing.T) {
	dir := t.TempDir()
	file, full, empty, unset := filepath.Join(dir, "token"), filepath.Join(dir, "full"), filepath.Join(dir, "empty"), filepath.Join(dir, "unset")
	put(t, file, "\n from-file\r\n")
	put(t, filepath.Join(full, "FIREZONE_TOKEN"), " \tfrom-credential\n\n")
	put(t, filepath.Join(empty, "FIREZONE_TOKEN"), " \n")
	put(t, filepath.Join(dir, "blank"), "\n")
	put(t, filepath.Join(unset, "OTHER"), "x")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
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
		{"a pipe, which could block for ever", filepath.Join(dir, "pipe"), "", "", "names no file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.HasSuffix(tc.credentials, "nested") {
				if err := os.MkdirAll(filepath.Join(tc.credentials, "FIREZONE_TOKEN"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, err := resolveToken(tc.value, tc.credentials)
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
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
