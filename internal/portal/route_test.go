package portal

import (
	"testing"
	"time"
)

func TestRouteMemory(t *testing.T) {
	at := func(minutes float64) time.Time { return epoch.Add(time.Duration(minutes * float64(time.Minute))) }
	tests := []struct {
		name string
		past func(*RouteMemory)
		now  time.Time
		want Route
	}{
		{"the first attempt begins with the versioned path", func(*RouteMemory) {}, at(0), RouteV2},
		{"a portal that knows the versioned path is asked for it again", func(m *RouteMemory) { m.First(at(0)); m.Worked(RouteV2) }, at(1), RouteV2},
		{"an older portal is asked for the old path", func(m *RouteMemory) { m.First(at(0)); m.Worked(RouteV1) }, at(1), RouteV1},
		{"the token in the query is a last resort, even where it worked", func(m *RouteMemory) { m.First(at(0)); m.Worked(RouteV1Query) }, at(1), RouteV1},
		{"shortly before the end an old path is still used", func(m *RouteMemory) { m.First(at(0)); m.Worked(RouteV1) }, at(9.99), RouteV1},
		{"the versioned path is tried again in the end", func(m *RouteMemory) { m.First(at(0)); m.Worked(RouteV1) }, at(10), RouteV2},
		{"a connection that flaps on an old path does not put that off", func(m *RouteMemory) {
			for minute := range 10 {
				m.First(at(float64(minute)))
				m.Worked(RouteV1)
			}
		}, at(10), RouteV2},
		{"a portal that still is an old one is left alone for as long again", func(m *RouteMemory) {
			for _, minute := range []float64{0, 10} {
				m.First(at(minute))
				m.Worked(RouteV1)
			}
		}, at(19), RouteV1},
		{"a portal that refuses on an old path is asked for the versioned one", func(m *RouteMemory) {
			m.First(at(0))
			m.Worked(RouteV1)
			m.First(at(1))
			m.Refused()
		}, at(2), RouteV2},
		{"a portal that was updated is not asked for the old path again", func(m *RouteMemory) {
			m.First(at(0))
			m.Worked(RouteV1)
			m.First(at(1))
			m.Worked(RouteV2)
		}, at(2), RouteV2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m RouteMemory
			tt.past(&m)
			if got := m.First(tt.now); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
