package portal

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
)

const (
	clientID   = "3abd725a-733b-4801-ac16-72f26cd98a24"
	resourceID = "c7793628-8579-465b-83e3-1a5d4af4db3b"
	relayID    = "a8ae6e6e-e929-4bea-bafc-fc5258c8ccd6"
	expiry     = 1783425600

	cidrResource = `{"id":"` + resourceID + `","type":"cidr","name":"lab","address":"172.20.0.0/16","filters":[{"protocol":"tcp","port_range_start":443,"port_range_end":443},{"protocol":"icmp"}]}`
	dnsResource  = `{"id":"` + resourceID + `","type":"dns","name":"hosts","address":"*.example.org","filters":[]}`

	clientJSON = `{"id":"` + clientID + `","public_key":"fiAjSBWDgQfD1CFJkTwOf4zg+1QhH0eTT+oLaVIMpH8=","preshared_key":"AYlDZtTGEucn4Vzjdi9A2kXpjO4LJUqZNAssv/JqYRA=","ipv4":"100.93.74.51","ipv6":"fd00:2021:1111::f:853b","version":"1.5.4","device_serial":null}`
	iceJSON    = `"client_ice_credentials":{"username":"sim3","password":"ceqc5rlg6ueluoxqoa56ze"},"gateway_ice_credentials":{"username":"bmet","password":"g6zhuorrjh2c2cmvvuepsa"}`

	turn4 = `{"type":"turn","id":"` + relayID + `","addr":"203.0.113.101:3478","username":"u","password":"relay-secret","expires_at":2145916800}`
	turn6 = `{"type":"turn","id":"` + relayID + `","addr":"[2001:db8::101]:3478","username":"u","password":"relay-secret","expires_at":2145916800}`
)

const (
	requestConnection = `{"ref":"SFMyNTY.opaque","expires_at":null,"resource":` + dnsResource + `,"client":{"id":"c","peer":` + clientJSON +
		`,"payload":{"ice_parameters":{"username":"sim3","password":"ceqc5rlg6ueluoxqoa56ze"},"domain":{"name":"x","proxy_ips":["100.96.0.1"]}}}}`
	allowAccess = `{"client_id":"c","client_ipv4":"100.64.0.1","client_ipv6":"fd00::1","expires_at":null,"resource":` + cidrResource + `}`
)

// authorizeJSON is a complete grant with the parts that tests vary.
func authorizeJSON(resource, client, rest string) string {
	return `{"ref":"SFMyNTY.opaque","resource":` + resource + `,"client":` + client + `,` + iceJSON + rest + `}`
}

