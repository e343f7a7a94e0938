package messages

import "firezone-gateway/internal/portal"

// Connection numbers the portal connections of this process, from 1. An
// acknowledgement is only valid on the connection that carried its request.
type Connection uint64

// SendToPortal asks the portal actor to send Message. With a non-zero
// Connection the message is dropped unless that connection is still open.
type SendToPortal struct {
	Message    portal.Outgoing
	Connection Connection
}

// Disconnect asks to close the connection in an orderly way and to stay away
// until Reconnect. The reply is Disconnected.
type Disconnect struct{}

// Disconnected is the reply to Disconnect.
type Disconnected struct{}

// Reconnect asks for another connection at once, with the key pair in use. One
// that is open is closed in an orderly way.
type Reconnect struct{}

// ClosePortal asks for an orderly end of the channel; the reply is PortalClosed.
type ClosePortal struct{}

// PortalClosed is the reply to ClosePortal.
type PortalClosed struct{}
