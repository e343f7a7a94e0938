package main

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"testing"
	"time"
)

func TestHumanSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"5m": 5 * time.Minute, "1h": time.Hour, "30d": 30 * day, "24h": day, "1h30m": 90 * time.Minute,
		" 1h  30 min ": 90 * time.Minute, "2weeks": 14 * day, "2 weeks": 14 * day, "1day 12hours": 36 * time.Hour,
		"90s": 90 * time.Second, "1ms": time.Millisecond, "7us": 7 * time.Microsecond, "1ns": 1, "1s1s": 2 * time.Second,
		"1M": 2630016 * time.Second, "1y": 8766 * time.Hour, "0h5m": 5 * time.Minute, "007s": 7 * time.Second,
		"9223372036854775807ns": math.MaxInt64,
	} {
		var s humanSpan
		if err := s.UnmarshalText([]byte(text)); err != nil || time.Duration(s) != want {
			t.Errorf("%q = %v, %v; want %v", text, s, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "5", "m", "5x", "5 5m", "-5m", "+5m", "1.5h", "5mm", "5Min", "0", "0s", "0d 0s", "5m,1s", "５m", "1h\t30m",
		"9223372036854775808ns", "293y", "99999999999999999999s", "292y 999y", "15251w", "2147483647w", "9223372036854775807ns1ns",
	} {
		var s humanSpan
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q = %v, want an error", text, s)
		} else if s != 0 {
			t.Errorf("%q: value is %v after an error", text, s)
		}
	}
}

// FuzzHumanSpan compares what is accepted with unbounded arithmetic.
func FuzzHumanSpan(f *testing.F) {
	for _, text := range []string{"5m", "1h 30m", "30d", "2147483647w", "9223372036854775807ns1ns", "0s", "15250w 6 d", "1M1m"} {
		f.Add(text)
	}
	part := regexp.MustCompile(`(\d+) *([a-zA-Z]+)`)
	f.Fuzz(func(t *testing.T, text string) {
		var s humanSpan
		if s.UnmarshalText([]byte(text)) != nil {
			return
		}
		want := new(big.Int)
		for _, m := range part.FindAllStringSubmatch(text, -1) {
			n, _ := new(big.Int).SetString(m[1], 10)
			want.Add(want, n.Mul(n, big.NewInt(int64(spanUnits[m[2]]))))
		}
		if s <= 0 || want.Cmp(big.NewInt(int64(s))) != 0 {
			t.Errorf("%q = %d, want %v", text, s, want)
		}
		var again humanSpan
		if err := again.UnmarshalText(fmt.Appendf(nil, "%dns", s)); err != nil || again != s {
			t.Errorf("%dns = %v, %v", s, again, err)
		}
	})
}
