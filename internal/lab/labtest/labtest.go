// Package labtest runs the tests of packages that put the real daemon into
// namespaces.
package labtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

// builtVariable hands the directory of the daemon on to the process in a user
// namespace.
const builtVariable = "LAB_TEST_BUILT"

var (
	daemon       string
	errIsolation error
)

// Main builds the daemon from source, with any further arguments of go build,
// enters namespaces of its own where the process is not root, runs the tests and
// holds that they leave no goroutine behind. It ends the process. A TestMain calls
// it, last.
func Main(m *testing.M, buildArgs ...string) {
	dir, err := built(buildArgs)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	daemon = filepath.Join(dir, "firezone-gateway")
	errIsolation = labnet.EnsureIsolated()
	if errIsolation == nil {
		errIsolation = labnet.CheckTUN()
	}
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Daemon returns the path of the daemon that Main built.
func Daemon() string { return daemon }

// NeedNamespaces skips a test where namespaces or TUN devices are impossible,
// except in CI, where that is a failure.
func NeedNamespaces(t testing.TB) {
	t.Helper()
	if errIsolation == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(errIsolation)
	}
	t.Skip(errIsolation)
}

// built returns the directory with the daemon, which is built once: before the
// user namespace is entered, where no modules can be fetched.
func built(args []string) (string, error) {
	if dir := os.Getenv(builtVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "lab-test-")
	if err != nil {
		return "", err
	}
	if _, err := gateway.Build(context.Background(), dir, args...); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, os.Setenv(builtVariable, dir)
}
