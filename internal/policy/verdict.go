package policy

import (
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
)

// Action says what to do with a packet.
type Action uint8

// The actions. The zero value is the safe one.
const (
	Drop    Action = iota // discard silently, count Verdict.Reason
	Reject                // discard, count Verdict.Reason, send Verdict.Answer to the client
	Forward               // pass on unchanged
	Control               // hand to whoever handles control packets, never to the TUN device
)

// String returns the action as it appears in traces.
func (a Action) String() string {
	switch a {
	case Drop:
		return "drop"
	case Reject:
		return "reject"
	case Forward:
		return "forward"
	case Control:
		return "control"
	}
	return "invalid"
}

// Verdict is the judgement on one packet.
type Verdict struct {
	Action Action
	Reason drop.Reason        // for Drop and Reject
	Answer packet.Unreachable // for Reject

	rule int32 // 1 + index of the credited grant, 0 for none
}

func dropped(r drop.Reason) Verdict { return Verdict{Action: Drop, Reason: r} }

func rejected(r drop.Reason, u packet.Unreachable) Verdict {
	return Verdict{Action: Reject, Reason: r, Answer: u}
}
