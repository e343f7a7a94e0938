package natmatrix

import (
	"testing"

	"firezone-gateway/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }
