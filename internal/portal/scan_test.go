package portal

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
)

func TestScannerAgreesWithTheStandardLibrary(t *testing.T) {
	for _, text := range []string{
		``, ` `, `{`, `}`, `{}`, ` { } `, `[]`, `[ ]`, `[1,2]`, `[1,]`, `[,1]`, `[1 2]`, `[1`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{1:2}`, `{"a":1 "b":2}`,
		`{"a":1,"b":[{"c":null}]}`, `{"a":1}x`, `{"a":1}{}`, "{\"a\":1}\x00", `null`, `nul`, `nulll`, `true`, `tru`, `false`, `fals`, `True`, `NaN`,
		`0`, `-0`, `01`, `-`, `+1`, `1.`, `.5`, `1.5`, `1e3`, `1E+3`, `1e-`, `1e`, `--1`, `0x1`, `12345678901234567890123`,
		`""`, `"`, `"a`, `"a\`, `"\"`, `"\n\t\"\\\/\b\f\r"`, `"\x"`, `"\u00e9"`, `"\u00e"`, `"\u00g0"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ude00\ud83d"`, "\"a\nb\"", "\"\x7f\"", "\"\x1f\"", `"é€😀"`,
		`{"a":1,"a":2}`, `{"\u0061":1}`, "\t\r\n [ 1 ,\n2 ] ", "\v1", "\u00a01",
	} {
		agree(t, []byte(text))
	}
}

// FuzzScanner compares the scanner with the standard library: both accept the
// same texts, apart from the bound of nesting, and read the same values.
func FuzzScanner(f *testing.F) { fuzzScanner(f) }

func TestHammerScanner(t *testing.T) { hammer.Test(t, "FuzzScanner", fuzzScanner) }

