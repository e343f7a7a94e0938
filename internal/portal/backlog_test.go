package portal

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func TestBacklog(t *testing.T) {
	announce := func(id string, cs ...string) Outgoing { return BroadcastICECandidates{[]string{id}, cs} }
	withdraw := func(id string, cs ...string) Outgoing {
		return BroadcastInvalidatedICECandidates{[]string{id}, cs}
	}
	tests := []struct {
		name string
		do   func(*Backlog)
		want []Outgoing
	}{
		{"nothing yields nothing", func(*Backlog) {}, nil},
		{"rule 40: candidates are sent in their order, by client", func(b *Backlog) {
			b.Announce("a", []string{"1", "2"})
			b.Announce("b", []string{"3"})
			b.Announce("a", []string{"4", "1"})
		}, []Outgoing{announce("a", "1", "2", "4"), announce("b", "3")}},
		{"rule 40: cancelled ones are not", func(b *Backlog) {
			b.Announce("a", []string{"1", "2"})
			b.Withdraw("a", []string{"1"})
		}, []Outgoing{announce("a", "2")}},
		{"everything cancelled sends nothing", func(b *Backlog) {
			b.Announce("a", []string{"1"})
			b.Withdraw("a", []string{"1"})
		}, nil},
		{"a withdrawal of something sent before goes first", func(b *Backlog) {
			b.Announce("a", []string{"2"})
			b.Withdraw("a", []string{"1"})
		}, []Outgoing{withdraw("a", "1"), announce("a", "2")}},
		{"an announcement cancels a withdrawal", func(b *Backlog) {
			b.Withdraw("a", []string{"1"})
			b.Announce("a", []string{"1"})
		}, nil},
		{"what was taken is gone", func(b *Backlog) {
			b.Announce("a", []string{"1"})
			b.Next()
		}, nil},
		{"a client may come back behind the others", func(b *Backlog) {
			b.Announce("a", []string{"1"})
			b.Announce("b", []string{"2"})
			b.Next()
			b.Announce("a", []string{"3"})
		}, []Outgoing{announce("b", "2"), announce("a", "3")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Backlog
			tt.do(&b)
			if got := drain(&b); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}

	t.Run("both bounds hold and say what they drop", func(t *testing.T) {
		var b Backlog
		many := make([]string, BacklogCandidates+3)
		for i := range many {
			many[i] = fmt.Sprint(i)
		}
		if n := b.Announce("a", many); n != 3 {
			t.Errorf("dropped %d candidates", n)
		}
		for i := range BacklogClients - 1 {
			if n := b.Withdraw(fmt.Sprint(i), []string{"x"}); n != 0 {
				t.Fatalf("client %d dropped", i)
			}
		}
		if n := b.Withdraw("one more", []string{"x", "y"}); n != 2 {
			t.Errorf("dropped %d of one client too many", n)
		}
		if n := len(drain(&b)); n != BacklogClients {
			t.Errorf("%d messages", n)
		}
	})
}

func drain(b *Backlog) (out []Outgoing) {
	for !b.Empty() {
		out = append(out, b.Next()...)
	}
	return out
}

// A portal that starts with what it knew and applies what the backlog sends must
// know what one that saw every change as it happened knows.
func TestBacklogSendsTheNetChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Backlog
		start := rapid.SliceOfDistinct(rapid.IntRange(0, 9), rapid.ID[int]).Draw(t, "known")
		online, offline := map[string]bool{}, map[string]bool{}
		for _, c := range start {
			online[fmt.Sprint(c)], offline[fmt.Sprint(c)] = true, true
		}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			c := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "candidate"))
			// An agent announces what it does not have and withdraws what it has.
			if online[c] {
				delete(online, c)
				b.Withdraw("a", []string{c})
			} else {
				online[c] = true
				b.Announce("a", []string{c})
			}
		}
		for _, m := range drain(&b) {
			switch m := m.(type) {
			case BroadcastICECandidates:
				for _, c := range m.Candidates {
					offline[c] = true
				}
			case BroadcastInvalidatedICECandidates:
				for _, c := range m.Candidates {
					delete(offline, c)
				}
			}
		}
		if !reflect.DeepEqual(online, offline) {
			t.Fatalf("portal knows %v, want %v", offline, online)
		}
	})
}
