package traces

import (
	"errors"
	"os"
	"testing"

	"firezone-gateway/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// needCollector builds the Collector. Where its modules cannot be fetched, which
// is so in a user namespace with an empty module cache, the test is skipped,
// except in CI.
func needCollector(t *testing.T) string {
	t.Helper()
	binary, err := Build(t.Context(), t.TempDir())
	switch {
	case errors.Is(err, ErrNoModules) && os.Getenv("CI") != "true":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	return binary
}
