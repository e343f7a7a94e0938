package tunnel

import (
	"testing"
	"time"
)

func TestTheNextPacketIsToldOnce(t *testing.T) {
	c, count := &Client{}, 0
	c.passed(1)
	c.OnNextPacket(func(at time.Time) {
		if count++; at.UnixNano() != 2 {
			t.Errorf("told of %d", at.UnixNano())
		}
	})
	c.passed(2)
	c.passed(3)
	if count != 1 || c.counters.LastActive.Load() != 3 {
		t.Errorf("told %d times, last active %d", count, c.counters.LastActive.Load())
	}
	c.OnNextPacket(func(time.Time) { t.Error("told although it was cancelled") })
	c.OnNextPacket(nil)
	c.passed(4)
}