func fuzzScanner(f hammer.F) {
	f.Add([]byte(`{"a":[1,-2.5e+3,true,null,"\u00e9\\"],"b":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if utf8.Valid(text) {
			agree(t, text)
		}
	})
}

func agree(t *testing.T, text []byte) {
	t.Helper()
	s := scanner{b: text}
	got := tree(&s)
	err := s.end()
	valid := json.Valid(text)
	if valid != (err == nil) && !(valid && nesting(text) > maxDepth) {
		t.Fatalf("%q: error %v, valid is %v", text, err, valid)
	}
	if err != nil {
		if !s.broken {
			t.Fatalf("%q: %v is no error of syntax", text, err)
		}
		return
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var want any
	if err := d.Decode(&want); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%q: got %#v, want %#v, %v", text, got, want, err)
	}
	skipping := scanner{b: text}
	if raw := skipping.raw(); skipping.end() != nil || !bytes.Equal(raw, bytes.Trim(text, " \t\r\n")) {
		t.Fatalf("%q: raw is %q", text, raw)
	}
}

// tree reads any value the way that the standard library shows it.
func tree(s *scanner) any {
	switch c := s.peek(); c {
	case '{':
		m := map[string]any{}
		for key := range s.fields {
			m[string(key)] = tree(s)
		}
		return m
	case '[':
		l := []any{}
		for range s.list {
			l = append(l, tree(s))
		}
		return l
	case '"':
		return string(s.quoted())
	case 't', 'f':
		return s.boolean()
	case 'n':
		s.null()
		return nil
	default:
		return json.Number(s.raw())
	}
}

// nesting returns how deep a valid text is nested.
func nesting(text []byte) (deepest int) {
	d := json.NewDecoder(bytes.NewReader(text))
	depth := 0
	for {
		token, err := d.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		deepest = max(deepest, depth)
	}
}

func TestNestingIsBounded(t *testing.T) {
	nest := func(depth int) string {
		return `{"event":"other","payload":{},"x":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + `}`
	}
	if _, err := DecodeFrame([]byte(nest(maxDepth))); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
	for _, bad := range []string{nest(maxDepth + 1), nest(1_000_000), `{"event":"init","payload":` + strings.Repeat(`{"a":`, 1_000_000)} {
		_, err := DecodeFrame([]byte(bad))
		var d *DecodeError
		if !errors.As(err, &d) || d.Reason != drop.FrameMalformed {
			t.Errorf("%.40s: error %v", bad, err)
		}
	}
	// Decode meets the bound by itself, also where it gives elements up.
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	if _, _, err := Decode(Frame{Event: "relays_presence", Payload: []byte(`{"connected":[` + deep + `]}`)}); err == nil {
		t.Error("an element that is nested too deeply was skipped")
	}
}

func TestOfARepeatedKeyTheLastCounts(t *testing.T) {
	resourceWith := func(filters string) string {
		return `{"id":"r","type":"dns","address":"a",` + filters + `}`
	}
	for _, tt := range []struct {
		name, filters string
		want          []Filter
	}{
		{"a narrower list after a wider one", `"filters":[],"filters":[{"protocol":"icmp"}]`, []Filter{{Protocol: FilterICMP}}},
		{"lists are not merged", `"filters":[{"protocol":"tcp"}],"filters":[{"protocol":"icmp"}]`, []Filter{{Protocol: FilterICMP}}},
		{"an unknown filter after a known one admits nothing", `"filters":[{"protocol":"tcp"}],"filters":[{"protocol":"gre"}]`, []Filter{{Protocol: FilterNone}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, _, err := resource(resourceWith(tt.filters))
			if err != nil || !reflect.DeepEqual(r.Filters, tt.want) {
				t.Errorf("got %v, %v", r.Filters, err)
			}
		})
	}
	t.Run("null after a list is a missing list", func(t *testing.T) {
		if r, _, err := resource(resourceWith(`"filters":[],"filters":null`)); err == nil {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("objects are not merged", func(t *testing.T) {
		client := strings.Replace(clientJSON, `"preshared_key"`, `"other_key"`, 1)
		payload := strings.Replace(authorizeJSON(dnsResource, client, ""), `"client":`, `"client":`+clientJSON+`,"client":`, 1)
		if m, _, err := Decode(Frame{Event: "create_authorization", Payload: []byte(payload)}); err == nil {
			t.Errorf("got %+v", m)
		}
		payload = strings.Replace(requestConnection, `"domain":{"name":"x","proxy_ips":["100.96.0.1"]}}`, `"domain":null},"payload":{}`, 1)
		if m, _, err := Decode(Frame{Event: "request_connection", Payload: []byte(payload)}); err == nil {
			t.Errorf("got %+v", m)
		}
	})
	t.Run("in the envelope", func(t *testing.T) {
		f, err := DecodeFrame([]byte(`{"event":"a","ref":1,"payload":1,"event":"b","ref":null,"payload":2}`))
		if err != nil || f.Event != "b" || f.HasRef || string(f.Payload) != "2" {
			t.Errorf("got %+v, %v", f, err)
		}
	})
}

func TestKeysAndTextsMayHaveEscapes(t *testing.T) {
	m, _, err := Decode(Frame{Event: "reject_access", Payload: []byte(`{"client\u005fid":"\u0061","resource_id":"b\u002dc"}`)})
	if err != nil || m != (RejectAccess{"a", "b-c"}) {
		t.Errorf("got %v, %v", m, err)
	}
	if m, _, err := Decode(Frame{Event: "reject_access", Payload: []byte(`{"Client_ID":"a","resource_id":"b"}`)}); err == nil {
		t.Errorf("a key in another case gave %v", m)
	}
	if _, _, err := Decode(Frame{Event: "disconnect", Payload: []byte("{\"reason\":\"\xff\"}")}); err == nil {
		t.Error("a payload that is not UTF-8 was accepted")
	}
}

func TestMessagesAreBounded(t *testing.T) {
	long := authorizeJSON(strings.Replace(dnsResource, `"hosts"`, `"`+strings.Repeat("ä", 1000)+`"`, 1), clientJSON, "")
	m, _, err := Decode(Frame{Event: "create_authorization", Payload: []byte(long)})
	if err != nil {
		t.Fatal(err)
	}
	if name := m.(Authorize).Resource.Name; len(name) != maxPattern || !utf8.ValidString(name) {
		t.Errorf("a name of %d bytes", len(name))
	}
	for n, good := range map[int]bool{maxRef: true, maxRef + 1: false} {
		payload := strings.Replace(authorizeJSON(dnsResource, clientJSON, ""), "SFMyNTY.opaque", strings.Repeat("x", n), 1)
		if _, _, err := Decode(Frame{Event: "create_authorization", Payload: []byte(payload)}); (err == nil) != good {
			t.Errorf("a ref of %d bytes: %v", n, err)
		}
	}
}

func TestMessagesShareNothingWithTheFrame(t *testing.T) {
	for _, in := range mixture() {
		want := NewSession(epoch)
		want.Receive(bytes.Clone(in), epoch)
		got := NewSession(epoch)
		overwritten := bytes.Clone(in)
		got.Receive(overwritten, epoch)
		for i := range overwritten {
			overwritten[i] = '!'
		}
		if g, w := events(got), events(want); !reflect.DeepEqual(g, w) {
			t.Fatalf("got %+v, want %+v", g, w)
		}
	}
}

func TestDecodingAllocatesLittle(t *testing.T) {
	for event, limit := range map[string]float64{"authorize_flow": 16, "ice_candidates": 6, "reject_access": 5} {
		s := NewSession(epoch)
		var frame []byte
		for _, f := range mixture() {
			if bytes.Contains(f, []byte(`"event":"`+event+`"`)) {
				frame = f
				break
			}
		}
		if n := testing.AllocsPerRun(100, func() { receiveOne(t, s, frame) }); n > limit {
			t.Errorf("%s: %v allocations, at most %v are needed", event, n, limit)
		}
	}
}
