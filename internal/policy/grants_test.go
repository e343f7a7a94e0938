package policy

import (
	"testing"
	"time"
)

func TestGrants(t *testing.T) {
	start := time.Unix(1000, 0)
	a := Grant{Resource: Resource{ID: "a", Kind: CIDR}, ExpiresAt: start.Add(time.Minute)}
	b := Grant{Resource: Resource{ID: "b", Kind: Internet}}
	both := Grants{}.Upsert(a).Upsert(b)
	for _, c := range []struct {
		name string
		got  Grants
		want []string
	}{
		{"an upsert of the same resource does not add one", both.Upsert(a), []string{"a", "b"}},
		{"a revoked resource is gone", both.Revoke("a"), []string{"b"}},
		{"revoking what is not granted changes nothing", both.Revoke("c"), []string{"a", "b"}},
		{"retain drops what is not listed", both.Retain(map[string]time.Time{"b": {}, "c": {}}), []string{"b"}},
		{"retain of an empty list drops everything", both.Retain(nil), nil},
		{"extending an unknown grant changes nothing", both.Extend("c", start), []string{"a", "b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ids []string
			for _, g := range c.got.List() {
				ids = append(ids, g.Resource.ID)
			}
			if len(ids) != len(c.want) {
				t.Fatalf("grants %v, want %v", ids, c.want)
			}
			for i := range ids {
				if ids[i] != c.want[i] {
					t.Errorf("grants %v, want %v", ids, c.want)
				}
			}
		})
	}
	if both.Len() != 2 {
		t.Errorf("an operation changed the value it was called on: %d grants", both.Len())
	}
}

func TestGrantsExpire(t *testing.T) {
	start := time.Unix(1000, 0)
	g := Grants{}.Upsert(Grant{Resource: Resource{ID: "a"}, ExpiresAt: start}).Upsert(Grant{Resource: Resource{ID: "b"}})
	if next, ok := g.NextExpiry(); !ok || !next.Equal(start) {
		t.Errorf("NextExpiry = %v, %v, want %v", next, ok, start)
	}
	if rest, ended := g.Expire(start.Add(-time.Nanosecond)); len(ended) != 0 || rest.Version() != g.Version() {
		t.Errorf("ended early: %v", ended)
	}
	rest, ended := g.Expire(start)
	if len(ended) != 1 || ended[0] != "a" || rest.Has("a") || !rest.Has("b") {
		t.Errorf("Expire = %v, rest %v", ended, rest.List())
	}
	if _, ok := rest.NextExpiry(); ok {
		t.Error("a grant without end reports one")
	}
	if moved, _ := g.Extend("a", start.Add(time.Hour)).Expire(start); !moved.Has("a") {
		t.Error("an extended grant ended at its old end")
	}
	if moved, _ := g.Retain(map[string]time.Time{"a": start.Add(time.Hour)}).Expire(start); !moved.Has("a") {
		t.Error("a re-dated grant ended at its old end")
	}
}

func TestUpdateFilters(t *testing.T) {
	old := Resource{ID: "a", Kind: CIDR}
	filters := []Filter{{Protocol: FilterICMP}}
	g := Grants{}.Upsert(Grant{Resource: old})
	if got := g.UpdateFilters(Resource{ID: "a", Kind: CIDR, Filters: filters}).List()[0]; len(got.Resource.Filters) != 1 {
		t.Error("filters were not replaced")
	}
	if got := g.UpdateFilters(Resource{ID: "a", Kind: DNS, Filters: filters}).List()[0]; len(got.Resource.Filters) != 0 {
		t.Error("a resource of another kind was updated")
	}
}