func TestDecodeGrants(t *testing.T) {
	at := time.Unix(expiry, 0).UTC()
	client := Client{
		ID: clientID, IPv4: netip.MustParseAddr("100.93.74.51"), IPv6: netip.MustParseAddr("fd00:2021:1111::f:853b"),
	}
	client.PublicKey = key(t, "fiAjSBWDgQfD1CFJkTwOf4zg+1QhH0eTT+oLaVIMpH8=")
	client.PresharedKey = key(t, "AYlDZtTGEucn4Vzjdi9A2kXpjO4LJUqZNAssv/JqYRA=")
	cidr := Resource{
		ID: resourceID, Type: ResourceCIDR, Name: "lab", Address: "172.20.0.0/16", Network: netip.MustParsePrefix("172.20.0.0/16"),
		Filters: []Filter{{FilterTCP, 443, 443}, {FilterICMP, 0, 0}},
	}
	dns := Resource{ID: resourceID, Type: ResourceDNS, Name: "hosts", Address: "*.example.org"}
	remote := ICECredentials{"sim3", "ceqc5rlg6ueluoxqoa56ze"}
	local := ICECredentials{"bmet", "g6zhuorrjh2c2cmvvuepsa"}
	domain := Domain{Name: "host.example.org", ProxyIPs: []netip.Addr{netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd00:2021:1111:8000::")}}
	domainJSON := `{"name":"host.example.org","proxy_ips":["100.96.0.1","fd00:2021:1111:8000::"]}`
	legacyPeer := strings.Replace(clientJSON, `"id":"`+clientID+`",`, `"persistent_keepalive":25,`, 1)

	tests := []struct {
		name, event, payload string
		want                 Message
	}{
		{"authorize_flow", "authorize_flow", authorizeJSON(cidrResource, clientJSON, `,"subject":{"actor_id":"x"},"expires_at":1783425600`),
			Authorize{Generation: V1, Ref: "SFMyNTY.opaque", Resource: cidr, Client: client, ClientICE: remote, GatewayICE: local, ExpiresAt: at}},
		{"authorize_flow without an end", "authorize_flow", authorizeJSON(cidrResource, clientJSON, `,"expires_at":null`),
			Authorize{Generation: V1, Ref: "SFMyNTY.opaque", Resource: cidr, Client: client, ClientICE: remote, GatewayICE: local}},
		{"create_authorization", "create_authorization", authorizeJSON(dnsResource, clientJSON, `,"expires_at":1783425600,"use_iceless":true,"flow_logs_ingest_token":"a.b.c"`),
			Authorize{Generation: V2, Ref: "SFMyNTY.opaque", Resource: dns, Client: client, ClientICE: remote, GatewayICE: local, ExpiresAt: at, UseIceless: true}},
		{"create_authorization without expires_at", "create_authorization", authorizeJSON(dnsResource, clientJSON, ""),
			Authorize{Generation: V2, Ref: "SFMyNTY.opaque", Resource: dns, Client: client, ClientICE: remote, GatewayICE: local}},
		{"a grant that ended in 1970 is not one without end", "create_authorization", authorizeJSON(dnsResource, clientJSON, `,"expires_at":0`),
			Authorize{Generation: V2, Ref: "SFMyNTY.opaque", Resource: dns, Client: client, ClientICE: remote, GatewayICE: local, ExpiresAt: time.Unix(0, 0).UTC()}},
		{"request_connection", "request_connection",
			`{"ref":"SFMyNTY.opaque","expires_at":1783425600,"resource":` + dnsResource + `,"client":{"id":"` + clientID + `","peer":` + legacyPeer +
				`,"payload":{"ice_parameters":{"username":"sim3","password":"ceqc5rlg6ueluoxqoa56ze"},"domain":` + domainJSON + `}}}`,
			RequestConnection{Ref: "SFMyNTY.opaque", Resource: dns, Client: client, ClientICE: remote, Domain: domain, ExpiresAt: at}},
		{"allow_access", "allow_access",
			`{"ref":"SFMyNTY.opaque","client_id":"` + clientID + `","client_ipv4":"100.93.74.51","client_ipv6":"fd00:2021:1111::f:853b","expires_at":1783425600,"payload":` + domainJSON + `,"resource":` + dnsResource + `}`,
			AllowAccess{ClientID: clientID, IPv4: client.IPv4, IPv6: client.IPv6, Resource: dns, Domain: domain, ExpiresAt: at}},
		{"allow_access without a domain", "allow_access",
			`{"client_id":"` + clientID + `","client_ipv4":"100.93.74.51","client_ipv6":"fd00:2021:1111::f:853b","expires_at":null,"payload":null,"resource":` + cidrResource + `}`,
			AllowAccess{ClientID: clientID, IPv4: client.IPv4, IPv6: client.IPv6, Resource: cidr}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, skipped, err := Decode(Frame{Event: tt.event, Payload: json.RawMessage(tt.payload)})
			if err != nil || skipped != (Skipped{}) {
				t.Fatalf("error %v, skipped %+v", err, skipped)
			}
			// Secrets print as placeholders, hence no %v of the difference.
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestDecodeOtherMessages(t *testing.T) {
	v4, v6 := netip.MustParseAddr("100.115.164.78"), netip.MustParseAddr("fd00:2021:1111::2c:f6ab")
	iface := `"interface":{"ipv4":"100.115.164.78","ipv6":"fd00:2021:1111::2c:f6ab"}`
	relay4 := Relay{relayID, netip.MustParseAddrPort("203.0.113.101:3478"), "u", "relay-secret"}
	relay6 := Relay{relayID, netip.MustParseAddrPort("[2001:db8::101]:3478"), "u", "relay-secret"}
	grant := `{"client_id":"` + clientID + `","resource_id":"` + resourceID + `","expires_at":1783425600}`
	at := time.Unix(expiry, 0).UTC()
	host := "candidate:1 1 udp 2130706431 10.0.0.5 52625 typ host"

	tests := []struct {
		name, event, payload string
		want                 Message
		skipped              Skipped
	}{
		{"rule 24: init with nothing but addresses", "init", `{` + iface + `}`, Init{IPv4: v4, IPv6: v6}, Skipped{}},
		{"rule 24: init with nulls", "init", `{` + iface + `,"relays":null,"authorizations":null,"account_slug":null}`, Init{IPv4: v4, IPv6: v6}, Skipped{}},
		{"init in full", "init", `{"account_slug":"acme",` + iface + `,"config":{"ipv4_masquerade_enabled":true},"relays":[` + turn4 + `,` + turn6 + `],"authorizations":[` + grant + `],"flow_logs":{"api_url":"https://flow.example.org/"}}`,
			Init{AccountSlug: "acme", IPv4: v4, IPv6: v6, Relays: []Relay{relay4, relay6}, Authorizations: []Authorization{{clientID, resourceID, at}}}, Skipped{}},
		{"init keeps what is good", "init", `{` + iface + `,"relays":[{"type":"quic","id":"x"},` + turn4 + `,7,null,{"type":"stun","id":"x","addr":"192.0.2.1:3478"}],"authorizations":[{"client_id":"` + clientID + `"},` + grant + `]}`,
			Init{IPv4: v4, IPv6: v6, Relays: []Relay{relay4}, Authorizations: []Authorization{{clientID, resourceID, at}}}, Skipped{Elements: 4}},
		{"an authorization in init that never ends", "init", `{` + iface + `,"authorizations":[{"client_id":"` + clientID + `","resource_id":"` + resourceID + `","expires_at":null}]}`,
			Init{IPv4: v4, IPv6: v6, Authorizations: []Authorization{{clientID, resourceID, time.Time{}}}}, Skipped{}},
		{"an authorization in init without an end is skipped, and so is one with another type", "init",
			`{` + iface + `,"authorizations":[{"client_id":"a","resource_id":"b"},{"client_id":"a","resource_id":"b","expires_at":"1783425600"},` + grant + `]}`,
			Init{IPv4: v4, IPv6: v6, Authorizations: []Authorization{{clientID, resourceID, at}}}, Skipped{Elements: 2}},
		{"reject_access", "reject_access", `{"client_id":"` + clientID + `","resource_id":"` + resourceID + `"}`, RejectAccess{clientID, resourceID}, Skipped{}},
		{"ice_candidates", "ice_candidates", `{"client_id":"` + clientID + `","candidates":["` + host + `"]}`,
			ICECandidates{clientID, []string{host}}, Skipped{}},
		{"rule 34: bad candidates are skipped one by one", "ice_candidates",
			`{"client_id":"` + clientID + `","candidates":["nonsense",1,null,"candidate:1 1 udp","candidate:1 1 udp high 10.0.0.5 1 typ host","` + host + `","candidate:1 1 udp 1 ` + strings.Repeat("x", 600) + `","candidate:1\n1 udp 1"]}`,
			ICECandidates{clientID, []string{host}}, Skipped{Candidates: 7}},
		{"invalidate_ice_candidates", "invalidate_ice_candidates", `{"client_id":"` + clientID + `","candidates":["` + host + `","x"]}`,
			InvalidateICECandidates{clientID, []string{host}}, Skipped{Candidates: 1}},
		{"relays_presence", "relays_presence", `{"disconnected_ids":["` + relayID + `","",{}],"connected":[` + turn6 + `]}`,
			RelaysPresence{[]string{relayID}, []Relay{relay6}}, Skipped{Elements: 2}},
		{"relays_presence that answers no_relays", "relays_presence", `{"disconnected_ids":[],"connected":[]}`, RelaysPresence{}, Skipped{}},
		{"resource_updated", "resource_updated", `{"id":"r","name":"n","type":"dns","address":"?.httpbin","filters":[{"protocol":"icmp"}]}`,
			ResourceUpdated{Resource{ID: "r", Name: "n", Type: ResourceDNS, Address: "?.httpbin", Filters: []Filter{{Protocol: FilterICMP}}}}, Skipped{}},
		{"access_authorization_expiry_updated", "access_authorization_expiry_updated", grant, ExpiryUpdated{clientID, resourceID, at}, Skipped{}},
		{"disconnect", "disconnect", `{"reason":"token_expired"}`, Disconnect{TokenExpired}, Skipped{}},
		{"rule 23: an event that is not in the protocol", "brand_new\n", `{}`, Unknown{"brand_new"}, Skipped{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, skipped, err := Decode(Frame{Event: tt.event, Payload: json.RawMessage(tt.payload)})
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if skipped != tt.skipped {
				t.Errorf("skipped %+v, want %+v", skipped, tt.skipped)
			}
		})
	}
}

func TestDecodeRefusesPayloads(t *testing.T) {
	swap := strings.NewReplacer
	for event, payload := range map[string]string{"request_connection": requestConnection, "allow_access": allowAccess} {
		if _, _, err := Decode(Frame{Event: event, Payload: json.RawMessage(payload)}); err != nil {
			t.Fatal(err)
		}
	}
	good := authorizeJSON(cidrResource, clientJSON, `,"expires_at":1783425600`)
	if _, _, err := Decode(Frame{Event: "authorize_flow", Payload: json.RawMessage(good)}); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, event, payload string }{
		{"null", "authorize_flow", `null`},
		{"nothing", "authorize_flow", ``},
		{"a list", "authorize_flow", `[]`},
		{"an empty ref", "authorize_flow", swap("SFMyNTY.opaque", "").Replace(good)},
		{"a resource of unknown type", "authorize_flow", swap(`"cidr"`, `"vlan"`).Replace(good)},
		{"a resource without an id", "authorize_flow", swap(resourceID, "").Replace(good)},
		{"a resource that is not a network", "authorize_flow", swap("172.20.0.0/16", "172.20.0.0/33").Replace(good)},
		{"a resource that is a mapped network", "authorize_flow", swap("172.20.0.0/16", "::ffff:172.20.0.0/112").Replace(good)},
		{"a resource without filters", "authorize_flow", swap(`"filters"`, `"filter"`).Replace(good)},
		{"a client id that could be a path", "authorize_flow", swap(clientID, "../x").Replace(good)},
		{"a public key that is too short", "authorize_flow", swap("fiAjSBWDgQfD1CFJkTwOf4zg+1QhH0eTT+oLaVIMpH8=", "fiAjSBWDgQfD").Replace(good)},
		{"a public key with bits after its end", "authorize_flow", swap("VIMpH8=", "VIMpH9=").Replace(good)},
		{"a grant without a resource", "authorize_flow", swap(`"resource"`, `"resort"`).Replace(good)},
		{"a grant without a client", "authorize_flow", swap(`"client"`, `"customer"`).Replace(good)},
		{"a grant without credentials of the client", "authorize_flow", swap("client_ice_credentials", "client_ice").Replace(good)},
		{"a grant without credentials of the gateway", "authorize_flow", swap("gateway_ice_credentials", "gateway_ice").Replace(good)},
		{"a mapped address for IPv6", "authorize_flow", swap("fd00:2021:1111::f:853b", "::ffff:100.93.74.51").Replace(good)},
		{"a preshared key with a line break", "authorize_flow", swap("AYlDZtTGEucn4Vzjdi9A2kXpjO4LJUqZNAssv/JqYRA=", `AYlDZtTGEucn4Vzjdi9A2kXpjO4LJUqZNAssv/JqY\n=`).Replace(good)},
		{"a tunnel address of the wrong family", "authorize_flow", swap(`"100.93.74.51"`, `"::1"`).Replace(good)},
		{"a tunnel address with a zone", "authorize_flow", swap("fd00:2021:1111::f:853b", "fe80::1%eth0").Replace(good)},
		{"authorize_flow without expires_at", "authorize_flow", authorizeJSON(cidrResource, clientJSON, "")},
		{"a negative end", "authorize_flow", swap("1783425600", "-1").Replace(good)},
		{"an end in milliseconds", "authorize_flow", swap("1783425600", "1783425600000").Replace(good)},
		{"an end as text", "authorize_flow", swap("1783425600", `"1783425600"`).Replace(good)},
		{"init without addresses", "init", `{}`},
		{"init whose authorizations are no list", "init", `{"interface":{"ipv4":"100.64.0.1","ipv6":"fd00::1"},"authorizations":{}}`},
		{"an expiry without an end", "access_authorization_expiry_updated", `{"client_id":"a","resource_id":"b","expires_at":null}`},
		{"candidates of nobody", "ice_candidates", `{"candidates":[]}`},
		{"candidates without candidates", "ice_candidates", `{"client_id":"a"}`},
		{"reject_access of nothing", "reject_access", `{"client_id":"a"}`},
		{"resource_updated that is text", "resource_updated", `"id"`},
		{"relays that are no list", "relays_presence", `{"connected":{}}`},
		{"disconnected relays that are no list", "relays_presence", `{"disconnected_ids":"a"}`},
		{"disconnect without an object", "disconnect", `null`},
		{"request_connection without a ref", "request_connection", swap("SFMyNTY.opaque", "").Replace(requestConnection)},
		{"request_connection without an end", "request_connection", swap("expires_at", "expires").Replace(requestConnection)},
		{"request_connection without a peer", "request_connection", swap(`"peer"`, `"pear"`).Replace(requestConnection)},
		{"request_connection without ICE parameters", "request_connection", swap("ice_parameters", "parameters").Replace(requestConnection)},
		{"request_connection with an unknown resource", "request_connection", swap(`"dns"`, `"vlan"`).Replace(requestConnection)},
		{"a grant whose end is a boolean", "create_authorization", swap("1783425600", "true").Replace(good)},
		{"a CIDR resource whose address is a number", "authorize_flow", swap(`"172.20.0.0/16"`, `7`).Replace(good)},
		{"a DNS resource whose address is a list", "resource_updated", `{"id":"r","type":"dns","address":[],"filters":[]}`},
		{"filters that are text", "resource_updated", `{"id":"r","type":"dns","address":"a","filters":"none"}`},
		{"a tunnel address that is a number", "authorize_flow", swap(`"100.93.74.51"`, `7`).Replace(good)},
		{"allow_access without an end", "allow_access", swap("expires_at", "expires").Replace(allowAccess)},
		{"allow_access of nobody", "allow_access", swap(`"client_id":"c"`, `"client_id":""`).Replace(allowAccess)},
		{"allow_access with an unknown resource", "allow_access", swap(`"cidr"`, `"vlan"`).Replace(allowAccess)},
		{"allow_access without an address", "allow_access", swap("client_ipv6", "ipv6").Replace(allowAccess)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, skipped, err := Decode(Frame{Event: tt.event, Payload: json.RawMessage(tt.payload)})
			var d *DecodeError
			if !errors.As(err, &d) || d.Reason != drop.PayloadMalformed || m != nil || skipped != (Skipped{}) {
				t.Fatalf("got %v, %+v, error %v", m, skipped, err)
			}
			for _, secret := range []string{"g6zhuorrjh", "ceqc5rlg", "AYlDZtTG", "SFMyNTY"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("error quotes a secret: %v", err)
				}
			}
		})
	}
}

func TestDecodeResource(t *testing.T) {
	all := []Filter{{Protocol: FilterNone}}
	tests := []struct {
		name, filters string
		want          []Filter
		skipped       int
	}{
		{"an empty list allows everything", `[]`, nil, 0},
		{"rule 35: ports default to all", `[{"protocol":"tcp"},{"protocol":"udp","port_range_start":null,"port_range_end":53}]`,
			[]Filter{{FilterTCP, 0, 65535}, {FilterUDP, 0, 53}}, 0},
		{"an unknown protocol beside a known one is left out", `[{"protocol":"sctp"},{"protocol":"icmp"}]`, []Filter{{Protocol: FilterICMP}}, 1},
		{"unknown protocols alone allow nothing", `[{"protocol":"sctp"},{"protocol":"gre"}]`, all, 2},
		{"a range that ends before it starts allows nothing", `[{"protocol":"tcp","port_range_start":10,"port_range_end":9}]`, all, 1},
		{"a port above 65535 allows nothing", `[{"protocol":"tcp","port_range_end":65536}]`, all, 1},
		{"null allows nothing", `[null]`, all, 1},
		{"the case of a protocol matters", `[{"protocol":"TCP"}]`, all, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, sk, err := resource(`{"id":"r","type":"dns","address":"a","filters":` + tt.filters + `}`)
			if err != nil || !reflect.DeepEqual(r.Filters, tt.want) || sk.Elements != tt.skipped {
				t.Errorf("got %v, skipped %d, error %v", r.Filters, sk.Elements, err)
			}
		})
	}

	t.Run("the Internet resource has an id and nothing else", func(t *testing.T) {
		r, _, err := resource(`{"id":"r","type":"internet","filters":7,"address":"x"}`)
		// A filters field of the wrong type is one of the ignored fields.
		if err != nil || !reflect.DeepEqual(r, Resource{ID: "r", Type: ResourceInternet}) {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("a single address is a network of one host and host bits are cleared", func(t *testing.T) {
		for in, want := range map[string]string{"10.0.0.1": "10.0.0.1/32", "2001:db8::1": "2001:db8::1/128", "10.0.0.1/8": "10.0.0.0/8"} {
			r, _, err := resource(`{"id":"r","type":"cidr","filters":[],"address":"` + in + `"}`)
			if err != nil || r.Network.String() != want {
				t.Errorf("%s: got %v, %v", in, r.Network, err)
			}
		}
	})
	t.Run("filters beyond the bound are left out", func(t *testing.T) {
		list := strings.TrimSuffix(strings.Repeat(`{"protocol":"icmp"},`, maxFilters+3), ",")
		r, sk, err := resource(`{"id":"r","type":"dns","address":"a","filters":[` + list + `]}`)
		if err != nil || len(r.Filters) != maxFilters || sk.Elements != 3 {
			t.Errorf("%d filters, skipped %d, error %v", len(r.Filters), sk.Elements, err)
		}
	})
}

func TestMergeRelays(t *testing.T) {
	v4, other4, v6 := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("192.0.2.2:3478"), netip.MustParseAddrPort("[2001:db8::1]:3478")
	tests := []struct {
		name string
		in   []Relay
		want []DualStackRelay
	}{
		{"rule 36: adjacent entries of one id are one relay", []Relay{{"a", v4, "u", "p"}, {"a", v6, "u", "p"}, {"b", v6, "u", "p"}},
			[]DualStackRelay{{"a", v4, v6, "u", "p"}, {"b", netip.AddrPort{}, v6, "u", "p"}}},
		{"entries need not be adjacent", []Relay{{"a", v4, "u", "p"}, {"b", v4, "u", "p"}, {"a", v6, "u", "p"}},
			[]DualStackRelay{{"a", v4, v6, "u", "p"}, {"b", v4, netip.AddrPort{}, "u", "p"}}},
		{"the first address of a family stays", []Relay{{"a", v4, "u", "p"}, {"a", other4, "u", "p"}}, []DualStackRelay{{"a", v4, netip.AddrPort{}, "u", "p"}}},
		{"an entry with other credentials is left out", []Relay{{"a", v4, "u", "p"}, {"a", v6, "u", "q"}}, []DualStackRelay{{"a", v4, netip.AddrPort{}, "u", "p"}}},
		{"nothing yields nothing", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := MergeRelays(tt.in); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestOutgoing(t *testing.T) {
	tests := []struct {
		name           string
		m              Outgoing
		event, payload string
	}{
		{"rule 27: authorize_flow is answered with flow_authorized", Authorize{Generation: V1, Ref: "a.b<&>"}.Acknowledge(), "flow_authorized", `{"ref":"a.b<&>"}`},
		{"rule 27: create_authorization is answered with authorization_created", Authorize{Generation: V2, Ref: "a.b"}.Acknowledge(), "authorization_created", `{"ref":"a.b"}`},
		{"connection_ready", ConnectionReady{"r", ICECredentials{"Kx3d", "0pZ8"}}, "connection_ready",
			`{"ref":"r","gateway_payload":{"ConnectionAccepted":{"ice_parameters":{"username":"Kx3d","password":"0pZ8"}}}}`},
		{"candidates", BroadcastICECandidates{[]string{"c"}, []string{"x", "y"}}, "broadcast_ice_candidates", `{"client_ids":["c"],"candidates":["x","y"]}`},
		{"invalidated candidates", BroadcastInvalidatedICECandidates{[]string{"c"}, nil}, "broadcast_invalidated_ice_candidates", `{"client_ids":["c"],"candidates":[]}`},
		{"rule 38: no_relays has an object for payload", NoRelays{}, "no_relays", `{}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := tt.m.Payload()
			if err != nil || tt.m.Event() != tt.event {
				t.Fatalf("event %s, error %v", tt.m.Event(), err)
			}
			var got, want any
			if err := errors.Join(json.Unmarshal(p, &got), json.Unmarshal([]byte(tt.payload), &want)); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %s, want %s, %v", p, tt.payload, err)
			}
		})
	}
}

func TestSkippedProxyAddresses(t *testing.T) {
	payload := strings.Replace(requestConnection, `["100.96.0.1"]`, `["100.96.0.1","x",1,"fe80::1%eth0","::ffff:100.96.0.1"]`, 1)
	m, skipped, err := Decode(Frame{Event: "request_connection", Payload: json.RawMessage(payload)})
	if err != nil || len(m.(RequestConnection).Domain.ProxyIPs) != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	skipped.Candidates = 2
	var c drop.Counters
	skipped.AddTo(&c)
	if c.Load(drop.ElementMalformed) != 4 || c.Load(drop.CandidateUnusable) != 2 {
		t.Errorf("counted %+v", skipped)
	}
}

func resource(payload string) (Resource, Skipped, error) {
	m, sk, err := Decode(Frame{Event: "resource_updated", Payload: []byte(payload)})
	if err != nil {
		return Resource{}, sk, err
	}
	return m.(ResourceUpdated).Resource, sk, nil
}

func key(t *testing.T, text string) [32]byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != 32 {
		t.Fatalf("%d bytes of key, error %v", len(b), err)
	}
	return [32]byte(b)
}

func TestRelayRealm(t *testing.T) {
	if RelayRealm != "firezone" {
		t.Errorf("rule 36: the realm is %q", RelayRealm)
	}
}
