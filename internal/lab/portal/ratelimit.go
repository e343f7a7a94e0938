package portal

import (
	"crypto/sha256"
	"time"
)

// rateKeys bounds the number of (address, token) pairs that are remembered.
const rateKeys = 4096

// rateKey names a bucket without keeping the token.
type rateKey [sha256.Size]byte

// rateLimiter is a token bucket per key. A bucket is one instant: that at
// which it will be full again.
type rateLimiter struct {
	interval time.Duration // one token's refill time
	slack    time.Duration // how far the future may be used up
	full     map[rateKey]time.Time
}

func newRateLimiter(limit RateLimit) *rateLimiter {
	interval := time.Duration(float64(time.Second) / limit.PerSecond)
	return &rateLimiter{
		interval: interval,
		slack:    interval * time.Duration(limit.Burst-1),
		full:     make(map[rateKey]time.Time),
	}
}

// allow takes a token from the bucket of an address and a token. When too many
// buckets are in use at once, new ones are refused.
func (l *rateLimiter) allow(addr, token string, now time.Time) bool {
	key := rateKey(sha256.Sum256([]byte(addr + "\x00" + token)))
	at := l.full[key]
	if at.Before(now) {
		at = now
	}
	if at.Sub(now) > l.slack {
		return false
	}
	if _, known := l.full[key]; !known && len(l.full) >= rateKeys {
		l.forgetFull(now)
		if len(l.full) >= rateKeys {
			return false
		}
	}
	l.full[key] = at.Add(l.interval)
	return true
}

func (l *rateLimiter) forgetFull(now time.Time) {
	for key, at := range l.full {
		if !at.After(now) {
			delete(l.full, key)
		}
	}
}
