package packet

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/packet/packettest"
)

const (
	resourceID = "f2f2e8a6-6d1e-4f0a-9c53-0a5a3a4f1b77"
	zeros32    = "0000000000000000000000000000000000000000000000000000000000000000"
)

func TestGoodbyeOnTheWire(t *testing.T) {
	got := AppendGoodbye([]byte("head"))
	want := "68656164" + "60000000" + "0008" + "ff" + "00" + zeros32 + "0200000000000000"
	if hex.EncodeToString(got) != want || len(got) != 4+48 {
		t.Errorf("got %x, want %s (rules 44, 45)", got, want)
	}
	mustParse(t, got[4:])
}

func TestControlPacketsAreRecognised(t *testing.T) {
	goodbye := AppendGoodbye(nil)
	tests := []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"goodbye", goodbye, true},
		{"an unknown type", edit(goodbye, 40, 9), true},
		{"a hop limit", edit(goodbye, 7, 64), true},
		{"traffic class and flow label", edit(goodbye, 0, 0x6f, 0xff, 0xff, 0xff), true},
		{"reserved bytes that are not zero", edit(goodbye, 41, 1, 2, 3, 4, 5, 6, 7), true},
		{"seven payload bytes", goodbye[:47], false},
		{"another next header", edit(goodbye, 6, 254), false},
		{"a source", edit(goodbye, 8, 1), false},
		{"the last byte of the source", edit(goodbye, 23, 1), false},
		{"a destination", edit(goodbye, 24, 1), false},
		{"the last byte of the destination", edit(goodbye, 39, 1), false},
		{"IPv4", edit(goodbye, 0, 0x40), false},
		{"nothing", nil, false},
		{"an ordinary packet", packettest.UDP(from6, to6, nil), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := IsControl(tt.packet); got != tt.want {
				t.Errorf("IsControl %v, want %v (rule 44)", got, tt.want)
			}
			if _, _, ok := ParseControl(tt.packet); ok != tt.want {
				t.Errorf("ParseControl %v, want %v", ok, tt.want)
			}
		})
	}
}

func TestControlBodyIsBounded(t *testing.T) {
	body := bytes.Repeat([]byte("x"), MaxControlBody)
	p := AppendControl(nil, AssignedIPs, body)
	if len(p) != MaxSize {
		t.Fatalf("largest control packet has %d bytes", len(p))
	}
	mustParse(t, p)
	if typ, got, ok := ParseControl(p); !ok || typ != AssignedIPs || !bytes.Equal(got, body) {
		t.Error("body does not come back")
	}
	if got := AppendControl([]byte("head"), AssignedIPs, append(body, 'x')); string(got) != "head" {
		t.Errorf("a body above the limit made %d bytes", len(got))
	}
}

