package chaos

import (
	"flag"
	"strconv"
	"testing"

	"firezone-gateway/internal/lab/labtest"
)

// waiting is how many deployments are up at the same time that wait for back-off
// most of the time, where the command line does not say. Those under load are
// alone.
const waiting = 8

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(waiting)); err != nil {
			panic(err) // the flag exists
		}
	}
	labtest.Main(m)
}
