package ice

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestTheTimetableTakesInOrder compares it with a map.
func TestTheTimetableTakesInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := timetable{alarm: never}
		model := make(map[*agent]time.Duration)
		all := make([]*agent, 8)
		for i := range all {
			all[i] = &agent{row: row{index: -1}}
		}
		first := func() time.Duration {
			at := never
			for _, m := range model {
				at = min(at, m)
			}
			return at
		}
		asked := never // when take would be called
		pick := rapid.SampledFrom(all)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				a, at := pick.Draw(t, "agent"), time.Duration(rapid.IntRange(0, 100).Draw(t, "at"))
				model[a] = at
				if table.put(a, at) {
					asked = min(asked, at)
				}
			},
			"remove": func(t *rapid.T) {
				a := pick.Draw(t, "agent")
				delete(model, a)
				table.remove(a)
			},
			"take": func(t *rapid.T) {
				now := time.Duration(rapid.IntRange(0, 100).Draw(t, "now"))
				a, next := table.take(now)
				switch at, known := model[a]; {
				case a == nil:
					if next != first() || next <= now {
						t.Fatalf("next at %v, want %v", next, first())
					}
					asked = next
				case !known || at != first() || at > now:
					t.Fatalf("took one of %v, the first is at %v", at, first())
				default:
					delete(model, a)
					asked = 0 // it has to be called again
				}
			},
			"": func(t *rapid.T) {
				if first() < asked {
					t.Fatalf("asked at %v for what is due at %v", asked, first())
				}
				if len(table.rows) != len(model) {
					t.Fatalf("%d rows, want %d", len(table.rows), len(model))
				}
			},
		})
	})
}