func TestEventsOnTheWire(t *testing.T) {
	assigned := AssignedIPsEvent{
		Resource: resourceID, Domain: "example.com",
		ProxyIPs: []netip.Addr{netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd00:2021:1111:8000::")},
	}
	p, err := AppendAssignedIPs(nil, assigned)
	if err != nil {
		t.Fatal(err)
	}
	typ, body, _ := ParseControl(p)
	want := `{"resource":"` + resourceID + `","domain":"example.com","proxy_ips":["100.96.0.1","fd00:2021:1111:8000::"]}`
	if typ != AssignedIPs || string(body) != want {
		t.Errorf("type %v body %s, want %s", typ, body, want)
	}

	for status, name := range map[Status]string{Active: "Active", Inactive: "Inactive"} {
		p, err := AppendDomainStatus(nil, DomainStatusEvent{Resource: resourceID, Domain: "example.com", Status: status})
		if err != nil {
			t.Fatal(err)
		}
		typ, body, _ := ParseControl(p)
		want := `{"resource":"` + resourceID + `","domain":"example.com","status":"` + name + `"}`
		if typ != DomainStatus || string(body) != want {
			t.Errorf("type %v body %s, want %s (rule 49)", typ, body, want)
		}
		if e, err := DecodeDomainStatus(body); err != nil || e.Status != status || e.Domain != "example.com" || e.Resource != resourceID {
			t.Errorf("decoded %+v, %v", e, err)
		}
	}

	p, err = AppendAssignedIPs(nil, AssignedIPsEvent{Resource: resourceID, Domain: "a"})
	if _, body, _ := ParseControl(p); err != nil || !strings.HasSuffix(string(body), `"proxy_ips":[]}`) {
		t.Errorf("without addresses: %s, %v", body, err)
	}
	if _, err := AppendAssignedIPs(nil, AssignedIPsEvent{Domain: strings.Repeat("x", MaxControlBody)}); err == nil {
		t.Error("an event larger than a packet was encoded")
	}
}

func TestDecodeAssignedIPs(t *testing.T) {
	with := func(resource, domain, ips string) string {
		return `{"resource":` + resource + `,"domain":` + domain + `,"proxy_ips":` + ips + `}`
	}
	id := `"` + resourceID + `"`
	tests := []struct {
		name, body string
		domain     string // empty: refused
	}{
		{"the usual form", with(id, `"example.com"`, `["100.96.0.1"]`), "example.com"},
		{"unknown keys", `{"x":{"y":[1]},"resource":` + id + `,"domain":"example.com","proxy_ips":[]}`, "example.com"},
		{"another order of keys", `{"proxy_ips":[],"domain":"example.com","resource":` + id + `}`, "example.com"},
		{"a trailing dot", with(id, `"example.com."`, `[]`), "example.com"},
		{"an underscore", with(id, `"_sip._tcp.example.com"`, `[]`), "_sip._tcp.example.com"},
		{"capitals in the resource", with(strings.ToUpper(id), `"a"`, `[]`), "a"},
		{"a label of 63", with(id, `"`+strings.Repeat("a", 63)+`"`, `[]`), strings.Repeat("a", 63)},
		{"a label of 64", with(id, `"`+strings.Repeat("a", 64)+`"`, `[]`), ""},
		{"a name of 255", with(id, `"`+strings.Repeat("a.", 127)+`a"`, `[]`), ""},
		{"an empty name", with(id, `""`, `[]`), ""},
		{"the root", with(id, `"."`, `[]`), ""},
		{"an empty label", with(id, `"a..b"`, `[]`), ""},
		{"a space", with(id, `"a b"`, `[]`), ""},
		{"a line feed", with(id, `"a\nb"`, `[]`), ""},
		{"beyond ASCII", with(id, `"ä"`, `[]`), ""},
		{"a resource that is no UUID", with(`"internet"`, `"a"`, `[]`), ""},
		{"no resource", `{"domain":"a","proxy_ips":[]}`, ""},
		{"no addresses", `{"resource":` + id + `,"domain":"a"}`, ""},
		{"null for addresses", with(id, `"a"`, `null`), ""},
		{"an empty address", with(id, `"a"`, `[""]`), ""},
		{"a name for an address", with(id, `"a"`, `["secret.example"]`), ""},
		{"an address with a zone", with(id, `"a"`, `["fe80::1%eth0"]`), ""},
		{"a number for a domain", with(id, `1`, `[]`), ""},
		{"trailing bytes", with(id, `"a"`, `[]`) + "\x00", ""},
		{"cut short", with(id, `"a"`, `[]`)[:40], ""},
		{"nothing", "", ""},
		{"null", "null", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := DecodeAssignedIPs([]byte(tt.body))
			if (err == nil) != (tt.domain != "") {
				t.Fatalf("got %+v, %v (rule 48)", e, err)
			}
			if err != nil {
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error %q repeats the body", err)
				}
				return
			}
			if e.Domain != tt.domain || e.Resource != resourceID {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestUnknownStatusMeansInactive(t *testing.T) {
	for _, status := range []string{`"Pending"`, `"active"`, `""`} {
		e, err := DecodeDomainStatus([]byte(`{"resource":"` + resourceID + `","domain":"a","status":` + status + `}`))
		if err != nil || e.Status != Inactive {
			t.Errorf("status %s gives %v, %v", status, e.Status, err)
		}
	}
	if _, err := DecodeDomainStatus([]byte(`{"resource":"` + resourceID + `","domain":"a","status":1}`)); err == nil {
		t.Error("a number is a status")
	}
}

func TestControlDoesNotTouchTheBody(t *testing.T) {
	body := []byte("body")
	p := AppendControl(nil, DomainStatus, body)
	p[48] = 'B'
	if !slices.Equal(body, []byte("body")) {
		t.Error("the packet shares memory with the body")
	}
}
