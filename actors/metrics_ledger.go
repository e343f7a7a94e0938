package actors

// ledger adds up the counters of things that come and go, so that the sums only
// grow. Something that has gone is read one last time at the next look; what came
// and went between two looks is not noticed.
type ledger[K comparable] struct {
	read func(k K, into []uint64) // adds the counters of k
	gone []uint64
	live map[K]struct{}
	next map[K]struct{} // empty between looks
}

func newLedger[K comparable](columns int, read func(K, []uint64)) *ledger[K] {
	return &ledger[K]{read: read, gone: make([]uint64, columns), live: map[K]struct{}{}, next: map[K]struct{}{}}
}

// total returns the sums over what each yields and what has gone.
func (l *ledger[K]) total(each func(func(K))) []uint64 {
	sum := make([]uint64, len(l.gone))
	each(func(k K) {
		l.next[k] = struct{}{}
		delete(l.live, k)
		l.read(k, sum)
	})
	for k := range l.live {
		l.read(k, l.gone)
	}
	clear(l.live)
	l.live, l.next = l.next, l.live
	for i, n := range l.gone {
		sum[i] += n
	}
	return sum
}
