package portal

import (
	"errors"
	"net/netip"
)

// Relay is one TURN server under one address. The realm is RelayRealm. Its
// textual forms leave the credentials out.
type Relay struct {
	ID       string
	Addr     netip.AddrPort
	Username string
	Password string
}

// RelayRealm is the TURN realm of all relays (rule 36).
const RelayRealm = "firezone"

// DualStackRelay is one TURN server under all its addresses. At least one of V4
// and V6 is valid. Its textual forms leave the credentials out.
type DualStackRelay struct {
	ID       string
	V4, V6   netip.AddrPort
	Username string
	Password string
}

// MergeRelays joins the entries that share an id, in order of first appearance
// (rule 36). The first entry of an id fixes the credentials, and the first
// address of each family stays. An entry with other credentials is left out,
// because one allocation can not use two.
func MergeRelays(relays []Relay) []DualStackRelay {
	var out []DualStackRelay
	index := make(map[string]int, len(relays))
	for _, r := range relays {
		i, ok := index[r.ID]
		if !ok {
			i = len(out)
			index[r.ID] = i
			out = append(out, DualStackRelay{ID: r.ID, Username: r.Username, Password: r.Password})
		}
		d := &out[i]
		if d.Username != r.Username || d.Password != r.Password {
			continue
		}
		family := &d.V6
		if r.Addr.Addr().Is4() {
			family = &d.V4
		}
		if !family.IsValid() {
			*family = r.Addr
		}
	}
	return out
}

// maxRelays bounds one list; the portal sends at most two relays (§3.1).
const maxRelays = 64

var errIgnored = errors.New("ignored")

func (d *decoder) relays() []Relay {
	return elements(d, maxRelays, &d.skipped.Elements, (*decoder).relay)
}

// relay fails with errIgnored for STUN servers, which are part of the protocol
// and of no use to a gateway.
func (d *decoder) relay() Relay {
	var kind, id, address, username, password []byte
	for key := range d.fields {
		switch string(key) {
		case "type":
			kind = d.text()
		case "id":
			id = d.text()
		case "addr":
			address = d.text()
		case "username":
			username = d.text()
		case "password":
			password = d.text()
		default:
			d.skip()
		}
	}
	if d.err == nil && string(kind) == "stun" {
		d.err = errIgnored
	}
	d.require(string(kind) == "turn", "unknown type")
	d.require(validID(id), "id")
	// RFC 8489 §14.3 bounds a username to 508 bytes.
	d.require(len(username) > 0 && len(username) <= 508, "username")
	d.require(len(password) > 0 && len(password) <= 508, "password")
	addr, err := netip.ParseAddrPort(string(address))
	usable := err == nil && addr.Port() != 0 && addr.Addr().Zone() == "" && !addr.Addr().IsUnspecified() && !addr.Addr().IsMulticast()
	d.require(usable, "addr")
	if d.err != nil {
		return Relay{}
	}
	return Relay{
		ID:       string(id),
		Addr:     netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()),
		Username: string(username),
		Password: string(password),
	}
}
