package labnet_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	labnet "firezone-gateway/internal/lab/net"
)

// errIsolation is why namespaces are impossible here, nil where they work.
var errIsolation error

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case childArgument:
			os.Exit(child())
		case isolatedArgument:
			os.Exit(isolate())
		}
	}
	errIsolation = labnet.EnsureIsolated()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// requireNamespaces skips a test where namespaces are impossible, except in
// CI, where that is a failure.
func requireNamespaces(t *testing.T) {
	t.Helper()
	if errIsolation == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(errIsolation)
	}
	t.Skip(errIsolation)
}
