package portal

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/gorilla/websocket"
)

// maxDetail bounds, in bytes, what a peer can write into an event's Detail.
const maxDetail = 64

// session is one login of a peer: its websocket and the channel on it.
//
//	logged in --phx_join--> joined --phx_leave, phx_close--> logged in
//	any --end--> ended
//
// Everything in it except sock belongs to Server.mu.
type session struct {
	role       Role
	generation int // of the socket path: 1 or 2
	path       string
	dev        *device // nil for relays
	sock       *socket
	userAgent  string
	agent      userAgent
	publicKey  string
	expires    time.Time // of a client's session token

	joining bool // a delayed join is under way
	joined  bool
	ended   bool
	iceless bool              // announced capability
	told    map[string]string // relays the peer knows: id to stamp secret

	// introductions of a client, by the gateway's session; for Config.Legacy.
	introductions map[*session]*introduction

	relay Relay // of a relay; complete when joined
}

// id returns the device's id, for a relay the relay's.
func (sess *session) id() string {
	if sess.dev == nil {
		return sess.relay.ID
	}
	return sess.dev.id
}

// push queues an event on the peer's topic.
func (s *Server) push(sess *session, event string, payload any) {
	s.write(sess, outFrame{Topic: string(sess.role), Event: event, Payload: payload})
}

// pushAll pushes to every joined session of a device.
func (s *Server) pushAll(dev *device, event string, payload any) {
	for _, sess := range dev.sessions {
		if sess.joined {
			s.push(sess, event, payload)
		}
	}
}

func (s *Server) replyOK(sess *session, f frame) { s.reply(sess, f, "ok", struct{}{}) }

func (s *Server) replyError(sess *session, f frame, why string) {
	s.reply(sess, f, "error", reason{why})
}

func (s *Server) reply(sess *session, f frame, status string, response any) {
	s.write(sess, outFrame{Topic: f.Topic, Event: eventReply, Payload: reply{status, response}, Ref: f.Ref})
}

func (s *Server) write(sess *session, f outFrame) {
	b, err := f.encode()
	if err != nil {
		s.log.Error("frame", "err", err)
		return
	}
	sess.sock.send(b)
}

// run serves an open websocket until it ends.
func (s *Server) run(sess *session, conn *websocket.Conn) {
	s.emit(sess, Event{Kind: PeerConnected})
	s.log.Info("peer connected", "role", sess.role, "id", sess.id(), "path", sess.path, "user_agent", sess.userAgent)
	s.wg.Go(func() { sess.sock.write(conn) })

	// A peer that closes and comes back at once must not meet its old session.
	echo := conn.CloseHandler()
	conn.SetCloseHandler(func(code int, text string) error {
		s.mu.Lock()
		s.detach(sess)
		s.mu.Unlock()
		return echo(code, text)
	})
	peerCode := sess.sock.read(conn, s.idleLimit(sess.role), func(b []byte) bool { return s.receive(sess, b) })
	s.leave(sess, peerCode)
}

// receive handles one text frame. It reports whether the connection may go on.
func (s *Server) receive(sess *session, b []byte) bool {
	f, err := decodeFrame(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.log.Warn("frame refused", "role", sess.role, "id", sess.id(), "err", err)
		return false
	}
	if !sess.ended {
		s.handle(sess, f)
	}
	return true
}

func (s *Server) handle(sess *session, f frame) {
	topic := string(sess.role)
	switch {
	case f.Topic == topicPhoenix && f.Event == eventHeartbeat:
		s.emit(sess, Event{Kind: Heartbeat})
		if !s.faults.mutes(sess.role) {
			s.replyOK(sess, f)
		}
	case f.Topic == topic && f.Event == eventJoin:
		s.join(sess, f)
	case f.Topic != topic || !sess.joined:
		s.replyError(sess, f, "unmatched topic")
	case f.Event == eventLeave:
		s.replyOK(sess, f)
		s.closeChannel(sess)
	case !s.dispatch(sess, f):
		s.emit(sess, Event{Kind: UnknownMessage, Detail: f.Event[:min(len(f.Event), maxDetail)]})
		s.replyError(sess, f, "unknown_message")
	}
}

