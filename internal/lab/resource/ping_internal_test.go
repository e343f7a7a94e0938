package resource

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

const (
	// Echo request id 1234 seq 5678 from 192.0.2.1 to 10.20.0.10, refused by
	// ICMP 3/13, and its like in IPv6 (1/1) to fd00:20::10.
	prohibited4 = "030d000000000000" +
		"450000540000400040010000c00002010a14000a" + "0800000012345678"
	prohibited6 = "0101000000000000" +
		"6000000000403a4020010db8000000000000000000000001fd000020000000000000000000000010" + "8000000012345678"
)

func TestParseICMP(t *testing.T) {
	id := [4]byte{0x12, 0x34, 0x56, 0x78}
	for _, test := range []struct {
		name  string
		input string
		v6    bool
		want  icmpAnswer
		fails bool
	}{
		{name: "IPv4 echo reply", input: "0000ffff12345678aabb", want: icmpAnswer{id: id}},
		{name: "IPv6 echo reply", input: "8100ffff12345678", v6: true, want: icmpAnswer{id: id}},
		{name: "IPv4 prohibited", input: prohibited4, want: icmpAnswer{
			id: id, refusal: &ICMPError{Type: 3, Code: 13}, about: netip.MustParseAddr("10.20.0.10")}},
		{name: "IPv6 prohibited", input: prohibited6, v6: true, want: icmpAnswer{
			id: id, refusal: &ICMPError{IPv6: true, Type: 1, Code: 1}, about: netip.MustParseAddr("fd00:20::10")}},
		{name: "our own IPv4 request", input: "0800ffff12345678", fails: true},
		{name: "our own IPv6 request", input: "8000ffff12345678", v6: true, fails: true},
		{name: "too short", input: "00000000123456", fails: true},
		{name: "nothing", input: "", fails: true},
		{name: "IPv4 error without quote", input: "030d000000000000", fails: true},
		{name: "IPv4 error that quotes UDP", input: strings.Replace(prohibited4, "40010000", "40110000", 1), fails: true},
		{name: "IPv4 error with an impossible header length", input: strings.Replace(prohibited4, "45000054", "41000054", 1), fails: true},
		{name: "IPv4 error with options that are cut off", input: strings.Replace(prohibited4, "45000054", "4f000054", 1), fails: true},
		{name: "IPv6 error cut off", input: prohibited6[:len(prohibited6)-2], v6: true, fails: true},
		{name: "IPv6 error that quotes UDP", input: strings.Replace(prohibited6, "00403a40", "00401140", 1), v6: true, fails: true},
		{name: "neighbour solicitation", input: "87000000" + strings.Repeat("00", 48), v6: true, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			input, err := hex.DecodeString(test.input)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseICMP(input, test.v6)
			if (err != nil) != test.fails {
				t.Fatalf("error %v", err)
			}
			if got.id != test.want.id || got.about != test.want.about || (got.refusal == nil) != (test.want.refusal == nil) {
				t.Fatalf("got %+v, want %+v", got, test.want)
			}
			if got.refusal == nil {
				return
			}
			if *got.refusal != *test.want.refusal || !got.refusal.Prohibited() || got.refusal.Error() != "administratively prohibited" {
				t.Errorf("refusal %+v, want %+v", *got.refusal, *test.want.refusal)
			}
		})
	}
}

func TestICMPErrorsThatAreNotProhibitions(t *testing.T) {
	for _, e := range []ICMPError{{Type: 3, Code: 1}, {Type: 1, Code: 1}, {IPv6: true, Type: 3, Code: 13}, {IPv6: true, Type: 1, Code: 4}} {
		if e.Prohibited() || !strings.HasPrefix(e.Error(), "ICMP type") {
			t.Errorf("%+v counts as prohibited: %v", e, e)
		}
	}
}

func TestEchoRequestChecksum(t *testing.T) {
	packet := echoRequest(false, [4]byte{0x12, 0x34, 0x56, 0x78})
	if sum := checksum(packet); sum != 0 {
		t.Errorf("sum over packet and checksum is %#x, want 0", sum)
	}
	packet = echoRequest(true, [4]byte{1, 2, 3, 4})
	if packet[0] != 128 || !bytes.Equal(packet[4:8], []byte{1, 2, 3, 4}) {
		t.Errorf("IPv6 request %x", packet)
	}
}

func FuzzParseICMP(f *testing.F) {
	for _, text := range []string{prohibited4, prohibited6, "0000ffff12345678", "8100ffff12345678"} {
		seed, _ := hex.DecodeString(text)
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		answer, err := parseICMP(b, v6)
		if err == nil && answer.refusal != nil && answer.about.Is4() == v6 {
			t.Errorf("error about %v in the other family", answer.about)
		}
	})
}
