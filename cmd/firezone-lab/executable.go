package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// executable is a program that the lab needs as a process of its own.
type executable struct {
	flag     string // names the one to use
	what     string // for people
	name     string // of the file
	variable string // hands the directory on to the process in the user namespace, which has no network to fetch modules from
	build    func(ctx context.Context, dir string) (string, error)
	noSource error // of build
}

// find returns the path of the one that was given, or else of one that it
// builds. The function returned removes what was built.
func (e executable) find(s *session, given string) (binary string, cleanup func(), err error) {
	if given != "" {
		if binary, err = exec.LookPath(given); err == nil {
			binary, err = filepath.Abs(binary)
		}
		if err != nil {
			return "", func() {}, fmt.Errorf("%s: %w", e.flag, err)
		}
		return binary, func() {}, nil
	}
	if dir := os.Getenv(e.variable); dir != "" {
		return filepath.Join(dir, e.name), func() { os.RemoveAll(dir) }, nil
	}
	dir, err := os.MkdirTemp("", "firezone-lab-")
	if err != nil {
		return "", func() {}, err
	}
	cleanup = func() { os.RemoveAll(dir) }
	begin := time.Now()
	s.progress.Begin("building " + e.what)
	if binary, err = e.build(s.ctx, dir); err != nil {
		s.progress.End("✗ building " + e.what)
		if errors.Is(err, e.noSource) {
			err = fmt.Errorf("%w: run this in the source tree, or name an executable with %s", err, e.flag)
		}
		return "", cleanup, err
	}
	s.progress.End(fmt.Sprintf("✓ built %s (%.1f s)", e.what, time.Since(begin).Seconds()))
	return binary, cleanup, os.Setenv(e.variable, dir)
}