// dispatch handles an event of the protocol. It reports false for one that the
// real portal's channel does not match, be it by name or by payload.
func (s *Server) dispatch(sess *session, f frame) bool {
	switch sess.role {
	case Gateway:
		return s.fromGateway(sess, f)
	case Client:
		return s.fromClient(sess, f)
	default:
		return false
	}
}

func (s *Server) join(sess *session, f frame) {
	if delay := s.faults.joinDelay(sess.role); delay > 0 {
		if !sess.joining {
			sess.joining = true
			s.after(sess, delay, func() { s.finishJoin(sess, f) })
		}
		return
	}
	s.finishJoin(sess, f)
}

func (s *Server) finishJoin(sess *session, f frame) {
	sess.joining = false
	if why := s.faults.joinError(sess.role); why != "" {
		s.replyError(sess, f, why)
		return
	}
	if sess.role == RelayServer && !s.admitRelay(sess, f.Payload) {
		s.replyError(sess, f, "join crashed")
		return
	}
	if sess.joined {
		s.closeChannel(sess)
	}
	sess.joined = true
	s.replyOK(sess, f)
	s.pushInit(sess)
	s.emit(sess, Event{Kind: PeerJoined})
	if sess.role == RelayServer {
		s.relaysChanged()
	}
}

func (s *Server) pushInit(sess *session) {
	switch sess.role {
	case Gateway:
		s.push(sess, "init", s.gatewayInit(sess))
	case Client:
		s.push(sess, "init", s.clientInit(sess))
	default:
		s.push(sess, "init", struct{}{})
	}
}

// closeChannel stops the peer's channel and leaves its socket open.
func (s *Server) closeChannel(sess *session) {
	if sess.joined {
		sess.joined = false
		s.push(sess, eventClose, struct{}{})
	}
}

// evict tells the peer to stop and closes its socket.
func (s *Server) evict(sess *session, why string, code int) {
	if why != "" {
		s.push(sess, "disconnect", reason{why})
	}
	s.closeChannel(sess)
	s.end(sess, code)
}

// end closes the socket with a code; the identity is free from here on.
func (s *Server) end(sess *session, code int) {
	s.detach(sess)
	sess.sock.end(code)
}

// detach makes the session invisible to everything but its own socket.
func (s *Server) detach(sess *session) {
	if sess.ended {
		return
	}
	sess.ended, sess.joined = true, false
	delete(s.sessions, sess)
	if sess.dev != nil {
		sess.dev.sessions = slices.DeleteFunc(sess.dev.sessions, func(o *session) bool { return o == sess })
	}
	for ref, req := range s.pending {
		if req.session == sess {
			s.forget(ref)
		}
	}
	if sess.role == RelayServer && !s.closed {
		s.relaysChanged()
	}
}

// leave is the last thing that happens to a session.
func (s *Server) leave(sess *session, peerCode int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detach(sess)
	s.emit(sess, Event{Kind: PeerLeft, Status: peerCode})
	s.log.Info("peer left", "role", sess.role, "id", sess.id(), "code", peerCode)
}

// after runs do under the lock unless the session ends before.
func (s *Server) after(sess *session, d time.Duration, do func()) {
	s.wg.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-sess.sock.over:
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !sess.ended {
			do()
		}
	})
}

// emit logs an event that happened on a session.
func (s *Server) emit(sess *session, e Event) {
	e.Role = sess.role
	switch sess.role {
	case Gateway:
		e.GatewayID = sess.id()
	case Client:
		e.ClientID = sess.id()
	case RelayServer:
		e.RelayID = sess.id()
	}
	switch e.Kind {
	case PeerConnected, PeerJoined, PeerLeft:
		e.Path, e.UserAgent, e.PublicKey = sess.path, sess.userAgent, sess.publicKey
		if sess.dev != nil {
			e.ExternalID = sess.dev.externalID
		}
	}
	s.events.append(e)
}

// idleLimit is how long a peer may be silent (portal-protocol §1.7).
func (s *Server) idleLimit(role Role) time.Duration {
	switch {
	case s.cfg.IdleLimit > 0:
		return s.cfg.IdleLimit
	case role == RelayServer:
		return 41 * time.Second
	case role == Client && s.cfg.V1Only:
		return 307 * time.Second
	default:
		return 37 * time.Second
	}
}

// decode reads a payload; a mismatch is answered like an unknown event.
func decode(payload json.RawMessage, into any) bool { return json.Unmarshal(payload, into) == nil }
