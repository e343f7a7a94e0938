// Package portal speaks the gateway's side of the portal protocol without
// touching a network: Phoenix V1 frames, the typed messages in them, the login
// URL, the back-off between attempts and the state machine of one connection.
//
// The package is pure. Time and randomness are passed in, nothing here opens a
// socket, starts a goroutine or writes a log. Its edge is the ws subpackage.
//
// Section and rule numbers in comments refer to the portal protocol
// specification.
package portal
