package portal

import (
	"fmt"
	"testing"
	"time"
)

func TestClassifyHTTP(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	problem := map[string][]string{"Content-Type": {"application/problem+json; charset=utf-8"}}
	text := map[string][]string{"Content-Type": {"text/plain"}}
	tests := []struct {
		name   string
		status int
		header map[string][]string
		body   string
		want   Failure
		text   string
	}{
		{"rule 15: an invalid token is fatal", 401, problem, `{"status":401,"detail":"Invalid token","code":"invalid_token"}`,
			Failure{Status: 401, Fatal: true, TokenInvalid: true, Code: "invalid_token", Detail: "Invalid token"}, "token invalid"},
		{"rule 15: another 401 is fatal", 401, problem, `{"detail":"Account disabled","code":"account_disabled"}`,
			Failure{Status: 401, Fatal: true, Code: "account_disabled", Detail: "Account disabled"}, "authentication failed: Account disabled"},
		{"rule 15: a 401 without a body is fatal", 401, nil, "", Failure{Status: 401, Fatal: true}, "authentication failed: no reason provided"},
		{"a 401 with a body that is cut short is fatal", 401, problem, `{"detail":"Inv`, Failure{Status: 401, Fatal: true}, "authentication failed: no reason provided"},
		{"an old portal's invalid token", 401, text, "Invalid token\n", Failure{Status: 401, Fatal: true, TokenInvalid: true}, "token invalid"},
		{"an old portal did not see the header", 401, text, "Missing token", Failure{Status: 401, Fatal: true, TokenInvalid: true, HeaderIgnored: true}, "token invalid"},
		{"a portal that reads the header misses the token", 401, problem, `{"code":"missing_token"}`,
			Failure{Status: 401, Fatal: true, TokenInvalid: true, Code: "missing_token"}, "token invalid"},
		{"a second gateway is retried", 409, problem, `{"code":"gateway_already_connected"}`,
			Failure{Status: 409, Code: "gateway_already_connected"}, "HTTP status 409 (gateway_already_connected)"},
		{"rule 17: the rate limit names its delay", 503, map[string][]string{"Retry-After": {"1"}}, "",
			Failure{Status: 503, RetryAfter: time.Second, HasRetryAfter: true}, "HTTP status 503"},
		{"rule 17: any status may name a delay", 404, map[string][]string{"Retry-After": {"30"}}, "",
			Failure{Status: 404, RetryAfter: 30 * time.Second, HasRetryAfter: true}, "HTTP status 404"},
		{"a 401 has no delay", 401, map[string][]string{"Retry-After": {"30"}}, "", Failure{Status: 401, Fatal: true}, "authentication failed: no reason provided"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ClassifyHTTP(tt.status, tt.header, []byte(tt.body), now)
			if got != tt.want {
				t.Errorf("got %#v", got)
			}
			if got.String() != tt.text {
				t.Errorf("text %q", got)
			}
		})
	}
	for _, status := range []int{101, 200, 301, 302, 400, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503} {
		t.Run(fmt.Sprintf("rule 16: %d is retried", status), func(t *testing.T) {
			if f := ClassifyHTTP(status, nil, nil, now); f != (Failure{Status: status}) {
				t.Errorf("got %#v", f)
			}
		})
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name, value string
		want        time.Duration
		ok          bool
	}{
		{"seconds", "30", 30 * time.Second, true},
		{"zero", "0", 0, true},
		{"white space", " 5 ", 5 * time.Second, true},
		{"a delay that overflows", "99999999999999999999", MaxRetryAfter, true},
		{"a delay of years", "999999999", MaxRetryAfter, true},
		{"a date", "Sat, 01 Aug 2026 12:00:30 GMT", 30 * time.Second, true},
		{"a date in RFC 850 form", "Saturday, 01-Aug-26 12:00:30 GMT", 30 * time.Second, true},
		{"a date in asctime form", "Sat Aug  1 12:00:30 2026", 30 * time.Second, true},
		{"a date in the past", "Sat, 01 Aug 2026 11:00:00 GMT", 0, true},
		{"a date in another age", "Fri, 01 Aug 9026 11:00:00 GMT", MaxRetryAfter, true},
		{"nothing", "", 0, false},
		{"a negative number", "-1", 0, false},
		{"a fraction", "1.5", 0, false},
		{"text", "soon", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := ParseRetryAfter(tt.value, now); got != tt.want || ok != tt.ok {
				t.Errorf("got %v, %v", got, ok)
			}
		})
	}
}
