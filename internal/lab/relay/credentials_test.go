package relay

import (
	"strings"
	"testing"
	"time"
)

// Vectors of portal-protocol §6.4 and §3.1.
func TestCredentialsMatchTheVectors(t *testing.T) {
	secret := strings.Repeat("0123456789abcdef", 4)
	username, password := Credentials(secret, "uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY=", time.Unix(2145916800, 0))
	if username != "2145916800:IHF707vzp8S20otOb0X8DnipWwBnjqx3vXEV53OMrpE" {
		t.Errorf("username %s", username)
	}
	if password != "3oczJRrb56BGCE7qYTzzi2O8UNcuQcmiZL0JBkF+qNc" {
		t.Errorf("password %s", password)
	}
	if id := ID(secret).String(); id != "a8ae6e6e-e929-4bea-bafc-fc5258c8ccd6" {
		t.Errorf("id %s", id)
	}
	password, expires, err := passwordOf("1cab293a-4032-46f4-862a-40e5d174b0d2", "1685984278:uvdgKvS9GXYZ_vmv")
	if err != nil || password != "6xUIoZ+QvxKhRasLifwfRkMXl+ETLJUsFkHlXjlHAkg" || expires.Unix() != 1685984278 {
		t.Errorf("password %s, expires %v, error %v", password, expires, err)
	}
}

func TestUsernamesThatAreNone(t *testing.T) {
	for _, username := range []string{"", "alice", "x:salt", ":salt", "99999999999999999999:salt"} {
		if _, _, err := passwordOf("secret", username); err == nil {
			t.Errorf("%q is accepted", username)
		}
	}
}

func TestSecretsDiffer(t *testing.T) {
	a, b := NewSecret(), NewSecret()
	if a == b || len(a) != 64 || ID(a) == ID(b) {
		t.Errorf("secrets %q and %q", a, b)
	}
}
