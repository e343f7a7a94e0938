package natmatrix

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

// builtVariable hands the daemon on to the process in a user namespace.
const builtVariable = "LAB_NATMATRIX_TEST_BUILT"

var (
	daemon       string
	errIsolation error // why a cell is impossible here, nil where it is not
)

func TestMain(m *testing.M) {
	dir, err := built()
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

// built returns the directory with the daemon, which is built once: before the
// user namespace is entered, where no modules can be fetched.
func built() (string, error) {
	if dir := os.Getenv(builtVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "natmatrix-test-")
	if err != nil {
		return "", err
	}
	if _, err := gateway.Build(context.Background(), dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, os.Setenv(builtVariable, dir)
}
