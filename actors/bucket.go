package actors

import (
	"sync/atomic"
	"time"
)

// bucket admits a number of things at once, and from then on one for each interval
// (a token bucket, kept as the time at which it will be full again). It may be used
// by any number of goroutines and allocates nothing.
type bucket struct {
	interval, depth int64        // nanoseconds for one, and for all of them
	full            atomic.Int64 // when it is full again, Unix nanoseconds
}

func newBucket(burst int, interval time.Duration) *bucket {
	return &bucket{interval: int64(interval), depth: int64(burst) * int64(interval)}
}

// take reports whether one more is admitted at now, in Unix nanoseconds.
func (b *bucket) take(now int64) bool {
	for {
		full := b.full.Load()
		next := max(full, now) + b.interval
		if next-now > b.depth {
			return false
		}
		if b.full.CompareAndSwap(full, next) {
			return true
		}
	}
}
