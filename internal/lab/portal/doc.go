// Package portal is the lab's development portal: a control plane that runs
// on one machine and that an unmodified Firezone gateway, client or relay can
// log in to. It speaks both socket generations ("V1": /gateway/websocket,
// "V2": /gateway/v2/websocket), derives credentials the way the real portal
// does, and adds what a laboratory needs: a programmatic and an HTTP control
// interface, an event log with time stamps, and faults on demand.
//
// It is written from the protocol specification alone and shares no code with
// the gateway's own portal package, so that each can be used to test the other.
//
// # Model
//
// A [Site] groups gateways and owns [Resource]s. [Server.Grant] lets one
// client, or every client, reach a resource until an instant. A client sees
// the resources it holds a grant for and asks for one of them; the portal
// picks a connected gateway of the resource's site, pushes the authorization
// to it, waits for the acknowledgement and then tells the client. Devices are
// identified by (role, site, external id), get their id and tunnel addresses
// from that identity, and keep them for the life of the Server; the addresses
// are the same in the next life unless two identities collide.
//
// # HTTP control interface
//
// Config.ControlAddr or Config.ControlListener opens a second listener. It has
// no authentication and is meant for loopback; cross-origin requests by
// browsers are refused. Bodies and answers are JSON, errors are
// {"error":"…"} with status 400, 404 or 409.
//
//	GET    /lab/state                        sites, resources, grants, authorizations, devices, relays
//	GET    /lab/events?after=N&wait=10s      events after sequence number N; waits for one if there is none
//	POST   /lab/sites                        {"id","name","gateway_token"}                     → the site
//	POST   /lab/resources                    {"id","type","name","address","site_id","filters"} → the resource; creates or updates
//	DELETE /lab/resources/{id}
//	POST   /lab/grants                       {"client","resource_id","ttl":"1h"}; without client: everybody
//	DELETE /lab/grants?client=C&resource_id=R
//	PUT    /lab/relays                       [{"id","ipv4":"a.b.c.d:3478","ipv6":"[::]:3478","stamp_secret"}]; replaces the list
//	POST   /lab/relays/presence              pushes relays_presence to every joined peer
//	POST   /lab/gateways/{id}/disconnect     {"reason":"token_expired","code":1000}
//	POST   /lab/gateways/{id}/init           pushes init again
//	POST   /lab/drop                         cuts every websocket without a Close frame
//	PUT    /lab/faults                       a [Faults] object; {} heals everything
//
// # Secrets
//
// Tokens, refs, preshared keys, ICE and TURN passwords and stamp secrets occur
// in frames only. They are in no log line, error, event or state listing.
package portal
