package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	module  = "firezone-gateway"
	command = "firezone-gateway"
)

// ErrNoSource says that the gateway's source tree is not at hand.
var ErrNoSource = errors.New("no source tree of " + module + " here")

// Build compiles the gateway from the source tree around the working directory
// into dir, with any further arguments of go build, and returns the path of the
// binary. GOFLAGS and the rest of the environment hold as they do for go build.
func Build(ctx context.Context, dir string, args ...string) (string, error) {
	root, err := sourceTree()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, command)
	args = slices.Concat([]string{"build", "-o", binary}, args, []string{"./cmd/" + command})
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the gateway: %w\n%s", err, bytes.TrimSpace(output))
	}
	return binary, nil
}

// sourceTree returns the directory of the gateway's module at or above the
// working directory.
func sourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		switch {
		case err == nil && isModule(string(content)):
			return dir, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", ErrNoSource
		}
		dir = parent
	}
}

func isModule(modFile string) bool {
	for line := range strings.Lines(modFile) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "module" {
			return fields[1] == module
		}
	}
	return false
}
