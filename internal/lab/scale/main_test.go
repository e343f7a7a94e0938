package scale

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

var errIsolation error

func TestMain(m *testing.M) {
	errIsolation = labnet.EnsureIsolated()
	goleak.VerifyTestMain(m)
}

// daemon returns the path of a gateway built from source.
func daemon(t *testing.T) string {
	t.Helper()
	err := errIsolation
	if err == nil {
		err = labnet.CheckTUN()
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "scale-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := gateway.Build(context.Background(), filepath.Clean(dir))
	if err != nil {
		t.Fatal(err)
	}
	return binary
}
