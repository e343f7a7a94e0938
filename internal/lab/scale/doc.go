// Package scale loads the real daemon with many simulated clients and measures
// what each of them costs it: time until all are connected, latency from the
// authorization to the first inner answer, heap, goroutines, and the processor
// time of clients that are idle.
//
// A simulated client speaks what an original client speaks on the wire: the
// portal's websocket, connectivity checks as the controlling agent with the
// original's schedule (transport §2.7, §2.8), and a WireGuard handshake
// (Noise IKpsk2) with one echo request inside. It is a state machine of a few
// kilobytes without goroutine, socket or TUN device of its own, so that a
// thousand of them leave the processors to the gateway. All share one socket per
// family in one namespace, but each has addresses of its own, because the
// gateway limits handshakes by address.
//
//	clients -- internet (portal, relay) -- gateway -- resource
//
// In a relayed run the internet forwards nothing, so that the relay, which
// stands there, is the only way.
package scale
