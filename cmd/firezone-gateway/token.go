package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

var (
	// errNoToken means that none of the supported ways gave a token.
	errNoToken = errors.New("no token")
	// errNoTokenFile means a token that looks like a path. Tokens are made of
	// letters, digits, dashes, underscores and dots.
	errNoTokenFile = errors.New("the token starts with a slash and names no file")
)

// resolveToken returns the token itself. A value that names a regular file is
// replaced by the file's content. Without a value the systemd credential counts
// (dataplane §8.1, rule 80). White space around it goes. Errors do not contain
// the token.
func resolveToken(value, credentialsDir string) (string, error) {
	value = strings.TrimSpace(value)
	if value == "" {
		if credentialsDir == "" {
			return "", errNoToken
		}
		token, err := readToken(filepath.Join(credentialsDir, "FIREZONE_TOKEN"))
		if errors.Is(err, fs.ErrNotExist) {
			return "", errNoToken
		}
		return token, err
	}
	if info, err := os.Stat(value); err == nil && info.Mode().IsRegular() {
		return readToken(value)
	}
	if strings.HasPrefix(value, "/") {
		return "", errNoTokenFile
	}
	return value, nil
}

func readToken(name string) (string, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", fmt.Errorf("token file %s is empty", name)
	}
	return token, nil
}
