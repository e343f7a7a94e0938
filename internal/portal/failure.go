package portal

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
)

// Failure is the judgement on one refused or broken attempt. The zero value is
// an ordinary transient failure, such as one of TCP or TLS.
type Failure struct {
	Status       int    // HTTP status, zero if none was received
	Fatal        bool   // never try again: the credentials are refused
	TokenInvalid bool   // fatal because the token is invalid or missing
	Code         string // of a problem body, may be empty
	Detail       string // of a problem body, may be empty; printable, bounded

	// RetryAfter is the delay that the portal asked for. It is meaningful if
	// HasRetryAfter, and may be zero then.
	RetryAfter    time.Duration
	HasRetryAfter bool

	// HeaderIgnored says that the portal did not see the token in the header,
	// as portals do that predate it (§5.5). RouteV1Query is worth a try.
	HeaderIgnored bool
}

// MaxRetryAfter caps the delay that a portal can ask for, so that a wrong clock
// can not put a gateway to sleep for years.
const MaxRetryAfter = 24 * time.Hour

// ClassifyHTTP judges a refused upgrade (§2.3): 401 is fatal, every other status
// is retried. The keys of header are canonical. body may be cut short. now is
// what an HTTP date in Retry-After is compared with.
func ClassifyHTTP(status int, header map[string][]string, body []byte, now time.Time) Failure {
	f := Failure{Status: status}
	media, _, _ := strings.Cut(first(header["Content-Type"]), ";")
	problem := strings.EqualFold(strings.TrimSpace(media), "application/problem+json")
	if problem {
		var p struct{ Code, Detail string }
		if json.Unmarshal(body, &p) == nil {
			f.Code, f.Detail = printable(p.Code, maxText), printable(p.Detail, maxText)
		}
	}
	if status == 401 {
		f.Fatal = true
		f.TokenInvalid = f.Code == "invalid_token" || f.Code == "missing_token"
		if !problem {
			// The wording of portals without problem bodies (§2.4).
			text := strings.TrimSpace(string(body))
			f.HeaderIgnored = text == "Missing token"
			f.TokenInvalid = f.HeaderIgnored || text == "Invalid token"
		}
		return f
	}
	f.RetryAfter, f.HasRetryAfter = ParseRetryAfter(first(header["Retry-After"]), now)
	return f
}

// String describes f for an operator.
func (f Failure) String() string {
	switch {
	case f.TokenInvalid:
		return "token invalid"
	case f.Fatal:
		detail := f.Detail
		if detail == "" {
			detail = "no reason provided"
		}
		return "authentication failed: " + detail
	case f.Status == 0:
		return "connection failed"
	}
	s := "HTTP status " + strconv.Itoa(f.Status)
	if f.Code != "" {
		s += " (" + f.Code + ")"
	}
	return s
}

// ParseRetryAfter parses the value of a Retry-After header (RFC 9110 §10.2.3):
// seconds or an HTTP date. A date in the past yields zero, a delay above
// MaxRetryAfter yields that. ok is false for anything else.
func ParseRetryAfter(value string, now time.Time) (delay time.Duration, ok bool) {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0, false
	}
	if strings.Trim(value, "0123456789") == "" {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n > math.MaxInt64/uint64(time.Second) {
			return MaxRetryAfter, true
		}
		return min(time.Duration(n)*time.Second, MaxRetryAfter), true
	}
	// The three forms of RFC 9110 §5.6.7, the preferred one first.
	for _, layout := range []string{"Mon, 02 Jan 2006 15:04:05 GMT", "Monday, 02-Jan-06 15:04:05 GMT", time.ANSIC} {
		if t, err := time.Parse(layout, value); err == nil {
			return min(max(t.Sub(now), 0), MaxRetryAfter), true
		}
	}
	return 0, false
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
