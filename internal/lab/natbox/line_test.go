package natbox

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"
)

// journey sends n numbered packets, one a millisecond, and returns the numbers
// in the order of arrival and how long each took.
func journey(t *testing.T, l Line, n int) (order []int, took map[int]time.Duration) {
	t.Helper()
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	w, now := NewWire(l, 7), start
	sent := make([]time.Time, n)
	took = map[int]time.Duration{}
	receive := func() {
		for p := w.Receive(now); p != nil; p = w.Receive(now) {
			i := int(binary.BigEndian.Uint32(p))
			order, took[i] = append(order, i), now.Sub(sent[i])
		}
	}
	for i := range n {
		sent[i] = now
		w.Send(binary.BigEndian.AppendUint32(nil, uint32(i)), now)
		receive()
		now = now.Add(time.Millisecond)
	}
	for due, ok := w.Next(); ok; due, ok = w.Next() {
		now = due
		receive()
	}
	return order, took
}

func TestALineDelaysAndKeepsTheOrder(t *testing.T) {
	const n = 2000
	order, took := journey(t, Line{Latency: 50 * time.Millisecond, Jitter: 20 * time.Millisecond}, n)
	if len(order) != n || !slices.IsSorted(order) {
		t.Fatalf("%d packets arrived, in order: %v", len(order), slices.IsSorted(order))
	}
	var least, most, sum time.Duration = time.Hour, 0, 0
	for _, d := range took {
		least, most, sum = min(least, d), max(most, d), sum+d
	}
	// Time passes in steps of a millisecond; waiting for one's turn makes the
	// average more than the latency.
	if least < 30*time.Millisecond || most > 71*time.Millisecond || sum/n < 50*time.Millisecond || sum/n > 71*time.Millisecond {
		t.Errorf("took %v to %v, %v on average", least, most, sum/n)
	}
	if most-least < 20*time.Millisecond {
		t.Errorf("took %v to %v: hardly any jitter", least, most)
	}
}

func TestALineLosesItsShare(t *testing.T) {
	const n = 20000
	order, _ := journey(t, Line{Loss: 0.01}, n)
	if share := 1 - float64(len(order))/n; math.Abs(share-0.01) > 0.003 {
		t.Errorf("%.2f %% were lost", share*100)
	}
}

func TestALineReordersItsShare(t *testing.T) {
	const n = 20000
	order, took := journey(t, Line{Latency: 50 * time.Millisecond, Reorder: 0.05}, n)
	if len(order) != n {
		t.Fatalf("%d packets arrived", len(order))
	}
	early := 0
	for _, d := range took {
		if d < 50*time.Millisecond {
			early++
		}
	}
	if share := float64(early) / n; math.Abs(share-0.05) > 0.01 {
		t.Errorf("%.2f %% overtook others", share*100)
	}
	if slices.IsSorted(order) {
		t.Error("the order is kept")
	}
}

func TestAPerfectLineIsOne(t *testing.T) {
	w := NewWire(Line{}, 1)
	for _, word := range []string{"a", "b", "c"} {
		w.Send([]byte(word), start)
	}
	for _, want := range []string{"a", "b", "c"} {
		if got := string(w.Receive(start)); got != want {
			t.Fatalf("%q arrives, want %q", got, want)
		}
	}
	if w.Receive(start) != nil {
		t.Error("more arrives than was sent")
	}
}

func TestAWireIsBounded(t *testing.T) {
	w := NewWire(Line{Latency: time.Second}, 1)
	for i := range maxInFlight {
		if !w.Send([]byte{1}, start) {
			t.Fatalf("packet %d is lost", i)
		}
	}
	if w.Send([]byte{1}, start) {
		t.Error("a packet too many is on its way")
	}
	w.SetLine(Line{})
	if w.Receive(start.Add(time.Second)) == nil || !w.Send([]byte{2}, start) {
		t.Error("there is no room after an arrival")
	}
	for p := w.Receive(start.Add(time.Second)); p != nil; p = w.Receive(start.Add(time.Second)) {
	}
	if due, ok := w.Next(); ok {
		t.Errorf("something is due at %v on an empty wire", due)
	}
}

func TestLinesThatCannotBe(t *testing.T) {
	for name, l := range map[string]Line{
		"a latency below 0":            {Latency: -1},
		"a jitter above the latency":   {Latency: 1, Jitter: 2},
		"a loss above 1":               {Loss: 1.1},
		"a loss that is no number":     {Loss: math.NaN()},
		"a share below 0":              {Latency: 1, Reorder: -0.1},
		"re-ordering without latency":  {Reorder: 0.1},
		"an MTU too small for IPv6":    {MTU: 1279},
		"an MTU above that of the lab": {MTU: 9000},
	} {
		if l.Check() == nil {
			t.Errorf("%s passes", name)
		}
	}
	if (Line{MTU: 1300}).Shapes() || !(Line{Loss: 0.1}).Shapes() || !(Line{Latency: 1}).Shapes() {
		t.Error("what shapes is wrong")
	}
}
