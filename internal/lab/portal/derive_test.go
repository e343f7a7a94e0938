package portal

import (
	"encoding/base64"
	"strings"
	"testing"
)

var (
	vectorClient  = Endpoint{"3abd725a-733b-4801-ac16-72f26cd98a24", "fiAjSBWDgQfD1CFJkTwOf4zg+1QhH0eTT+oLaVIMpH8="}
	vectorGateway = Endpoint{"d263d490-a0bb-452a-8990-01d27a1f1144", "uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY="}
	vectorSecret  = strings.Repeat("0123456789abcdef", 4)
)

func TestDeriveICEMatchesTheVector(t *testing.T) {
	client, gateway := DeriveICE(vectorClient, vectorGateway)
	if want := (ICECredentials{"sim3", "ceqc5rlg6ueluoxqoa56ze"}); client != want {
		t.Errorf("client side is %s, differs from the vector", client)
	}
	if want := (ICECredentials{"bmet", "g6zhuorrjh2c2cmvvuepsa"}); gateway != want {
		t.Errorf("gateway side is %s, differs from the vector", gateway)
	}
}

func TestDerivePSKMatchesTheVector(t *testing.T) {
	var clientBase, gatewayBase [pskLen]byte
	for i := range pskLen {
		clientBase[i], gatewayBase[i] = byte(i), byte(0x20+i)
	}
	psk, err := DerivePSK(vectorClient, vectorGateway, clientBase, gatewayBase)
	if err != nil {
		t.Fatal(err)
	}
	if want := "AYlDZtTGEucn4Vzjdi9A2kXpjO4LJUqZNAssv/JqYRA="; psk != want {
		t.Errorf("got %s, want %s", psk, want)
	}
}

func TestDeriveTURNMatchesTheVectors(t *testing.T) {
	username, password := DeriveTURN(vectorSecret, vectorGateway.PublicKey, TURNExpiry)
	if want := "2145916800:IHF707vzp8S20otOb0X8DnipWwBnjqx3vXEV53OMrpE"; username != want {
		t.Errorf("username %s, want %s", username, want)
	}
	if want := "3oczJRrb56BGCE7qYTzzi2O8UNcuQcmiZL0JBkF+qNc"; password != want {
		t.Errorf("password %s, want %s", password, want)
	}
	relay := turnPassword("1cab293a-4032-46f4-862a-40e5d174b0d2", 1685984278, "uvdgKvS9GXYZ_vmv")
	if want := "6xUIoZ+QvxKhRasLifwfRkMXl+ETLJUsFkHlXjlHAkg"; relay != want {
		t.Errorf("relay vector %s, want %s", relay, want)
	}
}

func TestRelayIDMatchesTheVector(t *testing.T) {
	if got, want := RelayID(vectorSecret), "a8ae6e6e-e929-4bea-bafc-fc5258c8ccd6"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestExternalID(t *testing.T) {
	for _, c := range []struct{ name, raw, want string }{
		{"a UUID is hashed as it is written", "4694E56C-7643-4A15-9DF3-638E5B05F570",
			"c9cc2a8a01f9d3d6b2c26719965709196ae2c79214a837e28f0a751af1e2f2ca"},
		{"another id stays", "gateway-7", "gateway-7"},
		{"the empty name stays empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ExternalID(c.raw); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRefsAreRecognizedAndNothingElseIs(t *testing.T) {
	signer := newRefSigner()
	ref := signer.issue()
	if !signer.issued(ref) {
		t.Fatal("own ref is not recognized")
	}
	if ref == signer.issue() {
		t.Fatal("two refs are the same")
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(ref, refPrefix))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		raw[i] ^= 1
		if signer.issued(refPrefix + base64.RawURLEncoding.EncodeToString(raw)) {
			t.Fatalf("ref with a flipped bit in byte %d is recognized", i)
		}
		raw[i] ^= 1
	}
	for _, foreign := range []string{"", refPrefix, ref[1:], ref[:len(ref)-1], newRefSigner().issue()} {
		if signer.issued(foreign) {
			t.Error("a foreign ref is recognized")
		}
	}
}
