package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// humanSpan is a positive duration as people write it: 5m, 1h 30m, 30days.
type humanSpan time.Duration

const (
	day   = 24 * time.Hour
	year  = 365*day + 6*time.Hour   // 365.25 days
	month = 2_630_016 * time.Second // 30.44 days
)

var spanUnits = map[string]time.Duration{
	"ns": time.Nanosecond, "nsec": time.Nanosecond,
	"us": time.Microsecond, "usec": time.Microsecond,
	"ms": time.Millisecond, "msec": time.Millisecond,
	"s": time.Second, "sec": time.Second, "secs": time.Second, "second": time.Second, "seconds": time.Second,
	"m": time.Minute, "min": time.Minute, "mins": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hrs": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": day, "day": day, "days": day,
	"w": 7 * day, "wk": 7 * day, "wks": 7 * day, "week": 7 * day, "weeks": 7 * day,
	"M": month, "month": month, "months": month,
	"y": year, "yr": year, "yrs": year, "year": year, "years": year,
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyzM"
)

// UnmarshalText parses whole numbers with units, with or without spaces, and
// adds them up.
func (s *humanSpan) UnmarshalText(text []byte) error {
	total, err := parseSpan(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("duration %q: %w", text, err)
	}
	*s = humanSpan(total)
	return nil
}

// String returns the duration in Go's notation.
func (s humanSpan) String() string { return time.Duration(s).String() }

func parseSpan(rest string) (total time.Duration, err error) {
	for rest != "" {
		var number, name string
		number, rest = lead(rest, digits)
		name, rest = lead(rest, letters)
		unit, known := spanUnits[name]
		switch {
		case number == "":
			return 0, errors.New("expected a number with a unit, as in 24h or 30d")
		case name == "" && rest == "":
			return 0, fmt.Errorf("%s has no unit, use s, m, h, d or w", number)
		case !known:
			return 0, fmt.Errorf("unknown unit after %s, use s, m, h, d or w", number)
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n > int64((math.MaxInt64-total)/unit) {
			return 0, errors.New("longer than 292 years")
		}
		total += time.Duration(n) * unit
	}
	if total == 0 {
		return 0, errors.New("must be longer than zero")
	}
	return total, nil
}

// lead splits off the longest prefix made of set, and the spaces behind it.
func lead(s, set string) (prefix, rest string) {
	rest = strings.TrimLeft(s, set)
	return s[:len(s)-len(rest)], strings.TrimLeft(rest, " ")
}
