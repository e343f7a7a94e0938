package natbox

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"
)

// Line is what a connection does to packets, in each direction. The zero value
// is a perfect one.
type Line struct {
	Latency time.Duration // one way
	Jitter  time.Duration // how far the latency of a packet may be from that, evenly
	Loss    float64       // share of packets that are lost, 0 to 1
	// Reorder is the share of packets that are not delayed and so overtake what
	// is on its way, 0 to 1. Jitter alone never changes the order.
	Reorder float64
	MTU     int // bytes of the largest IP packet; 0 means 1500
}

// minMTU is that of IPv6 (RFC 8200 §5).
const (
	minMTU = 1280
	maxMTU = 1500
)

// Check says what is wrong with a line.
func (l Line) Check() error {
	switch {
	case l.Latency < 0 || l.Jitter < 0 || l.Jitter > l.Latency:
		return fmt.Errorf("line: latency %v with jitter %v", l.Latency, l.Jitter)
	case !(l.Loss >= 0 && l.Loss <= 1):
		return fmt.Errorf("line: loss %v is not within 0 and 1", l.Loss)
	case !(l.Reorder >= 0 && l.Reorder <= 1):
		return fmt.Errorf("line: reorder %v is not within 0 and 1", l.Reorder)
	case l.Reorder > 0 && l.Latency == 0:
		return fmt.Errorf("line: without latency nothing can be overtaken")
	case l.MTU != 0 && (l.MTU < minMTU || l.MTU > maxMTU):
		return fmt.Errorf("line: MTU %d is not within %d and %d", l.MTU, minMTU, maxMTU)
	}
	return nil
}

// Shapes reports whether the line does more to packets than an MTU does.
func (l Line) Shapes() bool { return l.Latency > 0 || l.Loss > 0 }

// Wire is one direction of a Line: packets that are on their way. It is not safe
// for concurrent use.
type Wire struct {
	line    Line
	random  *rand.Rand
	last    time.Time // when the last packet that is in order is due
	serial  uint64
	packets inFlight
}

// maxInFlight bounds the packets on a wire; further ones are lost, as in a router
// whose queue is full. It is what 100 ms hold at 400 Mbit/s.
const maxInFlight = 4096

// NewWire returns a wire without packets.
func NewWire(l Line, seed uint64) *Wire {
	return &Wire{line: l, random: rand.New(rand.NewPCG(seed, ^seed))}
}

// SetLine changes the line for the packets that follow.
func (w *Wire) SetLine(l Line) { w.line = l }

// Send puts a packet on the wire, which keeps it. It reports false for one that
// is lost.
func (w *Wire) Send(packet []byte, now time.Time) bool {
	l := w.line
	if w.random.Float64() < l.Loss || len(w.packets) >= maxInFlight {
		return false
	}
	due := now
	if w.random.Float64() >= l.Reorder {
		due = due.Add(l.Latency)
		if l.Jitter > 0 {
			due = due.Add(time.Duration((2*w.random.Float64() - 1) * float64(l.Jitter)))
		}
		if due.Before(w.last) {
			due = w.last
		}
		w.last = due
	}
	w.serial++
	heap.Push(&w.packets, flight{due: due, serial: w.serial, packet: packet})
	return true
}

// Receive takes the next packet that has arrived off the wire, nil without one.
func (w *Wire) Receive(now time.Time) []byte {
	if len(w.packets) == 0 || w.packets[0].due.After(now) {
		return nil
	}
	return heap.Pop(&w.packets).(flight).packet
}

// Next returns when the next packet arrives; ok is false on an empty wire.
func (w *Wire) Next() (due time.Time, ok bool) {
	if len(w.packets) == 0 {
		return time.Time{}, false
	}
	return w.packets[0].due, true
}

type flight struct {
	due    time.Time
	serial uint64
	packet []byte
}

// inFlight implements heap.Interface: what is due first comes first, and what
// was sent first of those that are due together.
type inFlight []flight

func (f inFlight) Len() int      { return len(f) }
func (f inFlight) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f inFlight) Less(i, j int) bool {
	if !f[i].due.Equal(f[j].due) {
		return f[i].due.Before(f[j].due)
	}
	return f[i].serial < f[j].serial
}

// Push implements heap.Interface.
func (f *inFlight) Push(x any) { *f = append(*f, x.(flight)) }

// Pop implements heap.Interface.
func (f *inFlight) Pop() any {
	old := *f
	last := old[len(old)-1]
	old[len(old)-1] = flight{}
	*f = old[:len(old)-1]
	return last
}
