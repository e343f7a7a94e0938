package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// errNoToken means that none of the supported ways gave a token.
	errNoToken = errors.New("no token")
	// errNoTokenFile means a token that looks like a path. Tokens are made of
	// letters, digits, dashes, underscores and dots.
	errNoTokenFile = errors.New("the token starts with a slash and names no file or pipe")
)

// fileLimit bounds what is read for a token, in bytes.
const fileLimit = 64 << 10

// pipePatience bounds how long the writer of a pipe may take in all.
var pipePatience = 5 * time.Second

// resolveToken returns the token itself. A value that names a regular file or a
// pipe is replaced by the content. Without a value the systemd credential counts
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
	if info, err := os.Stat(value); err == nil && (info.Mode().IsRegular() || isPipe(info)) {
		return readToken(value)
	}
	if strings.HasPrefix(value, "/") {
		return "", errNoTokenFile
	}
	return value, nil
}

func readToken(name string) (string, error) {
	// Opening a pipe blocks until somebody writes to it, without this flag.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	if isPipe(info) {
		err = awaitWriter(f)
	}
	var raw []byte
	if err == nil {
		raw, err = io.ReadAll(io.LimitReader(f, fileLimit+1))
	}
	token := strings.TrimSpace(string(raw))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", fmt.Errorf("token file %s is a pipe, and nobody wrote a token and closed it within %v", name, pipePatience)
	case err != nil:
		return "", fmt.Errorf("token file: %w", err)
	case len(raw) > fileLimit:
		return "", fmt.Errorf("token file %s has more than %d bytes", name, fileLimit)
	case token == "":
		return "", fmt.Errorf("token file %s is empty", name)
	}
	return token, nil
}

func isPipe(info fs.FileInfo) bool { return info.Mode()&fs.ModeNamedPipe != 0 }

// awaitWriter waits until there is something in the pipe, or its writer has gone,
// and bounds the time for the rest. Before the first writer comes, a pipe reads
// as if it were at its end.
func awaitWriter(pipe *os.File) error {
	deadline := time.Now().Add(pipePatience)
	if err := pipe.SetReadDeadline(deadline); err != nil {
		return err
	}
	raw, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	var ready int
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			left := max(0, time.Until(deadline).Milliseconds())
			ready, failed = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left))
			if !errors.Is(failed, unix.EINTR) {
				return
			}
		}
	})
	if err == nil && failed == nil && ready == 0 {
		return os.ErrDeadlineExceeded
	}
	return errors.Join(err, failed)
}
