package ice

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport/stun"
)

// Sender puts one STUN message on the wire. local tells the leg: one of our
// host addresses, or a relayed address, which stands for a channel to remote on
// the relay that gave it. b is valid only during the call.
type Sender interface {
	SendSTUN(b []byte, local, remote netip.AddrPort) error
}

const (
	sendQueue         = 1024 // messages of all agents on their way to the Sender
	transactionMemory = 10 * time.Second
)

// Mux carries STUN between the shared legs and the agents (transport §7.4).
// Requests are routed by USERNAME, responses by the transaction ids of the
// requests that went out. The whole USERNAME decides, not only our half:
// gateway ufrags have four characters, so two of a few thousand clients may
// well share one.
//
// Every message is checked and its integrity verified before the library sees
// it. All methods may be called concurrently.
type Mux struct {
	sender Sender
	drops  *drop.Counters
	out    chan outgoing
	stop   context.CancelFunc
	done   <-chan struct{}
	ended  chan struct{}

	mu           sync.RWMutex
	views        map[string]*view // by USERNAME of the requests it receives
	transactions map[stun.TransactionID]origin
}

// origin is where a request came from. conn is nil when nobody wants the answer.
type origin struct {
	view *view
	conn *conn
}

type outgoing struct {
	buf           *[]byte
	local, remote netip.AddrPort
}

// NewMux returns a Mux that sends through sender, from a goroutine of its own,
// so that agents never wait for a socket. drops counts what outgoing messages
// fall victim to: STUNOverflow for the rate limit and the queue (1024 messages,
// the newest is dropped), SendFailed for the Sender.
func NewMux(sender Sender, drops *drop.Counters) *Mux {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mux{
		sender: sender, drops: drops, out: make(chan outgoing, sendQueue),
		stop: cancel, done: ctx.Done(), ended: make(chan struct{}),
		views: make(map[string]*view), transactions: make(map[stun.TransactionID]origin),
	}
	go m.send()
	return m
}

// Close ends the sending goroutine and waits for it. Agents that still exist
// send into the void; close them first.
func (m *Mux) Close() {
	m.stop()
	<-m.ended
}

// Deliver takes one STUN datagram that arrived on local, which is a relayed
// address for one that came through a channel. It keeps nothing of b, never
// blocks, and returns why the message was dropped, for the caller to count:
// STUNMalformed, STUNUnknown when no agent wants or can authenticate it,
// STUNOverflow when its agent is behind or has met too many addresses.
func (m *Mux) Deliver(b []byte, local, remote netip.AddrPort) drop.Reason {
	h, err := stun.Check(b)
	if err != nil {
		return drop.STUNMalformed
	}
	if h.Method != stun.Binding {
		return drop.STUNUnknown
	}
	if h.Class == stun.Request {
		ours, theirs, ok := stun.Username(b)
		if !ok {
			return drop.STUNUnknown
		}
		name := ours[:len(ours)+1+len(theirs)]
		m.mu.RLock()
		v := m.views[string(name)]
		m.mu.RUnlock()
		if v == nil {
			return drop.STUNUnknown
		}
		return v.request(b, unmap(local), unmap(remote))
	}
	m.mu.RLock()
	o, ok := m.transactions[h.TransactionID]
	m.mu.RUnlock()
	if !ok {
		return drop.STUNUnknown
	}
	return o.view.response(b, h, o.conn, unmap(remote))
}

// send moves messages from the queue to the Sender.
func (m *Mux) send() {
	defer close(m.ended)
	for {
		select {
		case <-m.done:
			return
		case o := <-m.out:
			if err := m.sender.SendSTUN(*o.buf, o.local, o.remote); err != nil {
				m.drops.Add(drop.SendFailed, 1)
			}
			buffers.Put(o.buf)
		}
	}
}

func (m *Mux) enqueue(b []byte, local, remote netip.AddrPort) {
	buf := copyOf(b)
	select {
	case m.out <- outgoing{buf, local, remote}:
	default:
		buffers.Put(buf)
		m.drops.Add(drop.STUNOverflow, 1)
	}
}

// register routes requests with v's USERNAME to v, in place of an older view.
func (m *Mux) register(v *view) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.views[v.name] = v
}

func (m *Mux) unregister(v *view) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.views[v.name] == v {
		delete(m.views, v.name)
	}
}

func (m *Mux) remember(id stun.TransactionID, o origin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.transactions[id] = o
}

func (m *Mux) forget(ids ...stun.TransactionID) {
	if len(ids) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		delete(m.transactions, id)
	}
}

// buffers recycles copies of messages in both directions.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, stun.MaxSize); return &b }}

func copyOf(b []byte) *[]byte {
	buf := buffers.Get().(*[]byte)
	*buf = append((*buf)[:0], b...)
	return buf
}
