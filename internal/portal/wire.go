package portal

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"strconv"
	"time"
)

// names are the topics, events and words that frames are full of; one of them
// is not copied from a frame each time.
var names = func() map[string]string {
	m := make(map[string]string)
	for _, s := range []string{TopicGateway, TopicPhoenix, EventReply, EventClose, EventError, "ok", "error"} {
		m[s] = s
	}
	for s := range decoders {
		m[s] = s
	}
	return m
}()

// name reads a string or null, which is empty.
func (s *scanner) name() string {
	text := s.text()
	if known, ok := names[string(text)]; ok {
		return known
	}
	return string(text)
}

// text reads a string or null, which is empty. The result may be a part of the
// input.
func (s *scanner) text() []byte {
	if s.null() {
		return nil
	}
	return s.quoted()
}

// shortText reads a string or null for people and logs.
func (s *scanner) shortText() string { return printable(string(s.text()), maxText) }

// require fails if ok is false, which names a key that is missing or empty.
func (s *scanner) require(ok bool, key string) {
	if !ok {
		s.fail(key)
	}
}

// elements reads a list and leaves out what parse refuses, counting it in
// skipped. Null is an empty list. Of the elements beyond limit only the syntax
// is looked at, and they count as skipped.
func elements[T any](d *decoder, limit int, skipped *int, parse func(*decoder) T) []T {
	if d.null() {
		return nil
	}
	var out []T
	n := 0
	for range d.list {
		if n++; n > limit {
			*skipped++
			d.skip()
			continue
		}
		if n == 1 {
			out = make([]T, 0, 4)
		}
		m := d.mark()
		v := parse(d)
		if d.err == nil {
			out = append(out, v)
			continue
		}
		if !errors.Is(d.err, errIgnored) {
			*skipped++
		}
		d.reset(m)
		d.skip()
	}
	return out
}

// optional reads a part of a message that it makes sense without, and nothing
// about access. One that does not fit counts as a skipped element and is the
// zero value.
func optional[T any](d *decoder, parse func(*decoder) T) T {
	m, skipped := d.mark(), d.skipped
	v := parse(d)
	if d.err == nil {
		return v
	}
	d.skipped = skipped
	d.skipped.Elements++
	d.reset(m)
	d.skip()
	var zero T
	return zero
}

// id reads what the Message interface promises about ids.
func (d *decoder) id() string {
	text := d.quoted()
	if !validID(text) {
		d.fail("not an id")
		return ""
	}
	return string(text)
}

func validID(s []byte) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// addresses are tunnel addresses, not yet checked for their families.
type addresses struct{ v4, v6 netip.Addr }

// addresses reads an object with ipv4 and ipv6.
func (d *decoder) addresses() addresses {
	var in addresses
	for key := range d.fields {
		switch string(key) {
		case "ipv4":
			in.v4 = d.address()
		case "ipv6":
			in.v6 = d.address()
		default:
			d.skip()
		}
	}
	return in
}

// address reads an address without a zone.
func (d *decoder) address() netip.Addr {
	a, err := netip.ParseAddr(string(d.quoted()))
	if err != nil || a.Zone() != "" {
		d.fail("not an address")
	}
	return a
}

// pair requires one address of each family.
func (d *decoder) pair(in addresses) (v4, v6 netip.Addr) {
	d.require(in.v4.Is4(), "ipv4")
	d.require(in.v6.Is6() && !in.v6.Is4In6(), "ipv6")
	return in.v4, in.v6
}

// peer is a client before its parts are known to be complete.
type peer struct {
	id                   []byte // may be a part of the input
	publicKey, preshared [32]byte
	keyed, shared        bool
	addresses
}

func (d *decoder) peer() peer {
	var p peer
	for key := range d.fields {
		switch string(key) {
		case "id":
			p.id = d.text()
		case "public_key":
			p.publicKey, p.keyed = d.key(), true
		case "preshared_key":
			p.preshared, p.shared = d.key(), true
		case "ipv4":
			p.v4 = d.address()
		case "ipv6":
			p.v6 = d.address()
		default:
			d.skip()
		}
	}
	return p
}

// client requires p to be complete.
func (d *decoder) client(p peer) Client {
	d.require(validID(p.id), "id")
	d.require(p.keyed, "public_key")
	d.require(p.shared, "preshared_key")
	c := Client{ID: string(p.id), PublicKey: p.publicKey, PresharedKey: p.preshared}
	c.IPv4, c.IPv6 = d.pair(p.addresses)
	return c
}

// What the ICE agent asks of the credentials that it is given for its own: 24
// and 128 bits, where it counts eight for a character.
const (
	minLocalUsername = 3
	minLocalPassword = 16

	maxICE = 256 // bytes (RFC 8839 §5.4)
)

// remoteICE reads credentials of a client, of which the agent asks nothing.
func (d *decoder) remoteICE() ICECredentials { return d.ice(1, 1) }

// localICE reads credentials of the gateway.
func (d *decoder) localICE() ICECredentials { return d.ice(minLocalUsername, minLocalPassword) }

func (d *decoder) ice(minUsername, minPassword int) ICECredentials {
	var c ICECredentials
	for key := range d.fields {
		switch string(key) {
		case "username":
			c.Username = d.iceChars(minUsername)
		case "password":
			c.Password = d.iceChars(minPassword)
		default:
			d.skip()
		}
	}
	d.require(c.Username != "", "username")
	d.require(c.Password != "", "password")
	return c
}

// iceChars takes more than the alphabet of RFC 8839 §5.4: all of ASCII that can
// stand between blanks in a candidate and around the colon in a USERNAME.
func (d *decoder) iceChars(atLeast int) string {
	text := d.quoted()
	if len(text) < atLeast || len(text) > maxICE {
		d.fail("not " + strconv.Itoa(atLeast) + " to " + strconv.Itoa(maxICE) + " bytes long")
		return ""
	}
	for _, c := range text {
		if c <= ' ' || c >= 0x7f || c == ':' {
			d.fail("a character that is not printable ASCII, a blank or a colon")
			return ""
		}
	}
	return string(text)
}

var strictBase64 = base64.StdEncoding.Strict()

// key reads 32 bytes in standard padded base64 and nothing else; the length
// check keeps out the line breaks that the decoder would skip.
func (d *decoder) key() (key [32]byte) {
	text := d.quoted()
	var buf [33]byte
	if len(text) == 44 {
		if n, err := strictBase64.Decode(buf[:], text); err == nil && n == 32 {
			return [32]byte(buf[:32])
		}
	}
	d.fail("not a key")
	return key
}

// maxUnix is the end of the year 9999. A greater number is not in seconds.
const maxUnix = 253402300799

// time reads a number of Unix seconds, or null as the zero time.
func (d *decoder) time() time.Time {
	if d.null() {
		return time.Time{}
	}
	n := d.natural(maxUnix)
	if d.err != nil {
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC()
}
